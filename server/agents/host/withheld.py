"""The updates that acpx does not receive, because it would only parse and discard them."""

from __future__ import annotations

from typing import Any

WITHHELD_UPDATES = frozenset(
    {
        "user_message_chunk",
        "agent_message_chunk",
        "agent_thought_chunk",
        "tool_call",
        "tool_call_update",
        "plan",
        "plan_update",
        "plan_removed",
        "subagent_update",
        "session_message",
        "session_message_chunk",
    }
)
"""The kinds of ``session/update`` that acpx does not receive."""


def is_withheld(message: dict[str, Any]) -> bool:
    """Whether acpx does not receive that ``session/update``."""
    try:
        return message["params"]["update"]["sessionUpdate"] in WITHHELD_UPDATES
    except (KeyError, TypeError):
        return False
