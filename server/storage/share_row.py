"""The row of a share."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class ShareRow:
    """A share of a session; ``hash`` is the SHA-256 of its secret."""

    id: str
    session: int
    session_id: str
    app_name: str
    hash: bytes
    label: str | None
    created_at: float
    expires_at: float | None
