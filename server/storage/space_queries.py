"""The SQL queries about the space that sessions occupy, and whose it is."""

from __future__ import annotations

from .database import Database


class SpaceQueries:
    """A part of :class:`Queries`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def session_sizes(self, app_name: str) -> list[tuple[str, str, int]]:
        """The id and the folder of each of an app's sessions, and the bytes of its own log."""
        rows = await self._database.fetch(
            "SELECT id, cwd, coalesce((SELECT sum(length(body)) FROM log"
            "  WHERE log.session = sessions.n), 0) FROM sessions WHERE app_name = ?",
            app_name,
        )
        return [(row[0], row[1], int(row[2])) for row in rows]

    async def log_growth(self, number: int, after: int) -> tuple[int, int]:
        """The bytes of a session's own log after a position, and its last position."""
        rows = await self._database.fetch(
            "SELECT coalesce(sum(length(body)), 0), coalesce(max(last_seq), 0) FROM log"
            " WHERE session = ?1 AND last_seq > ?2",
            number,
            after,
        )
        return int(rows[0][0]), max(after, int(rows[0][1]))

    async def all_session_ids(self) -> set[str]:
        """The ids of all sessions, also of those that are being deleted."""
        return {row[0] for row in await self._database.fetch("SELECT id FROM sessions")}
