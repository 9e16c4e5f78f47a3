"""The reads with which the full-text index finds new and deleted entries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from .database import Database
from .drivers.base import Engine
from .schema import SessionRow, columns

ROWS = 10_000
"""Rows of the log that are read at once."""
_COMPLETE = "CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)"
_LAST_ROW: Mapping[Engine, str] = {
    "sqlite": "SELECT coalesce(max(n), 0) FROM log",
    "postgresql": f"SELECT least(coalesce(max(n), 0), {_COMPLETE} - 1) FROM log",
}
_GROWTH: Mapping[Engine, str] = {
    "sqlite": "SELECT n, session FROM log WHERE n > ? ORDER BY n LIMIT ?",
    # All rows of a transaction have its number, and only those below it are all committed.
    "postgresql": f"SELECT n, session FROM log WHERE n > ? AND n < {_COMPLETE}"
    " ORDER BY n FETCH FIRST (?) ROWS WITH TIES",
}


NEWEST: Mapping[Engine, str] = {
    engine: f"({last_row}), (SELECT coalesce(max(n), 0) FROM sessions)"
    for engine, last_row in _LAST_ROW.items()
}
"""The columns with the number of the last row of the log, and that of the newest session."""


class GrowthQueries:
    """The reads of the database that the full-text index needs. *session* is a number.

    Every method raises :class:`DatabaseError` if the database cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def session(self, session: int) -> SessionRow | None:
        rows = await self._database.fetch(
            f"SELECT {columns(SessionRow)} FROM sessions WHERE n = ?", session
        )
        return SessionRow(*rows[0]) if rows else None

    async def session_numbers(self, *, after: int) -> list[int]:
        """The numbers of the sessions that were created after one."""
        rows = await self._database.fetch("SELECT n FROM sessions WHERE n > ? ORDER BY n", after)
        return [row[0] for row in rows]

    async def session_ids(self, sessions: Iterable[int]) -> dict[int, str]:
        """The ids of those sessions that exist."""
        rows = await self._database.fetch("SELECT n, id FROM sessions ORDER BY n")
        wanted = set(sessions)
        return {row[0]: row[1] for row in rows if row[0] in wanted}

    async def metas(self, app_name: str, session_ids: Collection[str]) -> dict[str, str]:
        """The JSON of ``meta`` of those sessions of an app that exist, by id."""
        if not session_ids:
            return {}
        marks = ", ".join("?" * len(session_ids))
        rows = await self._database.fetch(
            f"SELECT id, meta FROM sessions WHERE app_name = ? AND id IN ({marks})",
            app_name,
            *session_ids,
        )
        return dict(rows)

    async def last_log_row(self) -> int:
        rows = await self._database.fetch(_LAST_ROW[self._database.engine])
        return int(rows[0][0])

    async def newest(self) -> tuple[int, int]:
        """The number of the last row of the log, and that of the newest session."""
        query = f"SELECT {NEWEST[self._database.engine]}"
        [(row, session)] = await self._database.fetch(query)
        return int(row), int(session)

    async def log_heads(self) -> dict[int, int]:
        """The last position of each session's log."""
        rows = await self._database.fetch(
            "SELECT session, max(last_seq) FROM (SELECT session, last_seq FROM log"
            " UNION ALL SELECT session, last_seq FROM log_segments) AS heads GROUP BY session"
        )
        return dict(rows)

    async def log_growth(self, row: int) -> tuple[int, set[int]] | None:
        """The sessions with rows of the log after *row*, and the last of these rows.

        Returns:
            None if the last rows were deleted, so that their numbers may be used again.
        """
        if await self.last_log_row() < row:
            return None
        rows = await self._database.fetch(_GROWTH[self._database.engine], row, ROWS)
        return (rows[-1][0], {session for _, session in rows}) if rows else (row, set())
