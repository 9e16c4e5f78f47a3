"""The times of a session: open without a turn, and kept once it is closed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import UNSET

from ..config import Settings
from ..storage.schema import SessionRow

NEVER = math.inf
"""Stored for a time that a client has set to null."""


class Lifetime(msgspec.Struct, frozen=True):
    """The two times that a client may choose for a session, in seconds.

    Attributes:
        ttl_secs: without a turn, after which the session is closed; None for the server's setting.
        retention_secs: after its close, after which the session is deleted; None likewise.
    """

    ttl_secs: float | None = None
    retention_secs: float | None = None

    @classmethod
    def of(cls, ttl_secs: Any, retention_secs: Any) -> Lifetime:
        """Return the times of a request, in which null is never."""
        return cls(_column_value(ttl_secs), _column_value(retention_secs))


def _column_value(value: Any) -> float | None:
    if value is UNSET:
        return None
    return NEVER if value is None else float(value)


def changed_times(row: SessionRow, ttl_secs: Any, retention_secs: Any) -> dict[str, float]:
    """The columns of the row that a request changes."""
    given = {"ttl_secs": _column_value(ttl_secs), "retention_secs": _column_value(retention_secs)}
    return {
        name: value
        for name, value in given.items()
        if value is not None and value != getattr(row, name)
    }


def lifetime_view(row: SessionRow, settings: Settings) -> dict[str, Any]:
    """The times that apply to a session, as clients see them; None for never."""
    return {
        "ttl_secs": _shown_secs(row.ttl_secs, settings.session_ttl_secs),
        "retention_secs": _shown_secs(row.retention_secs, settings.session_hard_ttl_secs),
    }


def _shown_secs(own: float | None, default: float) -> float | None:
    value = default if own is None else own
    if value == NEVER:
        return None
    return int(value) if value == int(value) else value


def is_idle(row: SessionRow, settings: Settings, now: float) -> bool:
    """Whether an open session without a turn has reached its time."""
    ttl = settings.session_ttl_secs if row.ttl_secs is None else row.ttl_secs
    last = row.created_at if row.last_turn_at is None else row.last_turn_at
    return max(last, row.reopened_at or 0) + ttl <= now
