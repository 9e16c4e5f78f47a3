"""Scans a folder through descriptors, and stores what changed since the last scan."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import index_file
from .ignore_rules import MAX_FILE_BYTES, IgnoreRules
from .index_file import RACY, Index, Seen
from .objects import (
    EXECUTABLE,
    FILE,
    FOLDER,
    LINK,
    UNSAVED,
    ObjectStore,
    OverBudgetError,
    add_trees,
    size_of_objects,
)

IGNORE_FILE = ".gitignore"
TIME_STEP_NS = 30_000_000
"""More than the resolution of a file's times."""
SCANNED_LEVELS = 64
LEFT_BEHIND = re.compile(r"\.clawdforge-[0-9a-f]{16}\.tmp")
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


MAX_IGNORED = 100_000
"""Ignored files in one folder, beyond the limit of files."""
NEW_FOLDER = Seen(FOLDER, 0, 0, 0, 0, bytes(20))
"""A folder whose tree is not made yet."""


class TooManyFilesError(Exception):
    """The folder has more files than the limit."""


class Limits(NamedTuple):
    """The limits of the snapshots of one folder."""

    files: int
    file_bytes: int
    repository_bytes: int


def open_below(top: str, names: list[str], *, make: bool = False) -> int:
    """Return the descriptor of a folder below *top*, reached through no link.

    Raises:
        OSError: it does not exist.
    """
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptor)
            below = os.open(name, OPEN_FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


@contextlib.contextmanager
def opened(name: str, flags: int, parent: int) -> Iterator[int]:
    """The descriptor of a file in the folder with the descriptor *parent*."""
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Scan:
    """One scan of a folder.

    Attributes:
        index: the result.
        skipped: the number of ignored files and folders, special files, and so on.
        temporaries: the files that a killed restoration may have left.
        was_over_budget: the repository had no room for a file.
    """

    def __init__(
        self,
        folder: int,
        repository: Path,
        limits: Limits,
        make_index: Callable[[Path, Path], None],
    ) -> None:
        self._folder = folder
        self._repository = repository
        self._limits = limits
        old = index_file.load_index(repository)
        self._old = old.entries if old is not None else {}
        self._tree = old.tree if old is not None else None
        stored = old.stored_bytes if old is not None else size_of_objects(repository)
        known = {seen.oid for seen in self._old.values() if seen.mode != UNSAVED}
        self._store = ObjectStore(repository, known, stored, limits.repository_bytes, make_index)
        self._new: dict[str, Seen] = {}
        self._changed: set[str] = set()
        self._is_new_index = False
        self._loose = old.loose if old is not None else 0
        self.skipped = {"ignored": 0, "special": 0, "large": 0, "unreadable": 0}
        self.was_over_budget = False
        self.temporaries: list[str] = []
        self.index = Index()

    def run(self) -> Index:
        """Scan the folder and store its content.

        Raises:
            TooManyFilesError: the limit is reached.
            OSError: the repository cannot be written.
        """
        self._scan_folder(self._folder, "", IgnoreRules(), SCANNED_LEVELS, is_ignored=False)
        index = self.index
        index.entries = self._new
        for path in self._old.keys() - self._new.keys():
            self._mark_changed(path)
        if self._tree is not None and not self._changed:
            index.tree = self._tree
        elif self._new:
            files = ((path, seen.mode, seen.oid) for path, seen in self._new.items())
            changed = {path for path in self._changed if self._is_folder(path)} | {""}
            trees = add_trees(self._store, files, changed)
            index.tree = trees.pop("")
            for path, oid in trees.items():
                self._new[path] = Seen(FOLDER, 0, 0, 0, 0, oid)
        self._store.finish()
        index.stored_bytes = self._store.stored_bytes
        index.loose = self._loose + self._store.added
        if (self._is_new_index or self._changed) and self.has_repository:
            index_file.save_index(self._repository, index)
        return index

    @property
    def has_repository(self) -> bool:
        """Whether there is anything to store, or has been."""
        return bool(self._new or self._old) or (self._repository / index_file.INDEX_NAME).exists()

    def _scan_folder(
        self, folder: int, prefix: str, rules: IgnoreRules, levels: int, *, is_ignored: bool
    ) -> None:
        with os.scandir(folder) as children:
            some = itertools.islice(children, self._limits.files + MAX_IGNORED + 1)
            entries = sorted(some, key=lambda entry: entry.name)
        if len(entries) > self._limits.files + MAX_IGNORED:
            raise TooManyFilesError
        if any(entry.name == IGNORE_FILE for entry in entries):
            rules = self._with_rules(folder, prefix, rules)
        for entry in entries:
            name = entry.name
            if name == ".git":
                continue
            path = prefix + name
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # removed meanwhile
            kind = stat.S_IFMT(status.st_mode)
            is_folder = kind == stat.S_IFDIR
            old = self._old.get(path)
            ignored = is_ignored
            if old is None or is_folder:
                ignored = is_ignored or rules.ignores(path, name, is_folder=is_folder)
                if ignored and old is None:
                    if LEFT_BEHIND.fullmatch(name):
                        self.temporaries.append(path)
                    self.skipped["ignored"] += 1
                    continue
            if len(self._new) >= self._limits.files:
                raise TooManyFilesError
            if is_folder:
                self._enter(folder, path, rules, levels, is_ignored=ignored)
            elif kind in (stat.S_IFREG, stat.S_IFLNK):
                self._new[path] = seen = self._look_at(folder, path, old, status)
                if seen.mode == UNSAVED:
                    self.skipped["large" if self._is_too_large(seen) else "unreadable"] += 1
            else:
                self.skipped["special"] += 1

    def _enter(
        self, parent: int, path: str, rules: IgnoreRules, levels: int, *, is_ignored: bool
    ) -> None:
        name = path.rpartition("/")[2]
        try:
            folder = os.open(name, OPEN_FOLDER, dir_fd=parent) if levels > 1 else None
        except OSError:
            folder = None
        if folder is None:
            self.skipped["unreadable"] += 1
            return
        try:
            old = self._old.get(path)
            if old is None or old.mode != FOLDER:
                old = NEW_FOLDER
                self._mark_changed(f"{path}/")
            self._new[path] = old
            ignored = self.skipped["ignored"]
            self._scan_folder(folder, f"{path}/", rules, levels - 1, is_ignored=is_ignored)
            if self.skipped["ignored"] > ignored and next(reversed(self._new)) == path:
                del self._new[path]  # nothing in it is saved, so the folder is ignored as well
        finally:
            os.close(folder)

    def _look_at(self, parent: int, path: str, old: Seen | None, status: os.stat_result) -> Seen:
        if old is not None and self._is_unchanged(old, status):
            return old
        seen = self._read(parent, path.rpartition("/")[2], status)
        self._is_new_index |= seen != old
        if old is None or (old.mode, old.oid) != (seen.mode, seen.oid):
            self._mark_changed(path)
        return seen

    def _is_folder(self, path: str) -> bool:
        seen = self._new.get(path)
        return seen is not None and seen.mode == FOLDER

    def _mark_changed(self, path: str) -> None:
        """Note that the folders above *path* have changed."""
        while path:
            path = path.rpartition("/")[0]
            if path in self._changed:
                return
            self._changed.add(path)

    def _with_rules(self, folder: int, prefix: str, rules: IgnoreRules) -> IgnoreRules:
        with contextlib.suppress(OSError), opened(IGNORE_FILE, OPEN_FILE, folder) as descriptor:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                text = os.read(descriptor, MAX_FILE_BYTES).decode("utf-8", "surrogateescape")
                return rules.with_file(text, prefix)
        return rules

    def _is_unchanged(self, old: Seen, status: os.stat_result) -> bool:
        if old.mode == UNSAVED and not self._is_too_large(old):
            return False  # it may be readable now, or the repository may have room
        return (
            old.ctime == status.st_ctime_ns
            and old.mtime == status.st_mtime_ns
            and old.size == status.st_size
            and old.inode == status.st_ino
        )

    def _is_too_large(self, seen: Seen) -> bool:
        return seen.size > self._limits.file_bytes

    def _read(self, parent: int, name: str, status: os.stat_result) -> Seen:
        """Store a file or a link."""
        mode, data = UNSAVED, b""
        # A file that cannot be read, or is replaced by something else meanwhile, is not stored.
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISLNK(status.st_mode):
                mode, data = LINK, os.fsencode(os.readlink(name, dir_fd=parent))
            elif status.st_size <= self._limits.file_bytes:
                data, status = self._content(parent, name)
                mode = EXECUTABLE if status.st_mode & stat.S_IXUSR else FILE
        if mode != UNSAVED:
            try:
                return _make_seen(mode, status, self._store.add("blob", data))
            except OverBudgetError:
                self.was_over_budget = True
        identity = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        oid = hashlib.sha1(identity.encode(), usedforsecurity=False).digest()
        return _make_seen(UNSAVED, status, oid)

    def _content(self, parent: int, name: str) -> tuple[bytes, os.stat_result]:
        """Return a file's content and its status from before it was read.

        Raises:
            ValueError: it is not a file, or has become too large.
        """
        with opened(name, OPEN_FILE, parent) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(name)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(self._limits.file_bytes + 1)
        if len(data) > self._limits.file_bytes:
            raise ValueError(name)
        return data, status


def _make_seen(mode: int, status: os.stat_result, oid: bytes) -> Seen:
    is_racy = time.time_ns() - status.st_ctime_ns < TIME_STEP_NS
    ctime = RACY if is_racy else status.st_ctime_ns
    return Seen(mode, status.st_mtime_ns, ctime, status.st_size, status.st_ino, oid)


def skipped_by(scan: Scan) -> dict[str, Any]:
    """Return the counts of what a snapshot leaves out; those that are 0 are absent."""
    return {kind: count for kind, count in scan.skipped.items() if count}
