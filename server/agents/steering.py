"""Adding a prompt to the turn that an agent is working on: the ``_session/steering`` extension.

The adapters of claude and codex have it. An agent that has it says so in ``_meta.steering`` of its
response to ``initialize``. Nothing here does I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

METHOD = "_session/steering"
# If no turn runs, the agent must not begin one by itself: the server sends an ordinary prompt.
_PARAMS = b'{"sessionId":%b,"prompt":%b,"_meta":{"steering":{"idleBehavior":"promptRequired"}}}'


class SteerOutcome(enum.Enum):
    """The outcome of a request to add a prompt to the running turn."""

    ACCEPTED = "accepted"
    """The agent has added it to the turn, or works on it by itself."""
    REFUSED = "refused"
    """The agent has not taken it: it does not support the content, or the turn had ended."""
    LOST = "lost"
    """The agent's process ended before it responded."""


class WithoutOwnRequests:
    """An agent to which the server sends no requests of its own, because acpx owns its pipes."""

    can_steer = False
    will_fork = False

    def steer(self, blocks: bytes, decide: Callable[[SteerOutcome], None]) -> str | None:
        decide(SteerOutcome.REFUSED)
        return None

    def cancel_subagent(self, session_id: str) -> None:
        """Do nothing: acpx announces no sessions of subagents."""

    def delete_conversation(self) -> None:
        """Do nothing."""


def is_supported(initialized: Mapping[str, Any]) -> bool:
    """Whether an agent's response to ``initialize`` offers steering."""
    capabilities = initialized.get("agentCapabilities")
    described = (initialized, capabilities if isinstance(capabilities, dict) else {})
    return any(_is_offer(part.get("_meta")) for part in described)


def _is_offer(meta: Any) -> bool:
    offer = meta.get("steering") if isinstance(meta, dict) else None
    return isinstance(offer, dict) and offer.get("supported") is not False


def params(session_id: bytes, blocks: bytes) -> bytes:
    """The JSON of the request's params; *session_id* and *blocks* are JSON."""
    return _PARAMS % (session_id, blocks)


def outcome_of(response: Mapping[str, Any] | None) -> SteerOutcome:
    """The outcome in an agent's response; None: its process ended without one."""
    if response is None:
        return SteerOutcome.LOST
    result = response.get("result")
    outcome = result.get("outcome") if isinstance(result, dict) else None
    # An agent that ignores idleBehavior begins a turn by itself. The prompt must not run again.
    accepts = outcome in ("injected", "startedNewTurn")
    return SteerOutcome.ACCEPTED if accepts else SteerOutcome.REFUSED
