"""The snapshots of a repository, in git's own file of refs. Each ref names a tree.

A record is written only if the folder differs from the record before it. So the state of the folder
at the start of a turn is in the last record before that.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import NamedTuple

from .index_file import replace
from .objects import EMPTY_TREE

REFS_NAME = "packed-refs"
REFS_HEADER = "# pack-refs with: peeled fully-peeled sorted \n"
REF_PREFIX = "refs/snapshots/"
PHASES = {"start": 0, "end": 1, "missed": 0, "undo": 2, "restored": 2}
"""The kinds of records, with the part of a turn in which they are made: before, after, later."""
MAX_RECORDS = 2000


class Record(NamedTuple):
    """One snapshot.

    Attributes:
        kind: ``start`` or ``end`` of a turn; ``undo``, a state that an undo has replaced;
            ``restored``, the state after an undo; ``missed``, a turn without a snapshot.
        turn_index: the turn, or the last one before an undo.
        at: unix milliseconds.
    """

    number: int
    kind: str
    turn_index: int
    at: int
    id: str
    tree: bytes

    @property
    def key(self) -> tuple[int, int]:
        """Orders the records; it never decreases."""
        return self.turn_index, PHASES[self.kind]


class Records:
    """The records of a repository, the oldest first."""

    def __init__(self, repository: Path) -> None:
        self._path = repository / REFS_NAME
        self.all: list[Record] = []
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except OSError:
            lines = []
        for line in lines:
            oid, _, ref = line.partition(" ")
            if ref.startswith(REF_PREFIX):
                number, kind, turn_index, at, name = ref.removeprefix(REF_PREFIX).split("/")
                self.all.append(
                    Record(int(number), kind, int(turn_index), int(at), name, bytes.fromhex(oid))
                )

    @property
    def last_tree(self) -> bytes:
        return self.all[-1].tree if self.all else EMPTY_TREE

    def add(self, kind: str, turn_index: int, tree: bytes) -> Record:
        """Append a record."""
        number = self.all[-1].number + 1 if self.all else 1
        record = Record(
            number, kind, turn_index, int(time.time() * 1000), secrets.token_hex(8), tree
        )
        self.all.append(record)
        if len(self.all) > MAX_RECORDS:
            self.drop(len(self.all) - MAX_RECORDS)
        self.save()
        return record

    def drop(self, count: int) -> None:
        """Drop the oldest records, but keep the first: the state before the first turn."""
        del self.all[1 : 1 + count]

    def save(self) -> None:
        lines = [
            f"{record.tree.hex()} {REF_PREFIX}{record.number:08}/{record.kind}"
            f"/{record.turn_index}/{record.at}/{record.id}\n"
            for record in self.all
        ]
        replace(self._path, (REFS_HEADER + "".join(lines)).encode())

    def before_turn(self, turn_index: int) -> bytes | None:
        """Return the tree at the start of a turn; None if it is unknown."""
        earlier = [record for record in self.all if record.key <= (turn_index, 0)]
        if earlier:
            last = earlier[-1]
            is_exact = last.key == (turn_index, 0) or last is not self.all[0] or not self._has_gap()
            return last.tree if is_exact and last.kind != "missed" else None
        return EMPTY_TREE if self._began_empty() else None

    @property
    def first_tree(self) -> bytes | None:
        """The tree at the start of the first turn; None if it is unknown."""
        if not self.all or self._began_empty():
            return EMPTY_TREE
        return None if self.all[0].kind == "missed" else self.all[0].tree

    def by_id(self, name: str) -> bytes | None:
        return next(
            (record.tree for record in self.all if record.id == name and record.kind != "missed"),
            None,
        )

    def _began_empty(self) -> bool:
        return not self.all or self.all[0].kind in ("end", "undo")

    def _has_gap(self) -> bool:
        """Whether records after the first were dropped."""
        return len(self.all) > 1 and self.all[1].number != self.all[0].number + 1
