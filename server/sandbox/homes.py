"""The folders of a session's sandbox: its home, its temporary files and its uploads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import safe_files
from ..data_dir import DataDir

FICLONE = 0x40049409
"""Share the blocks of a file with a copy, which some file systems can."""
CACHES = (".cache", ".npm")
MAX_HOME_DEPTH = 64
COPY_BYTES = 1 << 24


class SandboxFolders:
    """The folders of sandboxes, one set for each session, below the data folder.

    An agent may replace what is in its folders, but not the folders themselves.
    """

    def __init__(self, data_dir: DataDir) -> None:
        self._data_dir = data_dir

    def home(self, key: str) -> Path:
        return self._data_dir.homes / key

    def tmp(self, key: str) -> Path:
        return self._data_dir.tmp / key

    def files(self, key: str) -> Path:
        return self._data_dir.files / key

    def create(self, key: str) -> bool:
        """Create the folders that are missing. Blocking. Returns whether the home is new.

        Raises:
            OSError: a folder cannot be created, or is a link.
        """
        is_new = not self.home(key).exists()
        for folder in (self.home(key), self.tmp(key), self.files(key)):
            with safe_files.folder(*self._data_dir.split(folder), make=True):
                pass
        return is_new

    def remove(self, key: str) -> None:
        """Remove the folders. Blocking.

        Raises:
            OSError: of the first folder that cannot be removed. The others are removed.
        """
        failures = []
        for folder in (self.home(key), self.tmp(key), self.files(key)):
            try:
                safe_files.remove(*self._data_dir.split(folder))
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def copy_home(self, source: str, target: str) -> None:
        """Copy the home of a session to another session of the same app. Blocking.

        Links are copied as links. Caches are left out.

        Raises:
            OSError: a file cannot be copied.
        """
        with (
            safe_files.folder(*self._data_dir.split(self.home(source))) as original,
            safe_files.folder(*self._data_dir.split(self.home(target)), make=True) as copy,
        ):
            _TreeCopy(copy).run(original)

    def add_files(self, key: str, paths: Sequence[Path]) -> list[Path]:
        """Copy uploaded files into the session's folder of files. Blocking.

        The agent can read the copies and not change them. A link would not do: a program that
        escapes a later, weaker sandbox would write into the upload itself.

        Args:
            paths: ``<folder of one upload>/<name>``.

        Returns:
            The paths of the copies.

        Raises:
            OSError: a file is missing, or cannot be copied.
        """
        return [self._add_file(key, path) for path in paths]

    def _add_file(self, key: str, path: Path) -> Path:
        folder = self.files(key) / path.parent.name[:16]
        copy = folder / path.name
        with safe_files.folder(*self._data_dir.split(folder), make=True) as target:
            if path.name in os.listdir(target):  # noqa: PTH208
                return copy
            with (
                safe_files.folder(*self._data_dir.split(path.parent)) as source,
                safe_files.open_file(path.name, source) as original,
            ):
                part = f"{path.name}.part"[-255:]
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=target)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with safe_files.open_file(part, target, flags) as file:
                    _copy(original.fileno(), file.fileno())
                    os.fchmod(file.fileno(), 0o400)
                os.replace(part, path.name, src_dir_fd=target, dst_dir_fd=target)
        return copy


class _TreeCopy:
    """A copy of a folder, of which an agent may have made a trap.

    A file with several names is copied once, and holes of files stay holes: the copy of neither
    occupies more space than the original.

    Args:
        target: the descriptor of the folder that becomes the copy.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._copied: dict[tuple[int, int], tuple[str, ...]] = {}

    def run(self, source: int) -> None:
        self._copy(source, self._target, ())

    def _copy(self, source: int, target: int, names: tuple[str, ...]) -> None:
        for name in os.listdir(source):
            if name in CACHES or len(names) > MAX_HOME_DEPTH:
                continue
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                elif stat.S_ISDIR(mode):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=target)
                    with _subfolder(name, source) as below, _subfolder(name, target) as copy:
                        self._copy(below, copy, (*names, name))
                elif stat.S_ISREG(mode):
                    self._copy_file(source, target, name, names)

    def _copy_file(self, source: int, target: int, name: str, names: tuple[str, ...]) -> None:
        with safe_files.open_file(name, source) as original:
            status = os.fstat(original.fileno())
            identity = status.st_dev, status.st_ino
            if (first := self._copied.get(identity)) is not None:
                with _folder_at(self._target, first[:-1]) as folder:
                    os.link(first[-1], name, src_dir_fd=folder, dst_dir_fd=target)
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with safe_files.open_file(name, target, flags) as file:
                _copy(original.fileno(), file.fileno())
                os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode) & 0o700)
            if status.st_nlink > 1:
                self._copied[identity] = (*names, name)


@contextlib.contextmanager
def _subfolder(name: str, parent: int) -> Iterator[int]:
    descriptor = os.open(
        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _folder_at(parent: int, names: Sequence[str]) -> Iterator[int]:
    """The descriptor of a folder some levels below *parent*."""
    with contextlib.ExitStack() as stack:
        for name in names:
            parent = stack.enter_context(_subfolder(name, parent))
        yield parent


def _copy(source: int, target: int) -> None:
    """Copy the content of a file, without its holes."""
    try:
        fcntl.ioctl(target, FICLONE, source)
        return
    except OSError:
        pass
    size = os.fstat(source).st_size
    start = _seek(source, 0, os.SEEK_DATA, size)
    while start < size:
        end = _seek(source, start, os.SEEK_HOLE, size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        while start < end and (data := os.read(source, min(COPY_BYTES, end - start))):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
            start += len(data)
        start = _seek(source, end, os.SEEK_DATA, size)
    os.ftruncate(target, min(size, os.fstat(source).st_size))


def _seek(file: int, start: int, whence: int, size: int) -> int:
    """The position of the next data or the next hole of a file; *size* after its end."""
    try:
        return os.lseek(file, start, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size
