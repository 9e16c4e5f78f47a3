"""The server's own requests to an agent. acpx sees neither them nor the responses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from ...codec import dumps

OWN_ID = "clawdforge-%d"
"""The id of a request of the server. acpx's ids are numbers."""

OnResponse = Callable[[dict[str, Any] | None], None]
"""Is called with the agent's response, in the order of its output; None if its process ended."""


class OwnRequests:
    """The server's requests to one agent process.

    Args:
        write: writes a line to the agent.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._pending: dict[Any, OnResponse] = {}
        self._ids = itertools.count(1)
        self._is_over = False

    def send(self, method: str, params: bytes, on_response: OnResponse) -> str:
        """Send a request with the JSON *params*, and return its id."""
        request_id = OWN_ID % next(self._ids)
        if self._is_over:
            on_response(None)
            return request_id
        self._pending[request_id] = on_response
        self._write(
            b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}'
            % (dumps(request_id), dumps(method), params)
        )
        return request_id

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
