"""Passes ACP messages between an editor and a server whose connection may be lost. No I/O.

The editor sees one agent that never restarts. After a reconnect, the relay initializes the new
connection, opens the editor's sessions at the positions that the editor has reached, asks for the
responses that are due, and sends what the server has not received.
"""

from __future__ import annotations

import enum
import itertools
import uuid
from collections.abc import Callable
from typing import Any

from ..codec import parse_message
from . import rpc
from .agent_requests import AgentRequests
from .editor_requests import CLOSING, OPENING, EditorRequests, OpenSession, SentRequest
from .failure import ConnectError
from .reopening import Reopening
from .stdio import MAX_EDITOR_LINE_BYTES

RELAY_ID = "clawdforge-connect-%d"
MAX_MESSAGE_BYTES = 16 << 20
"""Bytes of the largest message from the server, which shortens larger ones."""
ENTRIES_START = b'{"jsonrpc":"2.0","method":"_clawdforge/entries",'


class RelayState(enum.Enum):
    """The state of the connection to the server."""

    LOST = "lost"
    """There is none."""
    REOPENING = "reopening"
    """The connection is being initialized, or its sessions are being opened."""
    OPEN = "open"
    """The editor's messages may be sent."""


class Relay:
    """The state that outlives connections.

    The methods append messages to :attr:`to_editor` and :attr:`to_server`; the caller sends them.

    Args:
        session: the id of the session that replaces the editor's first new one, or None.

    Attributes:
        state: of the connection.
        must_reconnect: the connection cannot be used; the caller must replace it.
    """

    def __init__(self, session: str | None = None) -> None:
        self.to_editor: list[bytes] = []
        self.to_server: list[bytes] = []
        self.state = RelayState.LOST
        self.must_reconnect = False
        self._named_session = session
        self._has_named_session = False
        self._initialize: dict[str, Any] | None = None
        self._sent = EditorRequests()
        self._agent_requests = AgentRequests()
        self._sessions: dict[str, OpenSession] = {}
        self._group: tuple[str, int, int] | None = None  # session, position, messages to come
        self._held: list[bytes] = []
        self._connection = 0
        self._reopening: Reopening | None = None
        self._own_ids = itertools.count(1)

    # The editor

    def receive_line(self, line: bytes) -> None:
        """Handle a line of the editor."""
        message = parse_message(line)
        if message is None:
            self._refuse(None, rpc.PARSE_ERROR_CODE, "not a JSON object")
        elif "method" not in message:
            if (response := self._agent_requests.handle_response(message)) is not None:
                self.to_server.append(response)
        elif "id" not in message:
            self._receive_notification(message, line)
        elif not isinstance(message["method"], str):
            self._refuse(message["id"], rpc.INVALID_REQUEST_CODE, "method: must be a string")
        else:
            self._receive_request(message, line)

    def refuse_line(self, raw_id: bytes) -> None:
        """Respond to a message of the editor that is too long; *raw_id* is the JSON of its id."""
        self.to_editor.append(rpc.raw_error(raw_id, rpc.INVALID_PARAMS_CODE, rpc.TOO_LARGE))

    def _refuse(self, request_id: Any, code: int, text: str) -> None:
        self.to_editor.append(rpc.error_message(request_id, code, text))

    def _receive_notification(self, message: rpc.RpcMessage, line: bytes) -> None:
        params = rpc.params_of(message)
        if message["method"] == "session/cancel":
            for sent in self._sent:
                if sent.prompt_id is not None and sent.session == params.get("sessionId"):
                    sent.is_cancelled = True
        elif (cancelled := self._sent.cancelled_by(message)) is not None:
            cancelled.is_cancelled = True
        if self._initialize is not None:
            self.to_server.append(line)

    def _receive_request(self, message: rpc.RpcMessage, line: bytes) -> None:
        request_id, method, params = message["id"], message["method"], rpc.params_of(message)
        if self._initialize is None:
            if method != "initialize":
                text = "the first message must be initialize"
                self._refuse(request_id, rpc.INVALID_REQUEST_CODE, text)
                return
            limit = rpc.extension_of(params).get("maxMessageBytes", MAX_MESSAGE_BYTES)
            self._initialize = params = rpc.with_extension(
                params, positions=True, maxMessageBytes=limit
            )
            line = rpc.request_message(request_id, method, params)
        if method == "session/new" and self._named_session is not None:
            self._open_named_session(request_id, params)
            return
        session = params.get("sessionId")
        sent = SentRequest(request_id, method, params, line)
        sent.session = session if isinstance(session, str) else None
        if method == "session/prompt":
            given = rpc.extension_of(params).get("promptId")
            sent.prompt_id = given if isinstance(given, str) else str(uuid.uuid4())
            sent.params = {}  # the frame has them
            params = rpc.with_extension(params, promptId=sent.prompt_id)
            sent.frame = rpc.request_message(request_id, method, params)
        elif method in OPENING and sent.session is not None:
            cursor = 0 if method == "session/load" else None
            self._sessions[sent.session] = OpenSession.of(sent.session, params, cursor)
        self._send(sent)

    def _send(self, sent: SentRequest) -> None:
        if len(sent.frame) > MAX_EDITOR_LINE_BYTES:
            self._refuse(sent.id, rpc.INVALID_PARAMS_CODE, rpc.TOO_LARGE)
            return
        sent.connection = self._connection
        self.to_server.append(sent.frame)
        self._sent.add(sent)

    def _request(
        self,
        method: str,
        params: dict[str, Any],
        on_response: Callable[[rpc.RpcMessage], None],
        **fields: Any,
    ) -> None:
        """Send a request of the relay's own."""
        own_id = RELAY_ID % next(self._own_ids)
        frame = rpc.request_message(own_id, method, params)
        self._send(SentRequest(own_id, method, params, frame, on_response=on_response, **fields))

    def _open_named_session(self, request_id: Any, params: dict[str, Any]) -> None:
        """Respond to a request for a new session with the user's one, then replay it."""
        session = str(self._named_session)
        if self._has_named_session:
            text = f"this command serves the session {session} only, which is open already"
            self._refuse(request_id, rpc.INVALID_PARAMS_CODE, text)
            return
        self._has_named_session = True
        opened = OpenSession.of(session, params, 0)

        def respond(message: rpc.RpcMessage) -> None:
            settings = message.get("result")
            if not isinstance(settings, dict):
                self._has_named_session = False
                self.to_editor.append(rpc.with_id(message, request_id))
                return
            self.to_editor.append(
                rpc.result_message(request_id, {"sessionId": session, **settings})
            )
            self._sessions[session] = opened
            self._request("session/load", opened.params, lambda _: None, session=session)

        self._request("session/resume", opened.params, respond)

    # The server

    def receive_frame(self, frame: bytes) -> None:
        """Handle a message of the server. Messages of a group are held until it is complete."""
        if self._group is None:
            if not frame.startswith(ENTRIES_START):
                self._deliver(frame)
            elif (group := rpc.params_of(parse_message(frame) or {})).get("messages"):
                self._group = group["sessionId"], group["seq"], group["messages"]
            return
        session_id, seq, missing = self._group
        self._held.append(frame)
        if missing > 1:
            self._group = session_id, seq, missing - 1
            return
        held, self._held, self._group = self._held, [], None
        session = self._sessions.setdefault(session_id, OpenSession.of(session_id, {}, seq))
        session.cursor = seq
        for message in held:
            self._deliver(message)

    def _deliver(self, frame: bytes) -> None:
        if frame.startswith(rpc.UPDATE_START) and b'"closed"' not in frame:
            self.to_editor.append(rpc.as_one_line(frame))
            return
        message = parse_message(frame)
        if message is None:
            return
        if "method" not in message:
            self._deliver_response(message, frame)
        elif "id" in message:
            for_editor, for_server = self._agent_requests.receive(message)
            if for_editor is not None:
                self.to_editor.append(for_editor)
            if for_server is not None:
                self.to_server.append(for_server)
        elif message["method"] == "$/cancel_request":
            withdrawn = self._agent_requests.withdraw(rpc.params_of(message).get("requestId"))
            if withdrawn is not None:
                self.to_editor.append(withdrawn)
        else:
            params = rpc.params_of(message)
            if "closed" in rpc.extension_of(params.get("update")):
                self._sessions.pop(str(params.get("sessionId")), None)
            self.to_editor.append(rpc.as_one_line(frame))

    def _deliver_response(self, message: rpc.RpcMessage, frame: bytes) -> None:
        sent = self._sent.take(message.get("id"))
        if sent is None:
            if message.get("id") is None:  # the server could not read a message
                self.to_editor.append(rpc.as_one_line(frame))
            return
        if sent.on_response is not None:
            sent.on_response(message)
        else:
            if (
                sent.is_repeated
                and sent.method in CLOSING
                and (rpc.error_code(message) == rpc.NOT_FOUND_CODE)
            ):
                message = {"result": {}}  # the first try succeeded; its response was lost
                frame = rpc.result_message(sent.id, {})
            self._note_response(sent, message.get("result"))
            self.to_editor.append(rpc.as_one_line(frame))
        if (reopening := self._reopening) is not None:
            self.to_editor += reopening.note_response(sent, message)
            self._continue_reopening(reopening)

    def _note_response(self, sent: SentRequest, result: Any) -> None:
        """Note the sessions that a response opens or closes."""
        if not isinstance(result, dict):
            if sent.method == "initialize":
                self._initialize = None
            elif sent.method in OPENING:
                self._sessions.pop(sent.session or "", None)
        elif sent.method in CLOSING:
            self._sessions.pop(sent.session or "", None)
        elif sent.method in OPENING and sent.session in self._sessions:
            self._sessions[sent.session].note_position(result)
        elif isinstance(session_id := result.get("sessionId"), str):  # a new one, or a fork
            opened = OpenSession.of(session_id, sent.params, None)
            self._sessions[session_id] = opened
            opened.note_position(result)

    # Connections

    def connect(self) -> None:
        """Begin with a new connection."""
        self._connection += 1
        self.must_reconnect = False
        if self._initialize is None:
            self.state = RelayState.OPEN
            return
        self.state = RelayState.REOPENING
        self._reopening = Reopening(
            self._sessions, self._sent, self._agent_requests, self._connection
        )
        for sent in self._sent:
            if sent.method == "initialize":
                self._send(sent)
                return
        self._request("initialize", self._initialize, lambda _: None, is_transient=True)

    def _continue_reopening(self, reopening: Reopening) -> None:
        """Send the next requests of the reopening. If it waits for none, it has ended."""
        self.must_reconnect = reopening.has_failed
        for session, params in reopening.take_resumes():
            fields = {"session": session, "is_transient": True}
            self._request("session/resume", params, lambda _: None, **fields)
        self.to_server += reopening.take_frames()
        if reopening.is_waiting or reopening.has_failed:
            return
        self._reopening = None
        self.state = RelayState.OPEN
        for sent in reopening.unsent_requests():
            self._send(sent)
        self.to_editor += reopening.errors
        self.to_server += reopening.cancellations()

    def disconnect(self) -> None:
        """Note that the connection is lost."""
        self.state = RelayState.LOST
        self.to_server.clear()
        self._reopening = None
        self._group, self._held = None, []
        self.to_editor += self._agent_requests.disconnect()
        for sent in self._sent:
            if sent.is_transient:
                self._sent.take(sent.id)

    def fail(self, error: ConnectError) -> None:
        """Respond to every request of the editor with an error."""
        failed = {"error": {"code": error.rpc_code, "message": error.message}}
        for sent in self._sent.take_all():
            if sent.on_response is None:
                self.to_editor.append(rpc.with_id(failed, sent.id))
            else:
                sent.on_response(failed)
