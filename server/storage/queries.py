"""Every SQL query that reads the database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..codec import loads
from .drivers.base import OF_ENDED_SERVERS, Engine
from .drivers.functions import casefold
from .fork_queries import ForkQueries
from .lifecycle_queries import SELECT_SESSION, LifecycleQueries
from .outbox import OutboxQueries
from .schema import FileRow, SessionRow, SteerRow, TokenRow, TurnRow, columns
from .space_queries import SpaceQueries

SCANNED_ROWS = 500
"""Rows that are read at once to find titles."""
_TURN = f"SELECT {columns(TurnRow)} FROM turns "


class Queries(LifecycleQueries, ForkQueries, SpaceQueries):
    """The reads of the database. Times are unix seconds; *session* is a number, *session_id* an id.

    Every method raises :class:`DatabaseError` if the database cannot be read.
    """

    @property
    def engine(self) -> Engine:
        return self._database.engine

    @property
    def outbox(self) -> OutboxQueries:
        """The reads of webhooks and push."""
        return OutboxQueries(self._database)

    async def session(self, session_id: str) -> SessionRow | None:
        rows = await self._database.fetch(SELECT_SESSION + "WHERE id = ?", session_id)
        return SessionRow(*rows[0]) if rows else None

    async def has_session(self, app_name: str, session_id: str) -> bool:
        return bool(
            await self._database.fetch(
                "SELECT 1 FROM sessions WHERE id = ? AND app_name = ?", session_id, app_name
            )
        )

    async def sessions(
        self, app_name: str | None = None, *, include_closed: bool
    ) -> list[SessionRow]:
        """The sessions of an app, or of all apps, the newest first."""
        conditions = ["removed_at IS NULL", *([] if include_closed else ["closed_at IS NULL"])]
        values = []
        if app_name is not None:
            conditions.append("app_name = ?")
            values.append(app_name)
        where = f"WHERE {' AND '.join(conditions)}"
        rows = await self._database.fetch(f"{SELECT_SESSION}{where} ORDER BY n DESC", *values)
        return [SessionRow(*row) for row in rows]

    async def session_page(
        self,
        app_name: str,
        *,
        before: int | None,
        limit: int,
        cwd: str | None = None,
        include_closed: bool = False,
        include_open: bool = True,
        title: str | None = None,
    ) -> list[SessionRow]:
        """At most *limit* of an app's sessions, the newest first.

        Args:
            before: only those with smaller numbers.
            cwd: only those in that folder, and those whose client named it.
            title: only those with this text in their title, in upper or lower case.
        """
        where = "WHERE app_name = ? AND removed_at IS NULL"
        where += "" if include_closed else " AND closed_at IS NULL"
        where += "" if include_open else " AND closed_at IS NOT NULL"
        values: list[Any] = [app_name]
        if before is not None:
            where += " AND n < ?"
            values.append(before)
        if cwd is not None:
            where += " AND ? IN (cwd, client_cwd)"
            values.append(cwd)
        if title is not None and self._database.engine == "sqlite":
            where += " AND instr(casefold(json_extract(meta, '$.title')), ?)"
            values.append(casefold(title))
        elif title is not None:
            return await self._titled_page(where, values, title, limit)
        return await self._newest(where, values, limit)

    async def _newest(self, where: str, values: Sequence[Any], limit: int) -> list[SessionRow]:
        rows = await self._database.fetch(
            SELECT_SESSION + where + " ORDER BY n DESC LIMIT ?", *values, limit
        )
        return [SessionRow(*row) for row in rows]

    async def _titled_page(
        self, where: str, values: Sequence[Any], title: str, limit: int
    ) -> list[SessionRow]:
        """The newest sessions with a text in their title, for an engine without our functions."""
        wanted = casefold(title) or ""
        matching: list[SessionRow] = []
        rows = await self._newest(where, values, SCANNED_ROWS)
        while rows and len(matching) < limit:
            matching += [row for row in rows if wanted in (casefold(_stored_title(row)) or "")]
            if len(rows) < SCANNED_ROWS:
                break
            rows = await self._newest(f"{where} AND n < ?", [*values, rows[-1].n], SCANNED_ROWS)
        return matching[:limit]

    async def open_counts(self) -> dict[str, int]:
        """The number of open sessions of each app that has any."""
        rows = await self._database.fetch(
            "SELECT app_name, count(*) FROM sessions"
            " WHERE closed_at IS NULL AND removed_at IS NULL GROUP BY app_name"
        )
        return dict(rows)

    async def last_session_number(self) -> int:
        rows = await self._database.fetch(
            "SELECT coalesce(max(n), 0) FROM (SELECT max(n) AS n FROM sessions"
            # The rows of a deleted session stay while a fork refers to them.
            " UNION ALL SELECT max(owner) FROM log_segments) AS numbers"
        )
        return int(rows[0][0])

    async def sessions_to_recover(self) -> list[SessionRow]:
        """Sessions with anything that an earlier server left unfinished.

        That is a turn, a request of the agent, or a prompt that was sent for a running turn.
        """
        rows = await self._database.fetch(
            SELECT_SESSION + "WHERE n IN (SELECT session FROM turns WHERE last_seq IS NULL"
            " UNION SELECT session FROM asked"
            " UNION SELECT session FROM steers WHERE prompt IS NOT NULL) AND removed_at IS NULL"
        )
        return [SessionRow(*row) for row in rows]

    async def turn(self, session: int, turn_index: int) -> TurnRow | None:
        rows = await self._database.fetch(
            _TURN + "WHERE session = ? AND turn_index = ?", session, turn_index
        )
        return TurnRow(*rows[0]) if rows else None

    async def turn_by_client_id(self, session: int, client_id: str) -> tuple[TurnRow | None, bool]:
        """The turn that a prompt began or was added to, and whether it was added."""
        rows = await self._database.fetch(
            f"SELECT {columns(TurnRow)}, 0 FROM turns WHERE session = ?1 AND client_id = ?2"
            f" UNION ALL SELECT {columns(TurnRow)}, 1 FROM turns WHERE session = ?1"
            " AND turn_index = (SELECT turn_index FROM steers"
            "   WHERE session = ?1 AND client_id = ?2 AND prompt IS NULL)",
            session,
            client_id,
        )
        return (TurnRow(*rows[0][:-1]), bool(rows[0][-1])) if rows else (None, False)

    async def undecided_steers(self, session: int) -> list[SteerRow]:
        """The steered prompts to which the agent had not responded."""
        rows = await self._database.fetch(
            f"SELECT {columns(SteerRow)} FROM steers WHERE session = ? AND prompt IS NOT NULL"
            " ORDER BY rowid",
            session,
        )
        return [SteerRow(*row) for row in rows]

    async def pending_agent_requests(self, session: int, kind: str) -> list[tuple[str, int]]:
        """The ids of an agent's requests without an outcome, each with its turn's index.

        Args:
            kind: ``permission`` or ``elicitation``.
        """
        rows = await self._database.fetch(
            "SELECT request_id, turn_index FROM asked WHERE session = ? AND kind = ?", session, kind
        )
        return [(row[0], row[1]) for row in rows]

    async def unfinished_turns(self, session: int) -> list[TurnRow]:
        rows = await self._database.fetch(
            _TURN + "WHERE session = ? AND last_seq IS NULL ORDER BY turn_index", session
        )
        return [TurnRow(*row) for row in rows]

    async def last_turn_index(self, session: int, position: int | None = None) -> int:
        """The greatest index of a session's turns, or of those that have begun up to a position."""
        rows = await self._database.fetch(
            "SELECT coalesce(max(turn_index), 0) FROM turns"
            " WHERE session = ?1"
            " AND (CAST(?2 AS BIGINT) IS NULL OR first_seq <= CAST(?2 AS BIGINT))",
            session,
            position,
        )
        return int(rows[0][0])

    async def log_head(self, session: int) -> int:
        """The last stored position of a session's log; 0 if it is empty."""
        rows = await self._database.fetch(
            "SELECT coalesce(max(last_seq), 0) FROM ("
            " SELECT max(last_seq) AS last_seq FROM log WHERE session = ?1"
            " UNION ALL SELECT max(last_seq) FROM log_segments WHERE session = ?1) AS heads",
            session,
        )
        return int(rows[0][0])

    async def server_value(self, name: str) -> bytes | None:
        """A value of the server's own, for example the digest of the admin token."""
        rows = await self._database.fetch("SELECT value FROM server WHERE name = ?", name)
        return rows[0][0] if rows else None

    async def tokens(self) -> list[TokenRow]:
        rows = await self._database.fetch(f"SELECT {columns(TokenRow)} FROM tokens ORDER BY name")
        return [TokenRow(*row) for row in rows]

    async def files(self, hashes: Iterable[bytes]) -> list[FileRow]:
        """The uploads with those hashes, in the order of *hashes*; unknown hashes are skipped."""
        files: list[FileRow] = []
        for digest in hashes:
            rows = await self._database.fetch(
                f"SELECT {columns(FileRow)} FROM files WHERE hash = ?", digest
            )
            files.extend(FileRow(*row) for row in rows)
        return files

    async def all_files(self) -> list[FileRow]:
        """All uploads."""
        rows = await self._database.fetch(f"SELECT {columns(FileRow)} FROM files")
        return [FileRow(*row) for row in rows]

    async def unfinished_runs(self) -> list[str]:
        """Ids of the runs that have not ended."""
        rows = await self._database.fetch(
            f"SELECT id FROM runs WHERE stop_reason IS NULL AND {OF_ENDED_SERVERS[self.engine]}"
        )
        return [row[0] for row in rows]

    async def prewarmed(self) -> list[str]:
        """The session ids of prewarmed agents that no session has taken over."""
        return [
            row[0]
            for row in await self._database.fetch(
                f"SELECT id FROM prewarmed WHERE {OF_ENDED_SERVERS[self.engine]}"
            )
        ]

    async def expired_files(self, before: float) -> list[FileRow]:
        rows = await self._database.fetch(
            f"SELECT {columns(FileRow)} FROM files WHERE expires_at <= ?", before
        )
        return [FileRow(*row) for row in rows]


def _stored_title(row: SessionRow) -> object:
    return loads(row.meta).get("title")
