"""Reads the output of ``acpx prompt``: the turn's messages in both directions, one a line.

acpx does not write the direction of a message. It follows from the message itself: a client's
requests are known by name, every other request is the agent's, and a response belongs to the
request that has its id.
"""

from __future__ import annotations

from typing import Any, Protocol

from ...codec import parse_rpc
from ..acp_methods import SESSION_METHODS, SETTERS

_CLIENT_REQUESTS = (
    SESSION_METHODS
    | SETTERS
    | {
        "initialize",
        "authenticate",
        "session/close",
    }
)


class TranscriptObserver(Protocol):
    """The receiver of a turn's events."""

    def prompt_sent(self, *, fresh: bool) -> None:
        """The prompt goes to the agent.

        Args:
            fresh: the session was made immediately before.
        """

    def notification_received(self, line: bytes, message: dict[str, Any]) -> None: ...

    def permission_decided(self, params: Any, outcome: Any) -> None:
        """acpx has decided the agent's permission request."""

    def initialized(self, result: dict[str, Any]) -> None:
        """The agent has responded to ``initialize``."""

    def session_opened(self, result: dict[str, Any]) -> None:
        """The agent has responded to session/new, session/load or session/resume."""

    def response_received(self, line: bytes, message: dict[str, Any]) -> None:
        """The agent has responded to the prompt."""


class Transcript:
    """Reads the lines of one turn.

    Attributes:
        failure: acpx's own error, if it wrote one: ``{code, message, data}``.
        refused, refusal: whether the agent could not load the session, and its error.
    """

    def __init__(self, observer: TranscriptObserver) -> None:
        self._observer = observer
        self._prompt_id: Any = None
        self._is_prompting = False
        self._fresh = False
        self._opening: dict[Any, str] = {}
        self._agent_requests: dict[Any, Any] = {}
        self.failure: dict[str, Any] | None = None
        self.refused = False
        self.refusal: Any = None

    def read(self, line: bytes) -> None:
        """Read one line; anything other than a JSON-RPC message is skipped."""
        message = parse_rpc(line)
        if message is None:
            return
        method = message.get("method")
        if method is None:
            self._read_response(line, message)
        elif "id" in message:
            self._read_request(method, message)
        elif method != "session/cancel":  # the client's only notification
            self._observer.notification_received(line, message)

    def _read_request(self, method: str, message: dict[str, Any]) -> None:
        if method == "session/prompt":
            self._prompt_id = message["id"]
            self._is_prompting = True
            self._observer.prompt_sent(fresh=self._fresh)
        elif method in SESSION_METHODS or method == "initialize":
            self._opening[message["id"]] = method
        elif method not in _CLIENT_REQUESTS:
            params = message.get("params") if method == "session/request_permission" else None
            self._agent_requests[message["id"]] = params

    def _read_response(self, line: bytes, message: dict[str, Any]) -> None:
        request_id, result = message["id"], message.get("result")
        if request_id is None:
            error = message.get("error")
            self.failure = error if isinstance(error, dict) else None
        elif self._ends_turn(message):
            self._is_prompting = False
            self._observer.response_received(line, message)
        elif request_id in self._agent_requests:
            params = self._agent_requests.pop(request_id)
            if params is not None:
                outcome = result.get("outcome") if isinstance(result, dict) else None
                self._observer.permission_decided(params, outcome or {"outcome": "cancelled"})
        elif (method := self._opening.pop(request_id, None)) is not None:
            self._read_opening(method, result, message.get("error"))

    def _read_opening(self, method: str, result: Any, error: Any) -> None:
        if method == "initialize":
            if isinstance(result, dict):
                self._observer.initialized(result)
            return
        self._fresh = method == "session/new"
        if isinstance(result, dict):
            self._observer.session_opened(result)
        else:
            self.refused, self.refusal = True, error

    def _ends_turn(self, message: dict[str, Any]) -> bool:
        if not self._is_prompting or message["id"] != self._prompt_id:
            return False
        # A request of the agent may have the same id as the prompt.
        result = message.get("result")
        return message["id"] not in self._agent_requests or (
            isinstance(result, dict) and "stopReason" in result
        )
