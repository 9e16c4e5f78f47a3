"""The sessions of subagents, as an ACP client that understands them sees them.

They keep the ids that the agent has given them. The agent's own id of the session that the client
knows is replaced wherever a message names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codec import dumps, parse_message
from .update_filter import SESSION_MESSAGES

MAX_KNOWN = 4096
"""The number of a session's subagents that are known: only these can be cancelled by their ids,
and only their requests name them."""
_OWN_KINDS = ("subagent_update", *SESSION_MESSAGES)
_MARKERS = tuple(b'"%b"' % kind.encode() for kind in _OWN_KINDS)
_ID_FIELDS = "senderSessionId", "recipientSessionId"


class SubagentSessions:
    """The sessions of the subagents of one session, for one client.

    Args:
        session_id: this server's id of the session.

    Attributes:
        ids: of the newest subagents, in order.
        parent_id: the agent's own id of the session, once it is known.
    """

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self.ids: dict[str, None] = {}
        self.parent_id: str | None = None

    def note(self, child: str) -> None:
        """Note that a subagent exists."""
        if child in self.ids:
            return
        self.ids[child] = None
        if len(self.ids) > MAX_KNOWN:
            del self.ids[next(iter(self.ids))]

    def session_of(self, request: Mapping[str, Any]) -> str:
        """The client's id of the session that sent a request with these params."""
        named = request.get("sessionId")
        return named if isinstance(named, str) and named in self.ids else self._session_id

    def render(self, message: bytes) -> bytes:
        """Return an update with the ids that the client knows in its own fields."""
        if not any(marker in message for marker in _MARKERS):
            return message
        parsed = parse_message(message)
        params = (parsed or {}).get("params")
        update = params.get("update") if isinstance(params, dict) else None
        if not isinstance(update, dict) or update.get("sessionUpdate") not in _OWN_KINDS:
            return message
        if update["sessionUpdate"] == "subagent_update":
            if isinstance(child := update.get("sessionId"), str):
                self.note(child)
            return message
        changed = [name for name in _ID_FIELDS if self._is_parent(update.get(name))]
        if not changed:
            return message
        update.update(dict.fromkeys(changed, self._session_id))
        return dumps(parsed)

    def _is_parent(self, session_id: Any) -> bool:
        return self.parent_id is not None and session_id == self.parent_id
