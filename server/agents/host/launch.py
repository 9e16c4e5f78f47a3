"""Start an agent with the server in the middle of its stdin and stdout.

Run by acpx in the agent's place, alone and without site-packages:
``python -I -S launch.py AGENT [ARG ...]``. It becomes the leader of a session
and process group of its own, dies with its parent, hands its stdin and stdout
to the server, takes the two pipes that it gets for them, and a third for its
stderr, and becomes the agent. From then on everything between acpx and the agent
goes through the server, with no process added.
"""

import ctypes
import json
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1
HANDOVER = "CLAWDFORGE_HANDOVER"


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we asked to be told
        sys.exit(1)
    os.setsid()

    seam = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    seam.connect("\0" + os.environ[HANDOVER])
    socket.send_fds(seam, [b"\n"], [0, 1])
    overlay, given, _, _ = socket.recv_fds(seam, 1 << 20, 3)
    seam.close()
    if not overlay:
        sys.exit("refused by the server: its log says why")
    for number, descriptor in enumerate(given):
        os.dup2(descriptor, number)
        os.close(descriptor)

    # The server's own settings hold its secrets: none of them is the agent's business.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
    environ.update(json.loads(overlay))
    argv = sys.argv[1:]
    try:
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
