"""The reads of the audit records."""

from __future__ import annotations

import dataclasses

from .database import Database


@dataclasses.dataclass(slots=True)
class AuditRow:
    """An audit record: one event of a session.

    Attributes:
        at: unix seconds.
        detail: JSON.
    """

    id: int
    at: float
    app_name: str
    session_id: str
    event: str
    detail: str


class AuditQueries:
    """Reads audit records.

    Every method raises :class:`DatabaseError` if the database cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, *, after: int, limit: int, app_name: str | None, event: str | None
    ) -> list[AuditRow]:
        """At most *limit* records after an id, the oldest first.

        Args:
            app_name: only the records of this app.
            event: only the records of this event.
        """
        rows = await self._database.fetch(
            "SELECT id, at, app_name, session_id, event, detail FROM session_events"
            " WHERE id > ?1 AND (CAST(?2 AS TEXT) IS NULL OR app_name = ?2)"
            " AND (CAST(?3 AS TEXT) IS NULL OR event = ?3)"
            " ORDER BY id LIMIT ?4",
            after,
            app_name,
            event,
            limit,
        )
        return [AuditRow(*row) for row in rows]
