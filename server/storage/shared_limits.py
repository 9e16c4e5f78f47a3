"""Limits that hold for all nodes together: the database counts, so that races exceed none.

A reservation counts what a node has not stored yet: a session that is being created, an upload that
is being written. Its tables are called places. The reservations of an ended node do not count.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..errors import DatabaseError, Error, not_stored
from ..tasks import Tasks
from .schema import Statement
from .usage import SPENT_ELSEWHERE

PORTION_SHARE = 100
"""A node takes this part of a large rate at once, as long as half of the rate is left."""
PORTION_SECS = 4.0
"""The time in which it spends the portion. As much as returns in this time is not given out."""
RENEW_SECS = 2.0
"""After this time a portion that is in use is replaced, before it expires."""
_RATE = "CAST(?2 AS DOUBLE PRECISION)"
_MOST = "CAST(?3 AS DOUBLE PRECISION)"
_PORTION = "CAST(?4 AS DOUBLE PRECISION)"
_UNUSED = "CAST(?5 AS DOUBLE PRECISION)"
# After a change of the limit, what was spent before stays spent.
_REMAINING = (
    f"least({_MOST}, {_UNUSED} + CASE WHEN r.per_minute <> {_RATE}"
    f" THEN greatest(0, r.remaining + {_RATE} - r.per_minute)"
    f" ELSE r.remaining + {_RATE} / 60"
    " * greatest(0, CAST(extract(epoch FROM now() - r.at) AS DOUBLE PRECISION)) END)"
)


def _left_of(remaining: str) -> str:
    """The rest after a portion, or one, or none was taken."""
    return (
        f"({remaining}) - CASE WHEN ({remaining}) >= {_RATE} / 2 + 1"
        f" THEN least({_PORTION}, floor(({remaining}) - {_RATE} / 2))"
        f" WHEN ({remaining}) >= 1 THEN 1 ELSE 0 END"
    )


_TAKE_PROMPT = (
    "INSERT INTO prompt_rates AS r (app_name, has_taken, remaining, per_minute, at)"
    f" VALUES (?1, {_MOST} >= 1, {_left_of(_MOST)}, {_RATE}, now())"
    " ON CONFLICT (app_name) DO UPDATE SET"
    f" has_taken = ({_REMAINING}) >= 1, remaining = {_left_of(_REMAINING)},"
    f" per_minute = {_RATE}, at = greatest(r.at, now()) RETURNING has_taken, remaining"
)


class _Portion:
    """Prompts of an app that this node has taken from the common rate and may accept."""

    def __init__(self, per_minute: int, count: int, until: float) -> None:
        self.per_minute = per_minute
        self.count = count
        self.until = until
        self.is_renewed = False


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

    def __init__(self, engine: LimitsEngine, number: int, tasks: Tasks | None = None) -> None:
        self.add: Callable[[Sequence[Statement]], None] = lambda statements: None
        self._engine = engine
        self._number = number
        self._portions: dict[str, _Portion] = {}
        self._tasks = tasks or Tasks()

    async def reserve_session(
        self, session_id: str, app_name: str, *, per_app: int, total: int
    ) -> str | None:
        """Reserve a session that is being opened.

        Returns:
            The limit that is reached, ``app`` or ``server``; None if the session is reserved.
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

    async def reserve_upload(
        self, upload: bytes, app_name: str, size: int, *, max_bytes: int, max_count: int
    ) -> str | None:
        """Reserve the bytes of an upload, instead of those that it had reserved.

        Args:
            size: of the whole upload, as far as it is known.

        Returns:
            The limit that is reached, ``bytes`` or ``count``; None if the bytes are reserved.
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

    async def count_prompt(self, app_name: str, per_minute: int) -> bool:
        """Count a prompt of an app; False if it has sent too many of late.

        Of a large rate a node takes several at once, and takes more before it has used them up, so
        that no prompt of a busy app waits for the database.
        """
        portion = self._portions.get(app_name)
        if portion is None or portion.per_minute != per_minute or not portion.count:
            return await self._take_portion(app_name, per_minute)
        left_secs = portion.until - time.monotonic()
        if left_secs <= 0:
            return await self._take_portion(app_name, per_minute)
        portion.count -= 1
        if left_secs < PORTION_SECS - RENEW_SECS and not portion.is_renewed:
            portion.is_renewed = True
            self._tasks.spawn(self._renew(app_name, per_minute), "prompt-rate")
        return True

    async def _renew(self, app_name: str, per_minute: int) -> None:
        with contextlib.suppress(Error):
            if await self._take_portion(app_name, per_minute):
                none = _Portion(per_minute, 0, self._until())
                self._portions.setdefault(app_name, none).count += 1  # it was for no prompt

    @staticmethod
    def _until() -> float:
        return time.monotonic() + PORTION_SECS

    async def _take_portion(self, app_name: str, per_minute: int) -> bool:
        """Return what is unused of the last portion, and take one for a prompt and more for others.

        Returns:
            False if nothing is left.
        """
        last = self._portions.pop(app_name, None)
        unused = last.count if last is not None and last.per_minute == per_minute else 0
        until = self._until()
        wanted = max(1, per_minute // PORTION_SHARE)
        most = per_minute if wanted == 1 else per_minute * (1 - PORTION_SECS / 60)
        values = (app_name, *map(float, (per_minute, most, wanted)))
        try:  # what is unused must not be returned twice
            rows = await self._engine.change(_TAKE_PROMPT, (*values, float(unused)))
        except DatabaseError:
            rows = await self._fetch(_TAKE_PROMPT, (*values, 0.0))
        [(has_taken, remaining)] = rows
        # Below this, less than a whole portion may have been taken.
        if has_taken and wanted > 1 and remaining >= per_minute / 2 + 1:
            self._portions[app_name] = _Portion(per_minute, wanted - 1, until)
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
    """Free the reservation of a session, which is stored or was not opened."""
    return "DELETE FROM session_places WHERE session_id = ?", (session_id,)


def free_upload(upload: bytes) -> Statement:
    """Free the reservation of an upload, which is stored or deleted."""
    return "DELETE FROM upload_places WHERE hash = ?", (upload,)
