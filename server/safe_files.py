"""Files and folders beneath one folder, reached through no link.

Agents run as the server's user: at any moment one may replace what is in the data folder by a
link, or by something that is no file. So nothing there is found by a path of several names: each
folder on the way is opened by the descriptor of the one above it. Only the path of the uppermost
folder, which is the operator's, may lead through links.
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
"""Without ``O_NONBLOCK``, a named pipe would be waited for."""


@contextlib.contextmanager
def folder(top: Path, *names: str, make: bool = False) -> Iterator[int]:
    """The descriptor of the folder that *names* lead to from *top*.

    Args:
        make: make the folders that are missing.

    Raises:
        OSError: one of them is missing, or is no folder.
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
    """Make a new folder, and those above it that are missing.

    Raises:
        OSError: something is there already, or the folder cannot be made.
    """
    *above, name = names
    with folder(top, *above, make=True) as parent:
        os.mkdir(name, 0o700, dir_fd=parent)


def open_file(name: str, parent: int, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a file in the folder with the descriptor *parent*; one that is made is our user's alone.

    Raises:
        OSError: it cannot be opened, or it is no file.
    """
    descriptor = os.open(name, flags | _FILE, 0o600, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "is not a file", name)
    access = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "rb+"}[flags & os.O_ACCMODE]
    return cast(BinaryIO, os.fdopen(descriptor, access))


def new_file(top: Path, *names: str) -> BinaryIO:
    """A new file, to write it, in a folder that exists.

    Raises:
        OSError: something is there already, or the file cannot be made.
    """
    *above, name = names
    with folder(top, *above) as parent:
        return open_file(name, parent, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def remove(top: Path, *names: str) -> None:
    """Remove what *names* lead to, a folder with all that is in it; nothing if it is missing.

    Raises:
        OSError: the first that cannot be removed; all that can be is.
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
    """Remove all that is in a folder, and make the folder if it is missing.

    Raises:
        OSError: the first that cannot be removed; all that can be is.
    """
    with folder(top, *names, make=True) as descriptor:
        _empty(descriptor, top.joinpath(*names))


def _open_folder(name: str, parent: int) -> int:
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)


def _is_folder(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


@contextlib.contextmanager
def _unlocked(name: str, parent: int) -> Iterator[int]:
    """A folder's descriptor, after all rights to it were given back: an agent may have taken them.

    They are needed to list it, and to move it.
    """
    with contextlib.suppress(OSError, NotImplementedError):  # another's, or the file system cannot
        os.chmod(name, stat.S_IRWXU, dir_fd=parent, follow_symlinks=False)
    descriptor = _open_folder(name, parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _empty(top: int, path: Path) -> None:
    """Remove all that is in the folder with the descriptor *top*.

    However deep its folders lie in each other: what is in a folder moves up before the folder is
    removed. So neither descriptors nor the stack run out.
    """
    failures: list[OSError] = []
    prefix = f".{secrets.token_hex(8)}"
    number = itertools.count()
    waiting = [(name, path / name) for name in os.listdir(top)]
    while waiting:
        name, was = waiting.pop()
        with _noting(failures, was):
            if not _is_folder(name, top):
                os.unlink(name, dir_fd=top)
                continue
            with _unlocked(name, top) as descriptor:
                for child in os.listdir(descriptor):  # noqa: PTH208
                    with _noting(failures, was / child):
                        if _is_folder(child, descriptor):
                            moved = f"{prefix}-{next(number)}"
                            _move(child, descriptor, moved, top)
                            waiting.append((moved, was / child))
                        else:
                            os.unlink(child, dir_fd=descriptor)
            os.rmdir(name, dir_fd=top)
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _noting(failures: list[OSError], path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # somebody else has removed it
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        failures.append(error)


def _move(name: str, parent: int, target: str, target_parent: int) -> None:
    """Move a folder; that takes the right to write in it."""
    with contextlib.suppress(OSError, NotImplementedError):
        os.chmod(name, stat.S_IRWXU, dir_fd=parent, follow_symlinks=False)
    os.rename(name, target, src_dir_fd=parent, dst_dir_fd=target_parent)
