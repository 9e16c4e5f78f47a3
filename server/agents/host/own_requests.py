"""The server's own requests to an agent. acpx sees neither them nor the responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ...codec import dumps
from .. import steering
from .conversation import ProxiedConversation

OWN_ID = "clawdforge-%d"
"""The id of a request of the server. acpx's ids are numbers."""

OnResponse = Callable[[dict[str, Any] | None], None]
"""Is called with the agent's response, in the order of its output; None if its process ended."""


class OwnRequestsState(msgspec.Struct, kw_only=True):
    """The requests for the next version of the server.

    Attributes:
        count: of all requests so far.
        open: the ids of those without a response.
    """

    count: int
    open: list[str]


def _ignore(_: dict[str, Any] | None) -> None:
    """Ignore the response to a request of an earlier version of the server."""


class OwnRequests:
    """The server's messages to one agent process, and its requests without a response.

    Args:
        write: writes a line to the agent.
    """

    def __init__(self, write: Callable[[bytes], None], conversation: ProxiedConversation) -> None:
        self._write = write
        self._conversation = conversation
        self._pending: dict[str, OnResponse] = {}
        self._count = 0
        self._is_over = False

    @property
    def session_id(self) -> str | None:
        """The agent's own id of the session, once it is known."""
        return self._conversation.session_id

    def send(self, method: str, params: bytes, on_response: OnResponse) -> str:
        """Send a request with the JSON *params*, and return its id."""
        self._count += 1
        request_id = OWN_ID % self._count
        if self._is_over:
            on_response(None)
            return request_id
        self._pending[request_id] = on_response
        self._write(
            b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}'
            % (dumps(request_id), dumps(method), params)
        )
        return request_id

    async def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request in the agent's session. acpx sees neither it nor the response.

        Returns:
            The agent's response.

        Raises:
            ConnectionError: the process has ended.
        """
        return await self.call(method, {"sessionId": self._conversation.session_id, **params})

    def steer(self, blocks: bytes, on_response: OnResponse) -> str:
        """Ask the agent to add a prompt, JSON of its content blocks, to the running turn.

        Returns:
            The id of the request.
        """
        params = steering.params(dumps(self._conversation.session_id), blocks)
        return self.send(steering.METHOD, params, on_response)

    def cancel(self, subagent: str | None = None) -> None:
        """Ask the agent to end the running turn, or the work of the session of a subagent."""
        params = {"sessionId": subagent or self._conversation.session_id}
        self._write(dumps({"jsonrpc": "2.0", "method": "session/cancel", "params": params}))

    def respond(self, raw_id: Any, result: Mapping[str, Any]) -> None:
        """Respond to a request of the agent."""
        self._write(dumps({"jsonrpc": "2.0", "id": raw_id, "result": result}))

    async def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, and return the agent's response.

        Raises:
            ConnectionError: the process has ended.
        """
        response: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()

        def resolve(message: dict[str, Any] | None) -> None:
            if not response.done():
                response.set_result(message)

        request_id = self.send(method, dumps(params), resolve)
        try:
            message = await response
        finally:
            self._pending.pop(request_id, None)
        if message is None:
            raise ConnectionResetError
        return message

    def handle(self, response: dict[str, Any]) -> bool:
        """Handle a response of the agent. Return whether it answers one of these requests."""
        on_response = self._pending.pop(response["id"], None)
        if on_response is None:
            return False
        on_response(response)
        return True

    def end(self) -> None:
        """Note that the process has ended: no request gets a response any more."""
        self._is_over = True
        pending, self._pending = self._pending, {}
        for on_response in pending.values():
            on_response(None)

    # A reload of the server.

    def pack(self) -> OwnRequestsState:
        return OwnRequestsState(count=self._count, open=[*self._pending])

    def restore(self, state: OwnRequestsState) -> None:
        """Await the responses to the requests of an earlier version; see :meth:`await_response`."""
        self._count = state.count
        self._pending = dict.fromkeys(state.open, _ignore)

    def await_response(self, request_id: str | None, on_response: OnResponse) -> bool:
        """Call *on_response* for a request of an earlier version. False if it is not pending."""
        if request_id is None or request_id not in self._pending:
            return False
        self._pending[request_id] = on_response
        return True
