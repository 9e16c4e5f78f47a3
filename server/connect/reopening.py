"""Restores the editor's sessions and requests on a new connection. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import rpc
from .agent_requests import AgentRequests
from .editor_requests import OPENING, REPEATABLE, EditorRequests, OpenSession, SentRequest
from .failure import INTERNAL_CODE

LOST = "the connection to the server was lost before the response; what became of it is not known"


class Reopening:
    """One attempt. It waits for the response to ``initialize``, then for those of all sessions.

    Args:
        connection: the number of the new connection.

    Attributes:
        has_failed: the server refused; the connection is of no use.
        errors: responses for the editor to requests that cannot be sent again.
    """

    def __init__(
        self,
        sessions: dict[str, OpenSession],
        sent: EditorRequests,
        agent_requests: AgentRequests,
        connection: int,
    ) -> None:
        self.has_failed = False
        self.errors: list[bytes] = []
        self._sessions = sessions
        self._sent = sent
        self._agent_requests = agent_requests
        self._connection = connection
        self._is_initialized = False
        self._waiting: set[str] = set()
        self._reopened: set[str] = set()
        self._unknown_prompts: set[str] = set()
        self._resumes: list[tuple[str, dict[str, Any]]] = []
        self._frames: list[bytes] = []

    @property
    def is_waiting(self) -> bool:
        return not self._is_initialized or bool(self._waiting)

    def take_resumes(self) -> list[tuple[str, dict[str, Any]]]:
        """The sessions to resume now, each with its parameters."""
        resumes, self._resumes = self._resumes, []
        return resumes

    def take_frames(self) -> list[bytes]:
        """Other messages to send now."""
        frames, self._frames = self._frames, []
        return frames

    def note_response(self, sent: SentRequest, message: rpc.RpcMessage) -> list[bytes]:
        """Handle a response on the new connection. Returns messages for the editor."""
        if sent.method == "initialize":
            self.has_failed = "result" not in message
            self._is_initialized = True
            for session in tuple(self._sessions.values()):
                self._reopen(session)
        elif sent.method in OPENING and sent.session in self._waiting:
            self._waiting.discard(sent.session)
            return self._note_opened(sent, message)
        return []

    def _reopen(self, session: OpenSession) -> None:
        self._waiting.add(session.id)
        prompts = self._sent.prompts_of(session.id)
        fields: dict[str, Any] = {"prompts": {name: sent.id for name, sent in prompts.items()}}
        if session.cursor is not None:
            fields["after"] = session.cursor
        opening = self._sent.opening(session.id)
        if opening is None:
            self._resumes.append((session.id, rpc.with_extension(session.params, **fields)))
        else:  # the editor waits for it: a replay continues where it was interrupted
            opening.connection = self._connection
            params = rpc.with_extension(opening.params, **fields)
            self._frames.append(rpc.request_message(opening.id, opening.method, params))

    def _note_opened(self, sent: SentRequest, message: rpc.RpcMessage) -> list[bytes]:
        session_id = str(sent.session)
        session = self._sessions.get(session_id)
        code = rpc.error_code(message)
        if code is None:
            extension = rpc.extension_of(message.get("result"))
            self._reopened.add(session_id)
            self._unknown_prompts.update(extension.get("unknownPrompts", ()))
            if session is not None:
                session.note_position(message.get("result"))
            pending = extension.get("pendingRequests")
            return (
                self._agent_requests.keep_only(session_id, pending) if pending is not None else []
            )
        if code == rpc.INVALID_PARAMS_CODE and session is not None and session.cursor is not None:
            session.cursor = None  # the server's log went back: continue at its end
            self._reopen(session)
        elif code == rpc.NOT_FOUND_CODE:
            self._sessions.pop(session_id, None)
            prompts = self._sent.prompts_of(session_id).values()
            return [rpc.with_id(message, sent.id) for sent in prompts if self._sent.take(sent.id)]
        else:
            self.has_failed = True
        return []

    def unsent_requests(self) -> Iterator[SentRequest]:
        """The requests to send again. Those that must not be repeated get an error."""
        for sent in self._sent:
            if sent.connection == self._connection:
                continue
            if self._is_known(sent):
                sent.connection = self._connection
            elif sent.method in REPEATABLE and sent.frame:
                sent.is_repeated = True
                yield sent
            else:
                self._sent.take(sent.id)
                self.errors.append(rpc.error_message(sent.id, INTERNAL_CODE, LOST, retryable=True))

    def _is_known(self, sent: SentRequest) -> bool:
        """Whether the server has the prompt of a request, and will respond to it."""
        is_prompt = sent.prompt_id is not None and sent.session in self._reopened
        return is_prompt and sent.prompt_id not in self._unknown_prompts

    def cancellations(self) -> list[bytes]:
        """The cancellations of requests that have no response yet, which may have been lost."""
        return [
            rpc.notification_message("$/cancel_request", {"requestId": sent.id})
            for sent in self._sent
            if sent.is_cancelled
        ]
