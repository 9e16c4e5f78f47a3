"""Files and folders below one folder, without following links.

Agents run as the server's user. At any moment an agent may replace a file in the data folder by a
link or by a pipe. So the server never opens a path of several names there: it opens each folder
through the descriptor of its parent. Only the path of the top folder, which the operator chose, may
lead through links.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Without ``O_NONBLOCK`` opening a named pipe would block."""
MAX_NAMED = 4096
"""The length of the paths that errors name."""


@contextlib.contextmanager
def folder(top: Path, *names: str, make: bool = False) -> Iterator[int]:
    """The descriptor of a folder below *top*.

    Args:
        make: create the folders that are missing.

    Raises:
        OSError: one of them is missing, or is not a folder.
    """
    descriptor = os.open(top, _FOLDER)
    try:
        for name in names:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptor)
            below = _open_folder(name, descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def make_folder(top: Path, *names: str) -> None:
    """Create a folder, and its parents if they are missing.

    Raises:
        OSError: the name exists, or the folder cannot be created.
    """
    *above, name = names
    with folder(top, *above, make=True) as parent:
        os.mkdir(name, 0o700, dir_fd=parent)


def open_file(name: str, parent: int, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a file in the folder with the descriptor *parent*. A new file is private.

    Raises:
        OSError: it cannot be opened, or it is not a file.
    """
    descriptor = os.open(name, flags | _FILE, 0o600, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "is not a file", name)
    access = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "rb+"}[flags & os.O_ACCMODE]
    return cast(BinaryIO, os.fdopen(descriptor, access))


def new_file(top: Path, *names: str) -> BinaryIO:
    """Create a file for writing in an existing folder.

    Raises:
        OSError: the name exists, or the file cannot be created.
    """
    *above, name = names
    with folder(top, *above) as parent:
        return open_file(name, parent, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def remove(top: Path, *names: str) -> None:
    """Remove a file, or a folder with its content, if it exists.

    Raises:
        OSError: of the first file that cannot be removed. All others are removed.
    """
    *above, name = names
    with contextlib.suppress(FileNotFoundError), folder(top, *above) as parent:
        if not _is_folder(name, parent):
            os.unlink(name, dir_fd=parent)
            return
        with _unlocked(name, parent) as descriptor:
            _empty(descriptor, top.joinpath(*names))
        os.rmdir(name, dir_fd=parent)


def empty(top: Path, *names: str) -> None:
    """Remove the content of a folder, or create the folder if it is missing.

    Raises:
        OSError: of the first file that cannot be removed. All others are removed.
    """
    with folder(top, *names, make=True) as descriptor:
        _empty(descriptor, top.joinpath(*names))


def _open_folder(name: str, parent: int) -> int:
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)


def _is_folder(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


@contextlib.contextmanager
def _unlocked(name: str, parent: int) -> Iterator[int]:
    """A folder's descriptor. Its permissions are restored first, because an agent may remove them.

    They are needed to list and to move the folder.
    """
    # The folder may be another user's, or the file system may not support it.
    with contextlib.suppress(OSError, NotImplementedError):
        os.chmod(name, stat.S_IRWXU, dir_fd=parent, follow_symlinks=False)
    descriptor = _open_folder(name, parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _empty(top: int, path: Path) -> None:
    """Remove the content of the folder with the descriptor *top*.

    The content of a folder is moved up before the folder is removed, so deeply nested folders
    exhaust neither descriptors nor the stack.
    """
    failure: list[OSError] = []
    prefix = f".{secrets.token_hex(8)}"
    number = itertools.count()
    waiting = [(name, f"{path}/{name}") for name in os.listdir(top)]
    while waiting:
        name, original = waiting.pop()
        with _keeping_first(failure, original):
            if not _is_folder(name, top):
                os.unlink(name, dir_fd=top)
                continue
            with _unlocked(name, top) as descriptor:
                for child in os.listdir(descriptor):  # noqa: PTH208
                    # Not the whole path: the time would grow with the square of the depth.
                    below = f"{original}/{child}" if len(original) < MAX_NAMED else original
                    with _keeping_first(failure, below):
                        if _is_folder(child, descriptor):
                            moved = f"{prefix}-{next(number)}"
                            _move(child, descriptor, moved, top)
                            waiting.append((moved, below))
                        else:
                            os.unlink(child, dir_fd=descriptor)
            os.rmdir(name, dir_fd=top)
    if failure:
        raise failure[0]


@contextlib.contextmanager
def _keeping_first(failure: list[OSError], path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # another process has removed it
    except OSError as error:
        if not failure:
            error.filename, error.filename2 = path, None
            failure.append(error)


def _move(name: str, parent: int, target: str, target_parent: int) -> None:
    """Move a folder, which requires write permission for it."""
    with contextlib.suppress(OSError, NotImplementedError):
        os.chmod(name, stat.S_IRWXU, dir_fd=parent, follow_symlinks=False)
    os.rename(name, target, src_dir_fd=parent, dst_dir_fd=target_parent)
