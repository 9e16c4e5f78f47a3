"""The rows of tables that belong to no session: usage, runs and their responses."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(slots=True)
class RunRow:
    """A ``/run``: its sizes and its result, but not its texts. ``error`` is a code."""

    id: str
    app_name: str
    agent: str
    model: str | None
    prompt_bytes: int
    started_at: float
    result_bytes: int | None = None
    duration_ms: int | None = None
    stop_reason: str | None = None
    error: str | None = None


@dataclasses.dataclass(slots=True)
class RunResultRow:
    """The response of a run whose client asks for it later.

    Attributes:
        client_id: the ``Idempotency-Key`` of the run.
        status, body: of the response; None until the run has ended.
        expires_at: unix seconds.
    """

    id: str
    app_name: str
    client_id: str | None
    status: int | None
    body: bytes | None
    expires_at: float


@dataclasses.dataclass(slots=True)
class UsageRow:
    """The tokens and the cost of one turn or run. It stays when its session is deleted.

    Attributes:
        session_id, turn_index: None for a run.
        cost: in *currency*.
    """

    at: float
    app_name: str
    session_id: str | None
    turn_index: int | None
    agent: str
    model: str | None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_read_tokens: int | None = None
    cached_write_tokens: int | None = None
    thought_tokens: int | None = None
    cost: float | None = None
    currency: str | None = None

    @classmethod
    def of(cls, usage: dict[str, Any], **about: Any) -> UsageRow:
        """Make the row of a usage in the form of ``turn_end``."""
        counts = dict(usage)
        cost = counts.pop("cost", None) or {}
        return cls(**about, **counts, cost=cost.get("amount"), currency=cost.get("currency"))
