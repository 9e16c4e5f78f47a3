"""What ``acpx prompt`` writes: the turn's messages, one a line, of both directions.

acpx tells of each message that goes to the agent or comes from it, without saying
which way it went. That follows from what it is: a client's requests are known by
name, every other request is the agent's, and an answer belongs to the request whose
id it has.
"""

from __future__ import annotations

from typing import Any, Protocol

from ...codec import parse_rpc
from ..settings import SESSION_METHODS, SETTERS

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
    """Whose turn it is."""

    def prompt_sent(self, *, fresh: bool) -> None:
        """The prompt goes to the agent; *fresh*: to a session that was made just before."""

    def notified(self, line: bytes, message: dict[str, Any]) -> None: ...

    def decided(self, params: Any, outcome: Any) -> None:
        """acpx has answered the agent's permission request."""

    def initialized(self, result: dict[str, Any]) -> None:
        """The agent's answer to ``initialize``."""

    def opened(self, result: dict[str, Any]) -> None:
        """The agent's answer to session/new, session/load or session/resume."""

    def answered(self, line: bytes, message: dict[str, Any]) -> None:
        """The answer to the prompt."""


class Transcript:
    """Reads the lines of one turn.

    Attributes:
        failure: acpx's own error, where it has told one: ``{code, message, data}``.
        refused, refusal: the agent could not load the session, and its error.
    """

    def __init__(self, teller: TranscriptObserver) -> None:
        self._teller = teller
        self._prompt_id: Any = None
        self._is_prompting = False
        self._fresh = False
        self._opening: dict[Any, str] = {}
        self._asked: dict[Any, Any] = {}
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
            self._read_answer(line, message)
        elif "id" in message:
            self._read_request(method, message)
        elif method != "session/cancel":  # the client's only notification
            self._teller.notified(line, message)

    def _read_request(self, method: str, message: dict[str, Any]) -> None:
        if method == "session/prompt":
            self._prompt_id = message["id"]
            self._is_prompting = True
            self._teller.prompt_sent(fresh=self._fresh)
        elif method in SESSION_METHODS or method == "initialize":
            self._opening[message["id"]] = method
        elif method not in _CLIENT_REQUESTS:
            params = message.get("params") if method == "session/request_permission" else None
            self._asked[message["id"]] = params

    def _read_answer(self, line: bytes, message: dict[str, Any]) -> None:
        answered, result = message["id"], message.get("result")
        if message["id"] is None:
            error = message.get("error")
            self.failure = error if isinstance(error, dict) else None
        elif self._ends_turn(message):
            self._is_prompting = False
            self._teller.answered(line, message)
        elif answered in self._asked:
            params = self._asked.pop(answered)
            if params is not None:
                outcome = result.get("outcome") if isinstance(result, dict) else None
                self._teller.decided(params, outcome or {"outcome": "cancelled"})
        elif (method := self._opening.pop(answered, None)) is not None:
            self._read_opening(method, result, message.get("error"))

    def _read_opening(self, method: str, result: Any, error: Any) -> None:
        if method == "initialize":
            if isinstance(result, dict):
                self._teller.initialized(result)
            return
        self._fresh = method == "session/new"
        if isinstance(result, dict):
            self._teller.opened(result)
        else:
            self.refused, self.refusal = True, error

    def _ends_turn(self, message: dict[str, Any]) -> bool:
        if not self._is_prompting or message["id"] != self._prompt_id:
            return False
        # The agent numbers its requests as it likes, also as acpx has numbered the prompt.
        result = message.get("result")
        return message["id"] not in self._asked or (
            isinstance(result, dict) and "stopReason" in result
        )
