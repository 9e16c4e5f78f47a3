"""The disk space of a session's folders, which its agent may have made hard to measure."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_MEASURED = 2_000_000
"""More files than this are not measured."""
UNMEASURED = 1 << 62
"""The size of folders with too many files, with too long paths, or that stay locked."""
BLOCK_BYTES = 512
ENTRY_BYTES = 1024
"""The least that a file or a folder counts: an empty one occupies an inode, too."""
MAX_FULL = 4
LONG_PATH = 2000
MAX_OPEN_BASES = 64
"""A path may have this many times LONG_PATH characters, and as many folders are open then."""
UNLOCKS = 3
_LIST_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LISTABLE = stat.S_IRUSR | stat.S_IXUSR


class _UnmeasuredError(Exception):
    """There is more than can be measured."""


class _Base:
    """A folder that stays open for the paths below it, which are too long for the kernel."""

    def __init__(self, descriptor: int, path: str, depth: int) -> None:
        if depth > MAX_OPEN_BASES:
            raise _UnmeasuredError
        self.descriptor, self.path, self.depth = os.dup(descriptor), path, depth

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def bytes_in(
    folders: Iterable[Path], enough: int, full_bytes: int = 0, full: list[str] | None = None
) -> int:
    """The bytes that files and folders in *folders* occupy. Blocking. Links are not followed.

    A folder that its owner may not list is made readable for the owner.

    Args:
        enough: the measurement may end as soon as it has status more than this.
        full: gets the paths of the files that have the size *full_bytes*, at most MAX_FULL.

    Returns:
        UNMEASURED if there is more than can be measured.
    """
    total = count = 0
    linked: set[tuple[int, int]] = set()
    waiting: list[tuple[str, _Base | None]] = [(str(folder), None) for folder in folders]
    try:
        while waiting and total <= enough:
            for path, base, status in _statuses_in(*waiting.pop()):
                count += 1
                if count > MAX_MEASURED:
                    return UNMEASURED
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((path, base))
                elif full is not None and status.st_size == full_bytes and len(full) < MAX_FULL:
                    full.append(_complete(path, base))
                elif status.st_nlink > 1:
                    identity = (status.st_dev, status.st_ino)
                    if identity in linked:
                        continue
                    linked.add(identity)
                total += max(status.st_blocks * BLOCK_BYTES, ENTRY_BYTES)
    except _UnmeasuredError:
        return UNMEASURED
    return total


def _statuses_in(
    folder: str, base: _Base | None
) -> Iterator[tuple[str, _Base | None, os.stat_result]]:
    """The entries of a folder; nothing if it was removed meanwhile, or is not a folder.

    Args:
        folder: its path; relative if there is a *base*.

    Raises:
        _UnmeasuredError: see :data:`UNMEASURED`.
    """
    try:
        descriptor = _open(folder, base.descriptor if base is not None else None)
    except OSError:
        return
    try:
        if len(folder) > LONG_PATH:
            base = _Base(descriptor, _complete(folder, base), base.depth + 1 if base else 1)
            folder = ""
        with os.scandir(descriptor) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    yield path, base, entry.stat(follow_symlinks=False)
    except PermissionError:
        raise _UnmeasuredError from None  # it was locked again
    except OSError:
        return
    finally:
        os.close(descriptor)


def _open(folder: str, parent: int | None) -> int:
    """Open a folder for listing. If its owner may not list it, that permission is restored.

    Raises:
        OSError: it is missing, is a link, or belongs to another user.
        _UnmeasuredError: the agent removes the permission again and again.
    """
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY | _LIST_FLAGS, dir_fd=parent)
        if os.fstat(descriptor).st_mode & stat.S_IXUSR or os.geteuid() == 0:
            return descriptor
        os.close(descriptor)
    locked = os.open(folder, os.O_PATH | _LIST_FLAGS, dir_fd=parent)
    try:
        path = f"/proc/self/fd/{locked}"  # leads to this folder, whatever its name is now
        for _ in range(UNLOCKS):
            os.chmod(path, stat.S_IMODE(os.fstat(locked).st_mode) | _LISTABLE)  # noqa: PTH101
            with contextlib.suppress(PermissionError):
                return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(locked)
    raise _UnmeasuredError


def _complete(path: str, base: _Base | None) -> str:
    return path if base is None else f"{base.path}/{path}"


def size_text(size: int) -> str:
    """A number of bytes, for a person: ``2 GiB``."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"
