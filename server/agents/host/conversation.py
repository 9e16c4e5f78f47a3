"""The conversation on an agent's pipes: the requests of acpx that open it or change a setting."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from ...codec import dumps, parse_message
from ..acp_methods import FORK, SESSION_METHODS, SETTERS, STARTING_METHODS
from ..failures import error_text
from ..program_output import redact, single_line

TRACKED_METHODS = STARTING_METHODS | SETTERS
"""The requests of acpx whose responses the server reads, too."""


logger = logging.getLogger(__name__)


class ConversationState(msgspec.Struct, kw_only=True):
    """A conversation for the next version of the server; see :class:`ProxiedConversation`."""

    session_id: str | None
    is_fresh: bool
    is_loading: bool
    tracked: list[tuple[Any, str, dict[str, Any]]]


class ProxiedConversation:
    """The requests of acpx that open the conversation of one agent process, or change a setting.

    Attributes:
        session_id: the agent's own id of the session, once it is known.
        is_fresh: the conversation is new, and the agent has had no prompt.
        is_loading: the agent is loading its conversation.
    """

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.is_fresh = False
        self.is_loading = False
        self._tracked: dict[Any, tuple[str, Mapping[str, Any]]] = {}
        self._fallback = b""

    def track(self, message: Mapping[str, Any]) -> None:
        """Remember a request of acpx if the server is to read its response."""
        method = message.get("method")
        if method in TRACKED_METHODS:
            params = message.get("params")
            changes = params if method in SETTERS and isinstance(params, dict) else {}
            self._tracked[message.get("id")] = method, changes
            if method in SESSION_METHODS:
                self.is_loading = method in ("session/load", FORK)
                self.note_id(params)

    def begin(self, line: bytes, source: str | None) -> bytes:
        """Return the request for a new conversation as the agent gets it.

        Args:
            line: acpx's ``session/new``.
            source: the agent's id of the session to fork; acpx does not notice the difference.
        """
        message = parse_message(line) if source is not None else None
        if message is None:
            return line
        self._fallback = line
        fork = {**message, "method": FORK, "params": {**message["params"], "sessionId": source}}
        self.track({**fork, "params": {}})
        return dumps(fork)

    def begin_instead(self, error: Any) -> bytes:
        """Return the request for a new conversation, as the agent has refused to fork another."""
        reason = single_line(error_text(error))
        logger.info("the agent did not fork a conversation: %s", redact(reason)[:500])
        line, self._fallback = self._fallback, b""
        self.track(parse_message(line) or {})
        return line

    def refuse(self, message: Mapping[str, Any]) -> None:
        """Note that the agent did not get a request, which the server has refused."""
        self._tracked.pop(message.get("id"), None)
        self.is_loading = False

    def note_id(self, params: Any) -> None:
        if isinstance(params, dict) and isinstance(params.get("sessionId"), str):
            self.session_id = params["sessionId"]

    def request_of(self, request_id: Any) -> tuple[str, Mapping[str, Any]] | None:
        """Return the method and the changes of the request that has a response now, if any."""
        return self._tracked.pop(request_id, None)

    def note_opened(self, method: str, result: Mapping[str, Any] | None) -> None:
        """Note the response to a request that opens the conversation; None if it was refused."""
        self.is_loading = False
        if result is not None:
            self.is_fresh = method == "session/new"
            self.note_id(result)

    def take_fresh(self) -> bool:
        """Whether the next prompt is the first of a new conversation; then note that it is sent."""
        fresh, self.is_fresh = self.is_fresh, False
        return fresh

    # A reload of the server.

    def pack(self) -> ConversationState:
        return ConversationState(
            session_id=self.session_id,
            is_fresh=self.is_fresh,
            is_loading=self.is_loading,
            tracked=[(key, method, dict(own)) for key, (method, own) in self._tracked.items()],
        )

    def restore(self, state: ConversationState) -> None:
        self.session_id = state.session_id
        self.is_fresh, self.is_loading = state.is_fresh, state.is_loading
        self._tracked = {key: (method, own) for key, method, own in state.tracked}
