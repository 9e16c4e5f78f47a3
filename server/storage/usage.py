"""The sums of the tokens and the costs of turns and runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .database import Database
from .drivers.base import Engine

Grouping = Literal["day", "session", "agent", "model", "app"]
_GROUPS: Mapping[Grouping, tuple[str, str]] = {
    "day": ("day", ""),
    "session": ("session_id", "session_id"),
    "agent": ("agent", "agent"),
    "model": ("model", "model"),
    "app": ("app", "app_name"),
}
"""The name of the group in a row, and its SQL."""
_DAYS: Mapping[Engine, str] = {
    "sqlite": "date(at, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_SPENT = (
    " sum(coalesce(input_tokens, 0) + coalesce(cached_read_tokens, 0)"
    " + coalesce(cached_write_tokens, 0) + coalesce(output_tokens, 0)),"
    " sum(CASE WHEN currency = 'USD' THEN cost ELSE 0 END)"
)
SPENT_ELSEWHERE = (
    f"SELECT {_DAYS['postgresql']}, {_SPENT} FROM usage"
    " WHERE app_name = ?1 AND at >= ?2 AND node IS DISTINCT FROM ?3 GROUP BY 1"
)
"""The sums of each day of UTC since unix seconds, without those of this node."""
SUMMED = (
    "input_tokens",
    "output_tokens",
    "cached_read_tokens",
    "cached_write_tokens",
    "thought_tokens",
)


class UsageQueries:
    """Reads the table ``usage``.

    Every method raises :class:`DatabaseError` if the database cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last_id(self) -> int:
        """The id of the newest row; 0 if there is none."""
        [(last,)] = await self._database.fetch("SELECT coalesce(max(id), 0) FROM usage")
        return int(last)

    async def spent_by_day(
        self, app_name: str, *, since: float, last_id: int
    ) -> list[tuple[str, int, float]]:
        """The tokens and the USD that an app has spent on each day of UTC, such as 2026-11-30.

        Args:
            since: unix seconds.
            last_id: the newest row that is counted.
        """
        rows = await self._database.fetch(
            f"SELECT {_DAYS[self._database.engine]}, {_SPENT}"
            " FROM usage WHERE app_name = ?1 AND at >= ?2 AND id <= ?3 GROUP BY 1",
            app_name,
            since,
            last_id,
        )
        return [(str(day), int(tokens), float(usd)) for day, tokens, usd in rows]

    async def sums(
        self, *, since: float, until: float, by: Grouping, app_name: str | None
    ) -> list[dict[str, Any]]:
        """The sums of each group, in the order of the groups' names.

        Costs are added per currency; a group with several currencies has a row for each.

        Args:
            since, until: unix seconds; *until* is not included.
            app_name: only of this app.
        """
        name, group = _GROUPS[by]
        group = group or _DAYS[self._database.engine]
        sums = ", ".join(f"CAST(sum({count}) AS BIGINT)" for count in SUMMED)
        rows = await self._database.fetch(
            f"SELECT {group}, {sums}, sum(cost), currency FROM usage"
            " WHERE at >= ?1 AND at < ?2 AND (CAST(?3 AS TEXT) IS NULL OR app_name = ?3)"
            " GROUP BY 1, currency ORDER BY 1 NULLS FIRST, currency NULLS FIRST",
            since,
            until,
            app_name,
        )
        groups = []
        for value, *counts, amount, currency in rows:
            row = {name: value, **dict(zip(SUMMED, counts, strict=True))}
            row = {key: field for key, field in row.items() if field is not None or key == name}
            if amount is not None:
                row["cost"] = {"amount": amount, "currency": currency}
            groups.append(row)
        return groups
