"""Withholds the updates that a client has not announced to understand.

The server announces them to agents, because other clients of the session may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codec import dumps, parse_message

SESSION_UPDATES: Mapping[str, tuple[str, ...]] = {
    "notices": ("notice",),
    "compaction": ("compaction_update", "compaction_summary_chunk"),
}
"""The kinds of ``session/update`` that belong to a capability of the client's for sessions."""
SESSION_MESSAGES = "session_message", "session_message_chunk"
"""Those for messages between an agent and a subagent."""
CLIENT_UPDATES: Mapping[str, tuple[str, ...]] = {
    "plan": ("plan_update", "plan_removed"),
    "subagents": ("subagent_update", *SESSION_MESSAGES),
}
"""The kinds that belong to one of the client's other capabilities."""
OPTIONS_UPDATE = "config_option_update"
SWITCH = "boolean"
"""The type of an option that is true or false."""


class UpdateFilter:
    """The updates that one client does not receive.

    Args:
        capabilities: the client's ``clientCapabilities``.

    Attributes:
        knows_subagents: the client understands sessions of subagents.
    """

    def __init__(self, capabilities: Mapping[str, Any] | None) -> None:
        session = (capabilities or {}).get("session")
        announced = session if isinstance(session, dict) else {}
        options = announced.get("configOptions")
        self._has_switches = isinstance(options, dict) and isinstance(options.get(SWITCH), dict)
        known = {**announced, **{name: (capabilities or {}).get(name) for name in CLIENT_UPDATES}}
        self.knows_subagents = isinstance(known["subagents"], dict)
        self._hidden = {
            kind
            for capability, kinds in {**SESSION_UPDATES, **CLIENT_UPDATES}.items()
            if not isinstance(known.get(capability), dict)
            for kind in kinds
        }
        # A message without any of these is not parsed.
        self._markers = [b'"%b"' % kind.encode() for kind in self._hidden]
        if not self._has_switches:
            self._markers.append(b'"%b"' % SWITCH.encode())

    def without_switches(self, options: Any) -> Any:
        """Return config options without those that the client does not understand."""
        if self._has_switches or not isinstance(options, list):
            return options
        return [
            option
            for option in options
            if not (isinstance(option, dict) and option.get("type") == SWITCH)
        ]

    def apply(self, message: bytes) -> bytes | None:
        """Return an agent's message as the client receives it; None if it does not."""
        if not any(marker in message for marker in self._markers):
            return message
        parsed = parse_message(message)
        update: Any = parsed
        for name in ("params", "update"):
            update = update.get(name) if isinstance(update, dict) else None
        kind = update.get("sessionUpdate") if isinstance(update, dict) else None
        if kind in self._hidden:
            return None
        if kind == OPTIONS_UPDATE and not self._has_switches:
            update["configOptions"] = self.without_switches(update.get("configOptions"))
            return dumps(parsed)
        return message
