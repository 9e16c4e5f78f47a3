"""The SQL queries about the life of sessions: which are new, idle, expired or being deleted."""

from __future__ import annotations

import dataclasses

from .database import Database
from .schema import FileRow, SessionRow, columns
from .share_row import ShareRow

SELECT_SESSION = f"SELECT {columns(SessionRow)} FROM sessions "


class LifecycleQueries:
    """A part of :class:`Queries`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def idle_sessions(self, now: float, ttl_secs: float) -> list[str]:
        """Ids of open sessions that have had no turn for their time.

        The time counts from the last turn, the creation or the last reopen.

        Args:
            ttl_secs: of sessions that have no time of their own.
        """
        rows = await self._database.fetch(
            "SELECT id FROM sessions WHERE closed_at IS NULL AND removed_at IS NULL AND"
            " CASE WHEN reopened_at > coalesce(last_turn_at, created_at) THEN reopened_at"
            "  ELSE coalesce(last_turn_at, created_at) END + coalesce(ttl_secs, ?) <= ?",
            ttl_secs,
            now,
        )
        return [row[0] for row in rows]

    async def expired_sessions(self, now: float, retention_secs: float) -> list[SessionRow]:
        """Closed sessions that have been kept for their time.

        Args:
            retention_secs: of sessions that have no time of their own.
        """
        rows = await self._database.fetch(
            f"{SELECT_SESSION}WHERE retention_secs IS NULL AND closed_at <= ?"
            "  AND removed_at IS NULL"
            f" UNION ALL {SELECT_SESSION}WHERE retention_secs IS NOT NULL"
            "  AND closed_at + retention_secs <= ? AND removed_at IS NULL",
            now - retention_secs,
            now,
        )
        return [SessionRow(*row) for row in rows]

    async def removed_sessions(self) -> list[SessionRow]:
        """Sessions whose deletion has begun and is not complete."""
        rows = await self._database.fetch(f"{SELECT_SESSION}WHERE removed_at IS NOT NULL")
        return [SessionRow(*row) for row in rows]

    async def shares(self) -> list[ShareRow]:
        """The shares of all sessions."""
        rows = await self._database.fetch(
            f"SELECT {columns(ShareRow)} FROM shares ORDER BY created_at"
        )
        return [ShareRow(*row) for row in rows]

    async def own_uploads(self, session: int) -> list[FileRow]:
        """The uploads that the prompts of this session have used, and those of no other."""
        names = ", ".join(f"files.{field.name}" for field in dataclasses.fields(FileRow))
        rows = await self._database.fetch(
            f"SELECT {names} FROM files JOIN upload_uses USING (hash) WHERE session = ?1 AND"
            " NOT EXISTS (SELECT 1 FROM upload_uses AS other"
            "  WHERE other.hash = files.hash AND other.session != ?1)",
            session,
        )
        return [FileRow(*row) for row in rows]

    async def has_app(self, name: str) -> bool:
        """Whether an app has a token."""
        return bool(await self._database.fetch("SELECT 1 FROM tokens WHERE name = ?", name))

    async def newest_options(self, agent: str, count: int) -> list[str | None]:
        """The options of the newest sessions with an agent, as JSON, the newest first."""
        rows = await self._database.fetch(
            "SELECT options FROM sessions WHERE agent = ? ORDER BY n DESC LIMIT ?", agent, count
        )
        return [row[0] for row in rows]
