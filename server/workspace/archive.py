"""Archives a session's folder as a zip, which is produced while it is sent."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import stat
import time
import zipfile
from collections.abc import Generator, Iterator
from typing import IO, Any, cast

from .. import safe_files
from ..errors import Error, ErrorCode, payload_too_large
from .folders import MAX_LEVELS, Names, WorkFolder, read_error

ZIP_PIECE_BYTES = 256 << 10
LARGE_FILE_BYTES = 1 << 30
"""A file from this size on needs the zip format for large files."""
_OLDEST, _NEWEST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
"""The times that the zip format can express."""


class _ZipOutput(io.RawIOBase):
    """The part of the zip that was not taken yet. It is not seekable."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.pieces.append(bytes(data))
        self.size += len(self.pieces[-1])
        return len(self.pieces[-1])

    def take(self) -> bytes:
        data = b"".join(self.pieces)
        self.pieces, self.size = [], 0
        return data


class ArchiveWalk:
    """The files and folders of an archive, read through descriptors. Links are left out."""

    def __init__(self, folder: WorkFolder, names: Names, max_files: int, max_bytes: int) -> None:
        self._folder = folder
        self._names = names
        self._max_files = max_files
        self._max_bytes = max_bytes

    def check_size(self) -> None:
        """Check the number and the sizes of the files.

        Raises:
            Error: ``payload_too_large``, or ``not_found`` if the folder does not exist.
            OSError: it cannot be read.
        """
        size = 0
        for count, (_, status, _) in enumerate(self.entries(), 1):
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            if count > self._max_files:
                raise payload_too_large(f"an archive has at most {self._max_files} files")
            if size > self._max_bytes:
                raise Error(
                    ErrorCode.PAYLOAD_TOO_LARGE,
                    f"an archive has at most {self._max_bytes} bytes of files: fetch single files,"
                    " or a folder with `path`",
                )

    def entries(self) -> Iterator[tuple[str, os.stat_result, int]]:
        """Yield the path in the archive, the status and the parent's descriptor of each entry."""
        try:
            with self._folder.open(*self._names) as descriptor:
                yield from _walk(descriptor, "", MAX_LEVELS, self._max_files)
        except OSError as error:
            raise read_error(error, "folder") from None

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the zip. A file that becomes longer meanwhile is cut at the size that it had."""
        output = _ZipOutput()
        with zipfile.ZipFile(cast(IO[bytes], output), "w", zipfile.ZIP_DEFLATED) as archive:
            for path, status, parent in self.entries():
                info = zipfile.ZipInfo(
                    path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                    min(max(time.localtime(status.st_mtime)[:6], _OLDEST), _NEWEST),
                )
                info.external_attr = (status.st_mode & 0xFFFF) << 16
                if stat.S_ISDIR(status.st_mode):
                    info.filename += "/"
                    info.external_attr |= 0x10
                    archive.writestr(info, b"")
                    continue
                info.compress_type = zipfile.ZIP_DEFLATED
                name = path.rpartition("/")[2]
                for piece in _file_pieces(name, parent, status.st_size, archive, info):
                    if piece and output.size >= ZIP_PIECE_BYTES:
                        yield output.take()
            if output.size >= ZIP_PIECE_BYTES:
                yield output.take()
        yield output.take()


def _walk(
    descriptor: int, path: str, depth: int, limit: int
) -> Iterator[tuple[str, os.stat_result, int]]:
    with os.scandir(descriptor) as scan:
        names = sorted(entry.name for entry in itertools.islice(scan, limit + 1))
    for name in names:
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            continue  # removed meanwhile
        if stat.S_ISREG(status.st_mode):
            yield path + name, status, descriptor
        elif stat.S_ISDIR(status.st_mode):
            yield path + name, status, descriptor
            if depth > 1:
                with contextlib.suppress(OSError), _child(name, descriptor) as child:
                    yield from _walk(child, f"{path}{name}/", depth - 1, limit)


@contextlib.contextmanager
def _child(name: str, parent: int) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _file_pieces(
    name: str, parent: int, size: int, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> Iterator[bool]:
    """Write one file to the archive piece by piece; a file that cannot be opened is left out."""
    try:
        file = safe_files.open_file(name, parent)
    except OSError:
        return
    with file, archive.open(info, "w", force_zip64=size >= LARGE_FILE_BYTES) as target:
        while size > 0 and (data := file.read(min(ZIP_PIECE_BYTES, size))):
            size -= len(data)
            target.write(data)
            yield True
