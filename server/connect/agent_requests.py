"""The requests of agents to the editor, which outlive a connection to the server.

The server numbers its requests on each connection from 1, and repeats those that are pending.
The editor gets each request once, with an id of the bridge.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import msgspec

from ..codec import dumps
from . import rpc

MAX_ANSWERED = 100
"""Answered requests that are remembered, in case the server has not received the answer."""


class AgentRequest(msgspec.Struct):
    """A request that the editor has got.

    Attributes:
        id: of the request to the editor.
        name: the session and the session's id of the request, which are the same on every
            connection; None if the server has not named it.
        server_id: its id on the current connection; None if the server has not repeated it.
        answer: the editor's response, without its id.
    """

    id: int
    session: str
    name: tuple[str, str] | None
    server_id: Any
    answer: dict[str, Any] | None = None

    def response(self) -> bytes:
        """The editor's response for the server."""
        return dumps({"jsonrpc": "2.0", "id": self.server_id, **(self.answer or {})})


class AgentRequests:
    """The requests that wait for the editor, and the newest that it has answered."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._waiting: dict[int, AgentRequest] = {}
        self._answered: OrderedDict[int, AgentRequest] = OrderedDict()

    def receive(self, message: rpc.RpcMessage) -> tuple[bytes | None, bytes | None]:
        """Handle a request of the server.

        Returns:
            The request for the editor, if it does not have it, and the response for the server, if
            the editor has given it.
        """
        params = rpc.params_of(message)
        session = params.get("sessionId")
        session = session if isinstance(session, str) else ""
        request_id = rpc.extension_of(params).get("requestId")
        name = (session, request_id) if isinstance(request_id, str) else None
        known = self._find(name) if name is not None else None
        if known is None:
            new = AgentRequest(next(self._ids), session, name, message["id"])
            self._waiting[new.id] = new
            return dumps({**message, "id": new.id}), None
        known.server_id = message["id"]
        return None, known.response() if known.answer is not None else None

    def handle_response(self, message: rpc.RpcMessage) -> bytes | None:
        """Handle a response of the editor. Returns the response for the server, if it waits."""
        request_id = message.get("id")
        answered = self._waiting.pop(request_id, None) if isinstance(request_id, int) else None
        if answered is None:
            return None  # the request was withdrawn, or never made
        answered.answer = {
            name: part for name, part in message.items() if name in ("result", "error")
        }
        if answered.name is not None:
            self._answered[answered.id] = answered
            if len(self._answered) > MAX_ANSWERED:
                self._answered.popitem(last=False)
        return answered.response() if answered.server_id is not None else None

    def withdraw(self, server_id: Any) -> bytes | None:
        """Handle the server's cancellation of a request. Returns it for the editor."""
        for waiting in self._waiting.values():
            if waiting.server_id is not None and waiting.server_id == server_id:
                return self._withdraw(waiting)
        return None

    def disconnect(self) -> list[bytes]:
        """Note that the connection is lost. Returns cancellations for the editor."""
        for request in (*self._waiting.values(), *self._answered.values()):
            request.server_id = None
        nameless = [request for request in self._waiting.values() if request.name is None]
        return [self._withdraw(request) for request in nameless]

    def keep_only(self, session: str, pending: list[str]) -> list[bytes]:
        """Forget the requests of a session that have an outcome by now.

        Args:
            pending: the server's ids of those that have none.

        Returns:
            Cancellations for the editor.
        """
        over = [
            request
            for request in (*self._waiting.values(), *self._answered.values())
            if request.session == session
            and (request.name is None or request.name[1] not in pending)
        ]
        for request in over:
            self._answered.pop(request.id, None)
        return [self._withdraw(request) for request in over if request.id in self._waiting]

    def _find(self, name: tuple[str, str]) -> AgentRequest | None:
        for request in (*self._waiting.values(), *self._answered.values()):
            if request.name == name:
                return request
        return None

    def _withdraw(self, request: AgentRequest) -> bytes:
        del self._waiting[request.id]
        return rpc.notification_message("$/cancel_request", {"requestId": request.id})
