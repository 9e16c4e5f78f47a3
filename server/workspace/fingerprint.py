"""A quick look at a small folder, to see that nothing has changed since the last snapshot."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from .folders import WorkFolder

MAX_SEEN = 64
MAX_SEEN_AT_ONCE = 16
"""Entries that are looked at on the event loop, for at most a fifth of a millisecond."""
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


def take_fingerprint(folder: WorkFolder, max_seen: int = MAX_SEEN) -> Fingerprint | None:
    """Look at a folder; None if it has more than *max_seen* entries, or cannot be read."""
    entries: list[tuple[str, int, int, int, int]] = []
    now = time.time_ns()
    waiting: list[tuple[str, ...]] = [()]
    try:
        while waiting:
            names = waiting.pop()
            with folder.open(*names) as descriptor, os.scandir(descriptor) as children:
                for entry in children:
                    if len(entries) == max_seen:
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


class LastSeen:
    """The state of a session's folder at its last snapshot.

    Args:
        is_new: the session has no snapshot.
        is_local: the folder is on the disk of the database. Another disk may hang, so a folder
            there is never looked at on the event loop.
    """

    def __init__(self, folder: WorkFolder, *, is_new: bool, is_local: bool) -> None:
        self._folder = folder
        self._is_local = is_local
        self._has_none = is_new
        self._fingerprint: Fingerprint | None = None

    def update(self, fingerprint: Fingerprint | None) -> None:
        """Note what the folder was like when a snapshot was begun; None if that is not known."""
        self._fingerprint, self._has_none = fingerprint, False

    def forget(self) -> None:
        """Note that a snapshot is begun, which may fail."""
        self._fingerprint = None

    def equals(self, fingerprint: Fingerprint | None) -> bool:
        """Whether nothing has changed since, by what the folder is like now."""
        if fingerprint is None:
            return False
        last = self._fingerprint
        is_unchanged = last is not None and last.proves_unchanged(fingerprint)
        return is_unchanged or (fingerprint.is_empty and self._has_none)

    def is_plainly_unchanged(self) -> bool:
        """Look at a small folder at once. False may also mean that it takes longer to find out.

        A thread would delay the prompt by ten times as long.
        """
        return self._is_local and self.equals(take_fingerprint(self._folder, MAX_SEEN_AT_ONCE))
