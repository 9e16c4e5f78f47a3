"""A session's folder, and the files in it: found by descriptor, never through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .. import safe_files
from ..data_dir import DataDir
from ..errors import Error, ErrorCode, bad_request, not_found

ABSENT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
)
"""The errors of a path that leads to nothing that a client may read. A link counts as nothing."""
MAX_LEVELS = 64
"""Folders below each other that a listing, an archive or a snapshot enters."""

Names = tuple[str, ...]
"""The components of a path below a session's folder."""


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """A session's folder.

    Attributes:
        top: a folder that the operator chose; it may lead through links.
        names: the folders from there to the session's folder. None of them may be a link.
    """

    top: Path
    names: Names

    @classmethod
    def of(cls, cwd: str, data_dir: DataDir) -> WorkFolder:
        """Return the folder with the absolute path *cwd*.

        The path of a folder that a client chose was resolved when its session was created. If it
        leads through a link now, the link is not followed.
        """
        path = Path(cwd)
        if path.is_relative_to(data_dir.path):
            return cls(data_dir.path, path.relative_to(data_dir.path).parts)
        return cls(Path("/"), path.parts[1:])

    @contextlib.contextmanager
    def open(self, *names: str) -> Iterator[int]:
        """The descriptor of the folder, or of the folder *names* in it.

        Raises:
            OSError: it does not exist, or is not a folder.
        """
        with safe_files.folder(self.top, *self.names, *names) as descriptor:
            yield descriptor


def split_path(path: str) -> Names:
    """Split a client's path into names.

    Raises:
        Error: ``not_found``; no file in the folder can have this path.
    """
    names = tuple(path.split("/"))
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        raise not_found("file")
    return names


def split_folder_path(path: str) -> Names:
    """Split the path of a folder. An empty path, ``.`` and ``/`` are the session's own folder.

    Raises:
        Error: ``not_found``.
    """
    path = path if path == "/" else path.removesuffix("/")
    return () if path in ("", ".", "/") else split_path(path)


def read_error(error: OSError, what: str) -> Exception:
    """Return the failure that a client gets if a file or folder cannot be read."""
    return not_found(what) if error.errno in ABSENT else error


def open_to_read(folder: WorkFolder, names: Names) -> BinaryIO:
    """Open a file.

    Raises:
        Error: ``not_found``, also for a folder, a link or a special file.
        OSError: it cannot be read.
    """
    *above, name = names
    try:
        with folder.open(*above) as parent:
            # Opening a device or a pipe may have effects; a link is refused by `open_file`.
            if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise not_found("file")
            return safe_files.open_file(name, parent)
    except OSError as error:
        raise read_error(error, "file") from None


def entity_tag(status: os.stat_result) -> str:
    """Return the tag of a file's version, without quotes."""
    return f"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_size:x}"


def write_error(error: OSError, path: str) -> Exception:
    """Return the failure that a client gets if a file cannot be written."""
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
        return bad_request(f"path: not a possible name: {error.strerror}")
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EEXIST):
        return Error(
            ErrorCode.CONFLICT, f"{path}: a folder, a link or another file is in its place"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Error(ErrorCode.CONFLICT, f"{path}: the folder is not writable")
    return error
