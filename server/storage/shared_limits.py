"""Limits that hold for all nodes together: the database counts, so that races exceed none.

A place is what a node has reserved and not yet stored: a session that is being created, an upload
that is being written. The places of a node that has ended do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..errors import DatabaseError, Error, not_stored
from .schema import Statement
from .usage import SPENT_ELSEWHERE

_FULL_RATE = "CAST(?2 AS DOUBLE PRECISION)"
# After a change of the limit, what was spent before stays spent.
_REMAINING = (
    f"CASE WHEN r.per_minute <> {_FULL_RATE}"
    f" THEN greatest(0, r.remaining + {_FULL_RATE} - r.per_minute)"
    f" ELSE least({_FULL_RATE}, r.remaining + {_FULL_RATE} / 60"
    " * greatest(0, CAST(extract(epoch FROM now() - r.at) AS DOUBLE PRECISION))) END"
)


class LimitsEngine(Protocol):
    """The part of the database that the limits use."""

    async def change(
        self, sql: str, parameters: Sequence[Any] = (), *, repeats: bool = False
    ) -> list[tuple[Any, ...]]: ...


class SharedLimits:
    """The limits of all nodes, as the node *number* asks for them.

    Every method raises :class:`Error` (``internal``) if the database is out of reach.

    Attributes:
        add: stores statements with the next commit of this node.
    """

    def __init__(self, engine: LimitsEngine, number: int) -> None:
        self.add: Callable[[Sequence[Statement]], None] = lambda statements: None
        self._engine = engine
        self._number = number

    async def take_session(
        self, session_id: str, app_name: str, *, per_app: int, total: int
    ) -> str | None:
        """Take a place for a session that is being opened.

        Returns:
            The limit that is reached, ``app`` or ``server``; None if the place was taken.
        """
        return await self._call_limit(
            "SELECT take_session_place(?, ?, ?, ?, ?)",
            (session_id, app_name, self._number, per_app, total),
        )

    async def free(self, statement: Statement) -> None:
        """Execute :func:`free_session` or :func:`free_upload` now, or with a later commit."""
        try:
            await self._fetch(*statement)
        except Error:
            self.add([statement])

    async def take_upload(
        self, upload: bytes, app_name: str, size: int, *, max_bytes: int, max_count: int
    ) -> str | None:
        """Take or enlarge the place of an upload.

        Args:
            size: of the whole upload, as far as it is known.

        Returns:
            The limit that is reached, ``bytes`` or ``count``; None if the place has that size now.
        """
        return await self._call_limit(
            "SELECT take_upload_place(?, ?, ?, ?, ?, ?)",
            (upload, app_name, self._number, size, max_bytes, max_count),
        )

    async def uploads_of(self, app_name: str) -> tuple[int, int]:
        """The bytes and the number of an app's uploads on all nodes, unfinished ones included."""
        [(size, count)] = await self._fetch(
            "SELECT coalesce(sum(size), 0)::bigint, count(*) FROM ("
            " SELECT size FROM files WHERE app_name = ?1 UNION ALL"
            " SELECT size FROM upload_places AS places WHERE app_name = ?1"
            "  AND NOT EXISTS (SELECT 1 FROM files WHERE files.hash = places.hash)) AS uploads",
            (app_name,),
        )
        return int(size), int(count)

    async def take_prompt(self, app_name: str, per_minute: int) -> bool:
        """Count a prompt of an app; False if it has sent too many of late."""
        [(has_taken,)] = await self._fetch(
            "INSERT INTO prompt_rates AS r (app_name, has_taken, remaining, per_minute, at)"
            f" VALUES (?1, {_FULL_RATE} >= 1, greatest(0, {_FULL_RATE} - 1), {_FULL_RATE}, now())"
            " ON CONFLICT (app_name) DO UPDATE SET"
            f" has_taken = ({_REMAINING}) >= 1,"
            f" remaining = ({_REMAINING}) - CASE WHEN ({_REMAINING}) >= 1 THEN 1 ELSE 0 END,"
            f" per_minute = {_FULL_RATE}, at = greatest(r.at, now()) RETURNING has_taken",
            (app_name, float(per_minute)),
        )
        return bool(has_taken)

    async def spent_elsewhere(self, app_name: str, since: float) -> list[tuple[str, int, float]]:
        """The tokens and the USD of an app on each day since unix seconds, on other nodes.

        That includes what this node had spent before it started, under another number.
        """
        rows = await self._fetch(SPENT_ELSEWHERE, (app_name, since, self._number))
        return [(str(day), int(tokens), float(usd)) for day, tokens, usd in rows]

    async def note_exceeded(self, app_name: str, budget: str) -> bool:
        """Note that an app has used up a budget; False if a node has noted it before."""
        rows = await self._fetch(
            "INSERT INTO exceeded_budgets AS e (app_name, budget) VALUES (?, ?)"
            " ON CONFLICT (app_name) DO UPDATE SET budget = excluded.budget"
            " WHERE e.budget <> excluded.budget RETURNING app_name",
            (app_name, budget),
        )
        return bool(rows)

    async def _call_limit(self, sql: str, parameters: Sequence[Any]) -> str | None:
        limit: str | None
        [(limit,)] = await self._fetch(sql, parameters)
        return limit

    async def _fetch(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return await self._engine.change(sql, parameters, repeats=True)
        except DatabaseError:
            raise not_stored() from None


def free_session(session_id: str) -> Statement:
    """Free the place of a session, which is stored or was not opened."""
    return "DELETE FROM session_places WHERE session_id = ?", (session_id,)


def free_upload(upload: bytes) -> Statement:
    """Free the place of an upload, which is stored or deleted."""
    return "DELETE FROM upload_places WHERE hash = ?", (upload,)
