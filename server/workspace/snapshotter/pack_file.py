"""Writes a pack: many objects in one file."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

PACKED_KINDS = {"tree": 2, "blob": 3}
PACK_NAME = "tmp_pack_{}"


class PackWriter:
    """A pack that is being written.

    Args:
        objects: the folder of the repository's objects.
        make_index: writes the index of the pack at a path to another path, as git does.
    """

    def __init__(self, objects: Path, make_index: Callable[[Path, Path], None]) -> None:
        self._folder = objects / "pack"
        self._make_index = make_index
        self._folder.mkdir(0o700, exist_ok=True)
        self._path = self._folder / PACK_NAME.format(os.getpid())
        self._file = self._path.open("w+b")
        self._file.write(_header(0))
        self._count = 0

    def add(self, kind: str, data: bytes) -> int:
        """Append an object. Return the bytes that it takes."""
        packed = zlib.compress(data, 1)
        number = PACKED_KINDS[kind] << 4 | len(data) & 15
        rest = len(data) >> 4
        head = bytearray()
        while rest:
            head.append(number | 0x80)
            number, rest = rest & 0x7F, rest >> 7
        head.append(number)
        self._file.write(head)
        self._file.write(packed)
        self._count += 1
        return len(head) + len(packed)

    def finish(self) -> None:
        """Complete the pack, so that git finds its objects."""
        file = self._file
        file.seek(0)
        file.write(_header(self._count))
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False))
        file.write(digest.digest())
        file.close()
        index = self._path.with_suffix(".idx")
        self._make_index(self._path, index)
        for path, suffix in ((self._path, "pack"), (index, "idx")):  # git looks for the second
            path.rename(self._folder / f"pack-{digest.hexdigest()}.{suffix}")


def _header(count: int) -> bytes:
    return b"PACK" + (2).to_bytes(4, "big") + count.to_bytes(4, "big")
