"""What an agent asks leave for, and how a policy answers it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

READ_KINDS = frozenset({"read", "search"})


class Pending:
    """A permission request that waits for a client."""

    def __init__(self, raw_id: Any, request: Any, turn_index: int, expires_at: int) -> None:
        self.request_id = str(uuid.uuid4())
        self.raw_id = raw_id
        self.request = request
        self.turn_index = turn_index
        self.expires_at = expires_at
        self.timer: asyncio.TimerHandle | None = None

    def view(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "request": self.request,
            "expires_at": self.expires_at,
            "turn_index": self.turn_index,
        }


def options(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What *request* (``session/request_permission``'s params) lets one choose from."""
    offered = request.get("options")
    if not isinstance(offered, list):
        return []
    return [option for option in offered if isinstance(option, dict) and "optionId" in option]


def choose(request: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """The outcome that allows or rejects *request*, this once where that is offered."""
    for kind in (f"{verb}_once", f"{verb}_always"):
        for option in options(request):
            if option.get("kind") == kind:
                return {"outcome": "selected", "optionId": option["optionId"]}
    return {"outcome": "cancelled"}


def by_policy(policy: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome that a session's *policy* (any but ``ask``) gives *request*."""
    if policy == "approve-all":
        return choose(request, "allow")
    if policy == "approve-reads":
        call = request.get("toolCall")
        kind = call.get("kind") if isinstance(call, dict) else None
        return choose(request, "allow" if kind in READ_KINDS else "reject")
    return choose(request, "reject")
