"""The disk space of a session's folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

MAX_MEASURED = 2_000_000
"""More files than this are not measured."""
BLOCK_BYTES = 512
MAX_FULL = 4


def bytes_in(
    folders: Iterable[Path], enough: int, full_bytes: int = 0, full: list[str] | None = None
) -> int:
    """The bytes that files in *folders* occupy. Blocking. Links are not followed.

    Args:
        enough: the measurement may end as soon as it has found more than this.
        full: gets the paths of the files that have the size *full_bytes*, at most MAX_FULL.
    """
    total = count = 0
    linked: set[tuple[int, int]] = set()
    waiting = [str(folder) for folder in folders]
    while waiting and total <= enough and count < MAX_MEASURED:
        folder = waiting.pop()
        try:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                continue
            entries = list(os.scandir(folder))
        except OSError:
            continue  # it was removed meanwhile
        for entry in entries:
            count += 1
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode):
                waiting.append(entry.path)
            elif full is not None and found.st_size == full_bytes and len(full) < MAX_FULL:
                full.append(entry.path)
            elif found.st_nlink > 1:
                identity = (found.st_dev, found.st_ino)
                if identity in linked:
                    continue
                linked.add(identity)
            total += found.st_blocks * BLOCK_BYTES
    return total


def size_text(size: int) -> str:
    """A number of bytes, for a person: ``2 GiB``."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"
