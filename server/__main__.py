"""The entry point: ``python -m server``, or ``python /path/to/server`` from any folder."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by its path, so `sys.path` begins with this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


def start_program() -> int:
    """Run the command; an editor that starts ``connect`` does not wait for the server's modules."""
    if sys.argv[1:2] == ["connect"]:
        from server.connect.command import run_connect

        return run_connect(sys.argv[2:])
    from server.command_line import main

    return main()


if __name__ == "__main__":
    sys.exit(start_program())
