"""Starts an agent with the server as a proxy on its stdin and stdout.

acpx runs it in place of the agent, alone and without site-packages: ``python -I -S launch.py AGENT
[ARG ...]``. It becomes the leader of a session and process group of its own, dies with its parent,
and sends its stdin and stdout to the server. It receives two pipes in their place, and a third for
its stderr, restricts itself as the server says, and then becomes the agent. From then on all data
between acpx and the agent passes through the server, without an additional process.

Every start of an agent waits for this program, so it imports neither ``json`` nor ``socket``, nor
another module that makes enumerations or compiles patterns: those take longer than all the rest.
"""

import _socket
import ctypes
import marshal
import os
import struct
import sys

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from server.sandbox import restrict
else:
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../sandbox"))
    import restrict

    del sys.path[0]

PR_SET_PDEATHSIG = 1
SIGKILL = 9
HANDOVER = "CLAWDFORGE_HANDOVER"


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        sys.exit(1)
    os.setsid()

    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    server.connect("\0" + os.environ[HANDOVER])
    rights = _socket.SOL_SOCKET, _socket.SCM_RIGHTS
    server.sendmsg([b"\n"], [(*rights, struct.pack("2i", 0, 1))])
    plan, messages, _, _ = server.recvmsg(1 << 20, _socket.CMSG_LEN(struct.calcsize("3i")))
    while piece := server.recv(1 << 20):  # to the end: the kernel may deliver it in pieces
        plan += piece
    server.close()
    if not plan:
        sys.exit("refused by the server: its log says why")
    for number, descriptor in enumerate(struct.unpack("3i", messages[0][2])):
        os.dup2(descriptor, number)
        os.close(descriptor)

    # The server's own settings contain its secrets.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
    argv = sys.argv[1:]
    try:
        restrict.enter(marshal.loads(plan), argv, environ)  # noqa: S302 - from the server
    except OSError as error:
        sys.exit(f"{error.filename or argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
