"""Starts an agent with the server as a proxy on its stdin and stdout.

acpx runs it in place of the agent, alone and without site-packages: ``python -I -S launch.py AGENT
[ARG ...]``. It becomes the leader of a session and process group of its own, dies with its parent,
and sends its stdin and stdout to the server. It receives two pipes in their place, and a third for
its stderr, restricts itself as the server says, and then becomes the agent. From then on all data
between acpx and the agent passes through the server, without an additional process.
"""

import ctypes
import json
import os
import signal
import socket
import sys

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from server.sandbox import restrict
else:
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../sandbox"))
    import restrict

    del sys.path[0]

PR_SET_PDEATHSIG = 1
HANDOVER = "CLAWDFORGE_HANDOVER"


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        sys.exit(1)
    os.setsid()

    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.connect("\0" + os.environ[HANDOVER])
    socket.send_fds(server, [b"\n"], [0, 1])
    plan, given, _, _ = socket.recv_fds(server, 1 << 20, 3)
    while piece := server.recv(1 << 20):  # to the end: the kernel may deliver it in pieces
        plan += piece
    server.close()
    if not plan:
        sys.exit("refused by the server: its log says why")
    for number, descriptor in enumerate(given):
        os.dup2(descriptor, number)
        os.close(descriptor)

    # The server's own settings contain its secrets.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
    argv = sys.argv[1:]
    try:
        restrict.enter(json.loads(plan), argv, environ)
    except OSError as error:
        sys.exit(f"{error.filename or argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
