"""Lists a session's folder."""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass
from typing import Literal

from .folders import Names, WorkFolder, read_error

EntryType = Literal["file", "directory", "link"]


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """A file, folder or link. The path is relative to the session's folder."""

    path: str
    type: EntryType
    size: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class FolderListing:
    """Entries in the order of their paths.

    Attributes:
        is_truncated: the folder has more entries than the limit; the deepest are left out.
    """

    entries: list[FolderEntry]
    is_truncated: bool


def type_of(mode: int) -> EntryType | None:
    """Return the type of a file, None for a special file such as a pipe."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else None


def list_entries(folder: WorkFolder, names: Names, depth: int, limit: int) -> FolderListing:
    """List a folder, level by level, without following links. Special files are left out.

    Args:
        names: the folder, below the session's.
        depth: the number of levels.
        limit: the number of entries.

    Raises:
        Error: ``not_found``; the folder does not exist.
        OSError: it cannot be read.
    """
    entries: list[FolderEntry] = []
    waiting: deque[tuple[Names, int]] = deque([(names, depth)])
    while waiting:
        current, levels = waiting.popleft()
        try:
            with folder.open(*current) as descriptor:
                children = _entries_of(descriptor, current, limit - len(entries) + 1)
        except OSError as error:
            if current == names:
                raise read_error(error, "folder") from None
            continue  # removed or replaced meanwhile, or not readable
        entries += children
        if len(entries) > limit:
            return FolderListing(sorted(entries[:limit], key=_by_path), is_truncated=True)
        if levels > 1:
            waiting += (
                ((*current, entry.path.rpartition("/")[2]), levels - 1)
                for entry in children
                if entry.type == "directory"
            )
    return FolderListing(sorted(entries, key=_by_path), is_truncated=False)


def _by_path(entry: FolderEntry) -> list[str]:
    return entry.path.split("/")


def _entries_of(descriptor: int, names: Names, limit: int) -> list[FolderEntry]:
    """Return at most *limit* entries of one folder, in order."""
    entries: list[FolderEntry] = []
    with os.scandir(descriptor) as scan:
        for entry in scan:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # removed meanwhile
            if (kind := type_of(status.st_mode)) is None:
                continue
            size = 0 if kind == "directory" else status.st_size
            path = "/".join([*names, entry.name])
            entries.append(FolderEntry(path, kind, size, int(status.st_mtime)))
            if len(entries) == limit:
                break
    return sorted(entries, key=_by_path)
