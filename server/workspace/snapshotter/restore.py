"""Restores a folder to the state of a tree, through descriptors.

It removes and replaces only what a snapshot has: a file that is ignored, too large or changed since
the scan stays as it is, and is reported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence

from .git import Blobs, Git, TreeFile
from .index_file import RACY, Seen
from .objects import EXECUTABLE, FOLDER, LINK, UNSAVED
from .scan import OPEN_FOLDER

RESTORED_NAME = ".clawdforge-{}.tmp"
MAX_REPORTED = 1000
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
"""The errors after which nothing else can be restored, either."""


class Restoration:
    """The restoration of one folder.

    Args:
        folder: its descriptor.
        current: the present content of the folder, by a scan.
        target: the files of the tree.

    Attributes:
        restored: the number of files that were written or removed.
        failed: the paths that could not be restored.
    """

    def __init__(
        self,
        folder: int,
        git: Git,
        current: Mapping[str, Seen],
        target: Mapping[str, TreeFile],
    ) -> None:
        self.restored = 0
        self.failed: list[str] = []
        self._folder = folder
        self._git = git
        self._current = current
        self._target = target

    def run(self) -> None:
        """Restore the folder.

        Raises:
            GitError: a blob cannot be read.
            OSError: a file cannot be written because the disk is full, for example.
        """
        to_write = []
        for path, seen in self._current.items():
            wanted = self._target.get(path)
            if seen.mode == FOLDER:
                continue
            if wanted is not None and (wanted.mode, wanted.oid) == (seen.mode, seen.oid):
                continue
            if seen.mode == UNSAVED:
                self.failed.append(path)
            elif wanted is None or wanted.mode == FOLDER:
                self._do(path, self._remove, seen)
        self._remove_folders()
        for path, wanted in self._target.items():
            current = self._current.get(path)
            if wanted.mode == FOLDER:
                if current is None or current.mode != FOLDER:
                    self._make_folder(path)
            elif current is None or (current.mode, current.oid) != (wanted.mode, wanted.oid):
                to_write.append((path, wanted, current))
        blobs = Blobs(self._git)
        try:
            for path, wanted, current in to_write:
                if wanted.mode == UNSAVED:
                    self.failed.append(path)
                elif current is None or current.mode != UNSAVED:
                    self._do(path, self._write, current, wanted, blobs)
        finally:
            blobs.close()
        self.failed = sorted(set(self.failed))[:MAX_REPORTED]

    def _do(self, path: str, action: object, *arguments: object) -> None:
        """Restore one file; a file that changes meanwhile is left alone and reported."""
        above, _, name = path.rpartition("/")
        try:
            with self._open_folder(above) as parent:
                is_done = action(parent, name, *arguments)  # type: ignore[operator]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError):
            is_done = False
        except OSError as error:
            if error.errno in _FATAL:
                raise
            is_done = False
        if is_done:
            self.restored += 1
        else:
            self.failed.append(path)

    def _remove(self, parent: int, name: str, seen: Seen) -> bool:
        if not _is_as_seen(parent, name, seen):
            return False
        os.unlink(name, dir_fd=parent)
        return True

    def _remove_folders(self) -> None:
        """Remove the folders that the tree does not have, unless something is left in them."""
        for path in sorted(self._current, reverse=True):
            wanted = self._target.get(path)
            if self._current[path].mode != FOLDER or (wanted and wanted.mode == FOLDER):
                continue
            above, _, name = path.rpartition("/")
            with contextlib.suppress(OSError), self._open_folder(above) as parent:
                os.rmdir(name, dir_fd=parent)

    def _make_folder(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        with contextlib.suppress(OSError), self._open_folder(above) as parent:
            os.mkdir(name, 0o777, dir_fd=parent)

    def _write(
        self, parent: int, name: str, current: Seen | None, wanted: TreeFile, blobs: Blobs
    ) -> bool:
        data = blobs.read(wanted.oid)
        if current is not None and current.mode == FOLDER:
            current = None
        temporary = RESTORED_NAME.format(secrets.token_hex(8))
        try:
            if wanted.mode == LINK:
                os.symlink(os.fsdecode(data), temporary, dir_fd=parent)
            else:
                _create_file(parent, temporary, data, _mode(parent, name, current, wanted))
            if not _is_as_seen(parent, name, current):
                return False
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
        return True

    def _open_folder(self, path: str) -> contextlib.AbstractContextManager[int]:
        return opened_below(self._folder, path)


def remove_temporaries(folder: int, paths: Sequence[str]) -> None:
    """Remove the files that a killed restoration left."""
    for path in paths:
        above, _, name = path.rpartition("/")
        with contextlib.suppress(OSError), opened_below(folder, above) as parent:
            os.unlink(name, dir_fd=parent)


@contextlib.contextmanager
def opened_below(folder: int, path: str) -> Iterator[int]:
    """The descriptor of a folder below *folder*, reached through no link."""
    descriptor = os.dup(folder)
    try:
        for name in path.split("/") if path else ():
            below = os.open(name, OPEN_FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _create_file(parent: int, name: str, data: bytes, mode: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=parent)
    with open(descriptor, "wb") as file:  # noqa: PTH123
        file.write(data)
        if mode is not None:
            os.fchmod(descriptor, mode)


def _mode(parent: int, name: str, current: Seen | None, wanted: TreeFile) -> int | None:
    """Return the permissions of a restored file; None for those of a new file."""
    bits = 0o666
    if current is not None and current.mode != LINK:
        bits = stat.S_IMODE(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode) & 0o777
    elif wanted.mode != EXECUTABLE:
        return None
    else:
        umask = os.umask(0)
        os.umask(umask)
        bits &= ~umask
    readable = (bits & 0o444) >> 2
    return bits | readable if wanted.mode == EXECUTABLE else bits & ~0o111


def _is_as_seen(parent: int, name: str, seen: Seen | None) -> bool:
    """Whether a file is the one that the scan found, or still missing if it found none."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return seen is None
    return (
        seen is not None
        and seen.ctime in (status.st_ctime_ns, RACY)
        and seen.mtime == status.st_mtime_ns
        and seen.size == status.st_size
        and seen.inode == status.st_ino
    )
