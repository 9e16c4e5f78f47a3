"""The tokens that the first start of a server creates."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_APP = "first-app"


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The tokens that the first start created; None for one that was not created."""

    admin: str | None
    app: str | None
