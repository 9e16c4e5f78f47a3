"""A quick look at a small folder, to see that nothing has changed since the last snapshot."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from .folders import WorkFolder

MAX_SEEN = 64
CLOCK_STEP_NS = 30_000_000
"""More than the resolution of a file's times: a later change may leave the same times."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The names, times and sizes of everything in a folder.

    Attributes:
        is_empty: the folder has no entries.
        is_reliable: an equal fingerprint later means that nothing has changed.
    """

    entries: tuple[tuple[str, int, int, int, int], ...]
    is_empty: bool
    is_reliable: bool

    def proves_unchanged(self, later: Fingerprint | None) -> bool:
        """Whether nothing has changed between this fingerprint and a later one."""
        return self.is_reliable and later is not None and self.entries == later.entries


def take_fingerprint(folder: WorkFolder) -> Fingerprint | None:
    """Look at a folder; None if it is not small, or cannot be read."""
    entries: list[tuple[str, int, int, int, int]] = []
    now = time.time_ns()
    waiting: list[tuple[str, ...]] = [()]
    try:
        while waiting:
            names = waiting.pop()
            with folder.open(*names) as descriptor, os.scandir(descriptor) as children:
                for entry in children:
                    if len(entries) == MAX_SEEN:
                        return None
                    status = entry.stat(follow_symlinks=False)
                    path = (*names, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    times = status.st_mtime_ns, status.st_ctime_ns
                    entries.append(("/".join(path), *times, status.st_size, status.st_ino))
    except OSError:
        return None
    newest = max((entry[2] for entry in entries), default=0)
    entries.sort()
    return Fingerprint(tuple(entries), not entries, newest < now - CLOCK_STEP_NS)
