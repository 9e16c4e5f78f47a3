"""The index: what the last scan of a folder found, so that the next one reads only what changed."""

from __future__ import annotations

import array
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from .objects import EMPTY_TREE

INDEX_NAME = "scan"
MAGIC = b"clawdforge scan 1\n"
CHECK_BYTES = 4
RACY = -1
"""The change time of a file that may have changed after it was read, within the clock's step."""


class Seen(NamedTuple):
    """A file, link or folder as the scan found it. Times are nanoseconds."""

    mode: int
    mtime: int
    ctime: int
    size: int
    inode: int
    oid: bytes


class Index:
    """The entries of one folder, by path; a folder comes before its content.

    Attributes:
        tree: the tree that was made of them.
        stored_bytes: the size of all objects of the repository.
        loose: the number of objects that are not packed.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Seen] = {}
        self.tree = EMPTY_TREE
        self.stored_bytes = 0
        self.loose = 0


def load_index(repository: Path) -> Index | None:
    """Read the index; None if it does not exist or is damaged."""
    try:
        data = (repository / INDEX_NAME).read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + CHECK_BYTES
    if not data.startswith(MAGIC) or data[len(MAGIC) : start] != _check_sum(data[start:]):
        return None
    try:
        plain = memoryview(data)[start:]
        length = int.from_bytes(plain[:4], "big")
        header = json.loads(bytes(plain[4 : 4 + length]))
        return _index_from(header, plain[4 + length :])
    except (ValueError, KeyError, TypeError):
        return None


def _index_from(header: dict[str, int | str], plain: memoryview) -> Index:
    index = Index()
    index.tree = bytes.fromhex(str(header["tree"]))
    index.stored_bytes, index.loose = int(header["stored_bytes"]), int(header["loose"])
    count, paths_size = int(header["count"]), int(header["paths_size"])
    paths = os.fsdecode(bytes(plain[:paths_size])).split("\0") if count else []
    numbers = array.array("q")
    numbers.frombytes(plain[paths_size : paths_size + count * 40])
    oids = bytes(plain[paths_size + count * 40 :])
    if len(paths) != count or len(oids) != count * 20:
        raise ValueError("the index is damaged")
    columns = [numbers[start::5] for start in range(5)]
    parts = [oids[start : start + 20] for start in range(0, len(oids), 20)]
    seen = map(Seen, *columns, parts)
    index.entries = dict(zip(paths, seen, strict=True))
    return index


def save_index(repository: Path, index: Index) -> None:
    """Write the index; a kill leaves the old one or the new one."""
    entries = index.entries
    paths = os.fsencode("\0".join(entries))
    numbers = array.array("q")
    for seen in entries.values():
        numbers.extend(seen[:5])
    header = json.dumps(
        {
            "tree": index.tree.hex(),
            "stored_bytes": index.stored_bytes,
            "loose": index.loose,
            "count": len(entries),
            "paths_size": len(paths),
        }
    ).encode()
    oids = b"".join([seen.oid for seen in entries.values()])
    body = b"".join([len(header).to_bytes(4, "big"), header, paths, numbers.tobytes(), oids])
    replace(repository / INDEX_NAME, MAGIC + _check_sum(body) + body)


def _check_sum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(CHECK_BYTES, "big")


def replace(path: Path, data: bytes) -> None:
    """Write a file by rename."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.rename(path)
