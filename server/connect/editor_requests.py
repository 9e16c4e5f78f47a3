"""The requests of the editor that have no response yet, and the sessions that it has opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from . import rpc

MAX_KEPT_BYTES = 64 << 20
"""Bytes of requests that are kept in order to send them again."""
REPEATABLE = frozenset(
    {
        *("initialize", "authenticate", "logout"),
        *("session/new", "session/load", "session/resume", "session/list", "session/close"),
        *("session/delete", "session/prompt", "session/set_mode", "session/set_model"),
        *("session/set_config_option", "session/set_title"),
    }
)
"""The methods that may be sent again if the response was lost: the server does them once, or their
repetition changes nothing. A prompt has an id for that."""
OPENING = frozenset({"session/load", "session/resume"})
CLOSING = frozenset({"session/close", "session/delete"})
DEFAULT_PARAMS = {"cwd": "/", "mcpServers": []}
NOT_KEPT = frozenset({"_meta", "prompt"})


class SentRequest(msgspec.Struct):
    """A request without a response.

    Attributes:
        frame: the message for the server; empty if it was too much to keep.
        session: the id of its session, if it has one.
        prompt_id: the id that makes a prompt idempotent.
        connection: the number of the connection on which it was sent last.
        is_cancelled: the editor has cancelled it.
        is_repeated: it was sent on more than one connection.
        is_transient: it belongs to its connection and is never sent again.
        on_response: handles the response instead of passing it to the editor.
    """

    id: Any
    method: str
    params: dict[str, Any]
    frame: bytes
    session: str | None = None
    prompt_id: str | None = None
    connection: int = 0
    is_cancelled: bool = False
    is_repeated: bool = False
    is_transient: bool = False
    on_response: Callable[[rpc.RpcMessage], None] | None = None


class OpenSession(msgspec.Struct):
    """A session that the editor has opened.

    Attributes:
        params: of the request that opened it, to open it again.
        cursor: the position of the last log entry that the editor has; None if it is unknown.
    """

    id: str
    params: dict[str, Any]
    cursor: int | None

    @classmethod
    def of(cls, session_id: str, params: Mapping[str, Any], cursor: int | None) -> OpenSession:
        """A session that was opened with the parameters of a request."""
        kept = {name: part for name, part in params.items() if name not in NOT_KEPT}
        return cls(session_id, {**DEFAULT_PARAMS, **kept, "sessionId": session_id}, cursor)

    def note_position(self, result: Any) -> None:
        """Note the position in the response to the request that opened the session."""
        seq = rpc.extension_of(result).get("seq")
        if isinstance(seq, int) and self.cursor is None:
            self.cursor = seq


class EditorRequests:
    """The requests without a response, by their ids."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, SentRequest] = {}
        self._kept = 0

    def __iter__(self) -> Iterator[SentRequest]:
        return iter(tuple(self._by_key.values()))

    def add(self, sent: SentRequest) -> None:
        """Note a request. Its message is kept unless too many bytes are kept already."""
        self.take(sent.id)
        if self._kept + len(sent.frame) > MAX_KEPT_BYTES:
            sent.frame = b""
        self._kept += len(sent.frame)
        self._by_key[rpc.key(sent.id)] = sent

    def take(self, request_id: Any) -> SentRequest | None:
        """Remove the request with that id."""
        sent = self._by_key.pop(rpc.key(request_id), None)
        if sent is not None:
            self._kept -= len(sent.frame)
        return sent

    def cancelled_by(self, notification: rpc.RpcMessage) -> SentRequest | None:
        """The request that ``$/cancel_request`` cancels; None for another notification."""
        if notification["method"] != "$/cancel_request":
            return None
        return self._by_key.get(rpc.key(rpc.params_of(notification).get("requestId")))

    def take_all(self) -> list[SentRequest]:
        return [taken for sent in self if (taken := self.take(sent.id)) is not None]

    def prompts_of(self, session: str) -> Mapping[str, SentRequest]:
        """The prompts of a session without a response, by their prompt ids."""
        return {
            sent.prompt_id: sent
            for sent in self
            if sent.session == session and sent.prompt_id is not None
        }

    def opening(self, session: str) -> SentRequest | None:
        """The request that is opening a session, or None."""
        openings = [sent for sent in self if sent.session == session and sent.method in OPENING]
        return openings[-1] if openings else None
