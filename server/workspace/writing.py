"""Writes one file of a session's folder. A reader sees the old content or the new content."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from .. import safe_files
from ..errors import Error, ErrorCode, bad_request
from .folders import Names, WorkFolder, split_path, write_error

DRAFT_NAME = ".clawdforge-{}.tmp"
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
"""The errors of a file system, or a kernel, without ``O_TMPFILE``."""

Condition = Callable[[os.stat_result | None], bool]
"""Whether a file may be written, given the status of the one that it replaces."""


class FileDraft:
    """The new content of a file, until :meth:`commit`.

    It has no name, so a killed server leaves nothing. On file systems without such files it has a
    temporary name in the session's folder.
    """

    def __init__(self, folder: WorkFolder, path: str) -> None:
        """Create the draft.

        Raises:
            Error: ``bad_request`` or ``conflict``.
            OSError: the folder cannot be written.
        """
        try:
            self._names = split_path(path)
        except Error:
            raise bad_request("path: must be relative and without empty names, . and ..") from None
        self._folder = folder
        self._path = path
        self._temporary: str | None = None
        self._above: Names = ()
        try:
            with self._existing_folder() as parent:
                self._file = self._create(parent)
        except OSError as error:
            raise write_error(error, path) from None

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def close(self) -> None:
        """Discard the draft unless it is committed."""
        self._file.close()
        if self._temporary is not None:
            with contextlib.suppress(OSError), self._folder.open(*self._above) as parent:
                os.unlink(self._temporary, dir_fd=parent)

    def commit(self, may_write: Condition) -> os.stat_result:
        """Put the content in its place, and create the folders that are missing.

        Raises:
            Error: ``precondition_failed``, or ``conflict`` if something else has its place.
            OSError: it cannot be written.
        """
        *above, name = self._names
        self._file.flush()
        try:
            with self._parent(above) as parent:
                old = _status_of(name, parent)
                if not may_write(old):
                    raise Error(ErrorCode.PRECONDITION_FAILED, "the file has changed")
                if old is not None and stat.S_ISDIR(old.st_mode):
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
                is_file = old is not None and stat.S_ISREG(old.st_mode)
                mode = stat.S_IMODE(old.st_mode) & 0o777 if old is not None and is_file else None
                self._put_in_place(name, parent, mode)
        except OSError as error:
            raise write_error(error, self._path) from None
        return os.fstat(self._file.fileno())

    @contextlib.contextmanager
    def _existing_folder(self) -> Iterator[int]:
        """The descriptor of the deepest folder on the way that exists."""
        above = self._names[:-1]
        while True:
            try:
                with self._folder.open(*above) as parent:
                    self._above = above
                    yield parent
                    return
            except FileNotFoundError:
                if not above:
                    raise
            above = above[:-1]

    def _create(self, parent: int) -> BinaryIO:
        if _UNNAMED:
            try:
                flags = _UNNAMED | os.O_RDWR | os.O_CLOEXEC
                descriptor = os.open(".", flags, 0o666, dir_fd=parent)
                return cast(BinaryIO, os.fdopen(descriptor, "wb"))
            except OSError as error:
                if error.errno not in _NO_UNNAMED_FILES:
                    raise
        self._temporary = DRAFT_NAME.format(secrets.token_hex(8))
        return safe_files.open_file(self._temporary, parent, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    @contextlib.contextmanager
    def _parent(self, above: list[str]) -> Iterator[int]:
        """The descriptor of the file's folder, which is created if it is missing."""
        for depth in range(1, len(above) + 1):
            with (
                self._folder.open(*above[: depth - 1]) as parent,
                contextlib.suppress(FileExistsError),
            ):
                os.mkdir(above[depth - 1], 0o777, dir_fd=parent)
        with self._folder.open(*above) as parent:
            yield parent

    def _put_in_place(self, name: str, parent: int, mode: int | None) -> None:
        if mode is not None:
            os.fchmod(self._file.fileno(), mode)
        if self._temporary is not None:
            with self._folder.open(*self._above) as source:
                os.rename(self._temporary, name, src_dir_fd=source, dst_dir_fd=parent)
            self._temporary = None
            return
        unnamed = f"/proc/self/fd/{self._file.fileno()}"
        try:
            os.link(unnamed, name, dst_dir_fd=parent, follow_symlinks=True)
        except FileExistsError:  # a link cannot replace a file, but a rename can
            temporary = DRAFT_NAME.format(secrets.token_hex(8))
            os.link(unnamed, temporary, dst_dir_fd=parent, follow_symlinks=True)
            try:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                os.unlink(temporary, dir_fd=parent)
                raise


def _status_of(name: str, parent: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
