"""The SQL queries about forks: where a log may be forked, and whose rows it begins with."""

from __future__ import annotations

import msgspec

from .database import Database
from .schema import LogRow
from .segments import without_tail


class TurnSpan(msgspec.Struct, frozen=True):
    """The positions of a turn in the log; None for a turn that has not started, or not ended."""

    turn_index: int
    first_seq: int | None
    last_seq: int | None


class ForkQueries:
    """A part of :class:`Queries`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def turn_span(self, session: int, turn_index: int) -> TurnSpan | None:
        rows = await self._database.fetch(
            "SELECT turn_index, first_seq, last_seq FROM turns"
            " WHERE session = ? AND turn_index = ?",
            session,
            turn_index,
        )
        return TurnSpan(*rows[0]) if rows else None

    async def last_ended_turn(self, session: int) -> TurnSpan | None:
        """The turn that ended last, before every turn that has not ended."""
        rows = await self._database.fetch(
            "SELECT turn_index, first_seq, last_seq FROM turns WHERE session = ?1 AND last_seq <"
            " coalesce((SELECT min(first_seq) FROM turns"
            "  WHERE session = ?1 AND last_seq IS NULL), 4611686018427387904)"
            " ORDER BY last_seq DESC LIMIT 1",
            session,
        )
        return TurnSpan(*rows[0]) if rows else None

    async def end_of_turns(self, session: int, position: int) -> int | None:
        """The end of the turns that have begun up to a position; None if one has not ended."""
        rows = await self._database.fetch(
            "SELECT max(last_seq), sum(CASE WHEN last_seq IS NULL THEN 1 ELSE 0 END) FROM turns"
            " WHERE session = ? AND first_seq <= ?",
            session,
            position,
        )
        end, unended = rows[0]
        return None if unended else max(position, end or 0)

    async def count_turns(self, session: int, position: int) -> int:
        """The number of turns that have begun up to a position."""
        rows = await self._database.fetch(
            "SELECT count(*) FROM turns WHERE session = ? AND first_seq <= ?", session, position
        )
        return int(rows[0][0])

    async def newest_turns(self, session: int, limit: int) -> list[TurnSpan]:
        """The newest turns that have ended, the newest first."""
        rows = await self._database.fetch(
            "SELECT turn_index, first_seq, last_seq FROM turns"
            " WHERE session = ? AND last_seq IS NOT NULL ORDER BY turn_index DESC LIMIT ?",
            session,
            limit,
        )
        return [TurnSpan(*row) for row in rows]

    async def log_owners(self, session: int) -> list[int]:
        """The sessions whose rows are part of a session's log."""
        rows = await self._database.fetch(
            "SELECT DISTINCT owner FROM log_segments WHERE session = ?", session
        )
        return [row[0] for row in rows]

    async def read_log(
        self, session: int, after: int, size: int, *, largest: int | None = None
    ) -> list[LogRow]:
        """A page of a session's log: the rows with the entries after a position, in order.

        Args:
            size: bytes after which the page ends. It has at least one row if there is one.
            largest: bytes above which the body of a row with one entry is not read, and is empty.
        """
        rows = await self._read_rows(session, after, size, largest)
        if rows and rows[0].first_seq <= after + 1:
            return rows
        segments = await self._database.fetch(
            "SELECT owner, last_seq FROM log_segments WHERE session = ? AND last_seq > ?"
            " ORDER BY last_seq LIMIT 1",
            session,
            after,
        )
        if not segments:
            return rows
        [(owner, last_seq)] = segments
        shared = await self._read_rows(owner, after, size, largest)
        return [
            without_tail(LogRow(session, row.first_seq, row.last_seq, row.body), last_seq)
            for row in shared
            if row.first_seq <= last_seq
        ]

    async def _read_rows(
        self, session: int, after: int, size: int, largest: int | None
    ) -> list[LogRow]:
        body = "body"
        if largest is not None:
            is_large = f"first_seq = last_seq AND length(body) > {int(largest)}"
            body = f"CASE WHEN {is_large} THEN NULL ELSE body END"
        # The sizes come from a query of their own: to add them up, SQLite would copy the bodies of
        # all rows, which are 64 MB in a log that was written in bursts.
        rows = await self._database.fetch(
            f"SELECT session, first_seq, last_seq, {body} FROM log JOIN (SELECT last_seq,"
            "   sum(size) OVER (ORDER BY last_seq) - size AS before FROM ("
            "    SELECT last_seq, length(body) AS size FROM log"
            "    WHERE session = ?1 AND last_seq > ?2 ORDER BY last_seq LIMIT 1024) AS sizes"
            ") AS page USING (last_seq) WHERE session = ?1 AND before < ?3 ORDER BY last_seq",
            session,
            after,
            size,
        )
        return [LogRow(number, first, last, body or b"") for number, first, last, body in rows]
