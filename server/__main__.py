"""The entry point: ``python -m server``, or ``python /path/to/server`` from any folder.

In the installed package the same modules are called ``clawdforge``.
"""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

if not __package__:  # started by its path, so `sys.path` begins with this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

ENTRY_PACKAGE = __package__ or Path(__file__).resolve().parent.name


def start_program() -> int:
    """Run the command; an editor that starts ``connect`` does not wait for the server's modules."""
    if sys.argv[1:2] == ["connect"]:
        connect = importlib.import_module(f"{ENTRY_PACKAGE}.connect.command")
        return int(connect.run_connect(sys.argv[2:]))
    gc.disable()  # modules are no garbage: looking for it makes the start a tenth slower
    command_line = importlib.import_module(f"{ENTRY_PACKAGE}.command_line")
    gc.freeze()
    gc.enable()
    return int(command_line.main())


if __name__ == "__main__":
    sys.exit(start_program())
