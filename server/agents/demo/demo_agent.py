"""The bundled demo agent: a real ACP agent (protocol version 1) with no model and no account.

    python -I -S server/agents/demo/demo_agent.py   # or: python -m server.agents.demo.demo_agent

Its replies come from a script, but everything else is real: thoughts, plans, tool calls and
permission requests are ACP messages, and a file that it reports as written is written. It uses
the standard library only and imports nothing of the server, so that it starts in a few
milliseconds and serves as an example of an ACP agent:

- ``rpc``: JSON-RPC on stdin and stdout, and its errors
- ``methods``: the ACP methods, one function each
- ``session``: a conversation, its settings and its file
- ``turn``: one prompt, on a thread of its own
- ``replies`` and ``commands``: the script
- ``content``: functions on ACP content blocks

Memory: a conversation is stored in `<cwd>/.demo-agent/<sessionId>.json`. The session's folder is
always writable for the agent (HOME may be read-only), and it is deleted with the session. The file
is replaced by rename when a prompt arrives, when its turn ends and when a setting changes: a
`kill -9` loses at most the unfinished reply. In a folder that is not writable the agent works as
well, and remembers until its process ends.

Environment: `DEMO_PACE_MS` is the pause after each word in milliseconds (18; 0 for tests).

Threads: the main thread reads stdin and responds immediately. Each turn has a thread, which may
sleep or wait for a permission; `DemoTurn.cancel` wakes it from either.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

TYPE_CHECKING = False  # type checkers know the name; importing typing takes longer than json
if TYPE_CHECKING:
    from typing import NoReturn

if not __package__:  # run as a file: make the folder a package, for relative imports (PEP 366)
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder.parent))
    __package__ = folder.name
    __import__(__package__)
    del sys.path[0]  # its other modules must not shadow the standard library's


def main() -> NoReturn:
    """Serve stdin until it ends, then exit without waiting for turns."""
    from .methods import DemoAgent
    from .rpc import Client

    for number in (signal.SIGTERM, signal.SIGINT):  # the parent may have ignored them
        signal.signal(number, signal.SIG_DFL)
    for fd in (0, 1):
        os.set_blocking(fd, True)
    agent = DemoAgent(Client())
    for line in sys.stdin.buffer:
        if not line.isspace():
            agent.handle_line(line)
    os._exit(0)


if __name__ == "__main__":
    main()
