"""Git objects: written by this program itself, as loose objects, without running git."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path

from .pack_file import PackWriter

EMPTY_TREE = bytes.fromhex("4b825dc642cb6eb9a060e54bf8d69288fbee4904")
FILE, EXECUTABLE, LINK, UNSAVED, FOLDER = 0o100644, 0o100755, 0o120000, 0o160000, 0o040000
"""The modes of tree entries. ``UNSAVED`` is that of a submodule: git needs no object for it."""

LOOSE_AT_ONCE = 200
"""Objects of one scan that become files of their own. Further ones become one pack."""


class OverBudgetError(Exception):
    """The repository has no room for an object."""


def create_repository(repository: Path) -> None:
    """Make an empty bare repository, unless it exists."""
    if (repository / "HEAD").exists():
        return
    for folder in (repository, repository / "objects", repository / "refs", repository / "info"):
        folder.mkdir(0o700, exist_ok=True)
    config = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"
    (repository / "config").write_text(config, "utf-8")
    (repository / "HEAD").write_text("ref: refs/heads/none\n", "utf-8")  # last: it is complete


class ObjectStore:
    """The objects of a repository. The first few are files of their own, more become one pack.

    Args:
        make_index: see :class:`PackWriter`.
        known: objects that exist.
        stored_bytes: the size of all objects.
        max_bytes: the limit of that size.

    Attributes:
        added: the number of objects that were written as files.
    """

    def __init__(
        self,
        repository: Path,
        known: set[bytes],
        stored_bytes: int,
        max_bytes: int,
        make_index: Callable[[Path, Path], None],
    ) -> None:
        self.stored_bytes = stored_bytes
        self.added = 0
        self._repository = repository
        self._objects = repository / "objects"
        self._known = known
        self._max_bytes = max_bytes
        self._make_index = make_index
        self._pack: PackWriter | None = None

    @property
    def free_bytes(self) -> int:
        return self._max_bytes - self.stored_bytes

    def add(self, kind: str, data: bytes, *, is_limited: bool = True) -> bytes:
        """Write an object unless it exists. Return its id.

        Raises:
            OverBudgetError: the limit is reached.
        """
        header = b"%b %d\0" % (kind.encode(), len(data))
        digest = hashlib.sha1(header, usedforsecurity=False)
        digest.update(data)
        oid = digest.digest()
        if oid in self._known:
            return oid
        name = oid.hex()
        folder = self._objects / name[:2]
        path = folder / name[2:]
        if self._pack is not None:
            if is_limited and len(data) > self.free_bytes:
                raise OverBudgetError
            self.stored_bytes += self._pack.add(kind, data)
        elif not path.exists():
            packer = zlib.compressobj(1)
            packed = packer.compress(header) + packer.compress(data) + packer.flush()
            if is_limited and len(packed) > self.free_bytes:
                raise OverBudgetError
            self._write(folder, path, packed)
            self.stored_bytes += len(packed)
            self.added += 1
            if self.added == LOOSE_AT_ONCE:
                self._pack = PackWriter(self._objects, self._make_index)
        self._known.add(oid)
        return oid

    def finish(self) -> None:
        """Make the objects visible to git."""
        if self._pack is not None:
            self._pack.finish()

    def _write(self, folder: Path, path: Path, data: bytes) -> None:
        if not self.added:
            create_repository(self._repository)
        temporary = self._objects / f"tmp_obj_{os.getpid()}"
        temporary.write_bytes(data)
        try:
            temporary.rename(path)
        except FileNotFoundError:
            folder.mkdir(0o700, exist_ok=True)
            temporary.rename(path)


def add_trees(
    store: ObjectStore, files: Iterable[tuple[str, int, bytes]], changed: AbstractSet[str]
) -> dict[str, bytes]:
    """Write the trees of the folders that have changed. Return their ids by path.

    Args:
        files: the path, mode and id of each file and folder.
        changed: the paths of the changed folders, with all their parents; that of the
            top folder is empty.
    """
    content: dict[str, list[tuple[bytes, int, bytes]]] = {path: [] for path in changed}
    for path, mode, oid in files:
        parent, _, name = path.rpartition("/")
        if parent in changed and path not in changed:
            content[parent].append((os.fsencode(name), mode, oid))
    trees = {}
    for path in sorted(content, key=_depth, reverse=True):
        parts = sorted(content[path], key=_tree_order)
        data = b"".join([b"%o %b\0%b" % (mode, name, oid) for name, mode, oid in parts])
        trees[path] = store.add("tree", data, is_limited=False)
        if path:
            parent, _, name = path.rpartition("/")
            content[parent].append((os.fsencode(name), FOLDER, trees[path]))
    return trees


def _depth(path: str) -> int:
    return path.count("/") + 1 if path else 0


def _tree_order(entry: tuple[bytes, int, bytes]) -> bytes:
    name, mode, _ = entry
    return name + b"/" if mode == FOLDER else name


def size_of_objects(repository: Path) -> int:
    """Return the size of all objects, in bytes."""
    total = 0
    for folder, _, names in os.walk(repository / "objects"):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118
    return total
