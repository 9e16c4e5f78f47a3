"""Takes snapshots of folders, compares them and restores them.

Runs alone and without site-packages: ``python -I -S snapshotter.py``. Each request on stdin is a
length of four bytes and a JSON object; each response on stdout is a JSON object and then data, both
with a length in front. One process serves one request at a time; the server starts several.

- ``scan``: finds what changed (``scan``), using what the last scan found (``index_file``) and the
  rules of ``.gitignore`` (``ignore_rules``)
- ``undoing``: an undo, and its end after a kill
- ``objects``: stores the content in a bare repository
- ``records``: the snapshots, which are refs of the repository
- ``restore``: restores a folder
- ``git``: runs git, to compare trees, to read blobs and to pack. Git never sees the folder itself,
  so that no hook, filter, attribute or configuration of the folder has an effect.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make the folder a package, for relative imports (PEP 366)
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder.parent))
    __package__ = folder.name
    __import__(__package__)
    del sys.path[0]  # its other modules must not shadow the standard library's

MAX_MEMORY_BYTES = 2 << 30


def read_request() -> dict[str, Any] | None:
    """Read the next request; None at the end of stdin."""
    length = sys.stdin.buffer.read(4)
    if len(length) < 4:
        return None
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read(int.from_bytes(length, "big")))
    return request


def write_response(response: dict[str, Any], data: bytes = b"") -> None:
    out = sys.stdout.buffer
    for part in (json.dumps(response).encode(), data):
        out.write(len(part).to_bytes(4, "big"))
        out.write(part)
    out.flush()


def main() -> None:
    """Serve stdin until it ends."""
    from .operations import perform

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # it never preempts the server
    while (request := read_request()) is not None:
        write_response(*perform(request))


if __name__ == "__main__":
    main()
