"""The requests of an ACP client: their responses, their cancellation, and their number."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ..errors import Error, ErrorCode, failure_of
from ..tasks import Tasks
from . import jsonrpc
from .jsonrpc import JsonRpcError

MAX_PENDING_REQUESTS = 16
"""Requests of one connection that may wait for agents at once."""


class Requests:
    """The requests of one connection.

    Args:
        send: sends a message to the client.
        name: of the connection, for the server's log.

    Attributes:
        max_pending: how many requests may wait for agents at once.
    """

    def __init__(self, send: Callable[[bytes], None], tasks: Tasks, name: str) -> None:
        self.max_pending = MAX_PENDING_REQUESTS
        self._send = send
        self._tasks = tasks
        self._name = name
        self._pending = 0
        self._cancels: dict[bytes, Callable[[], object]] = {}

    def respond(self, request: jsonrpc.Request, result: Any) -> None:
        self._send(jsonrpc.encode_result(request.id, result))

    async def execute(self, request: jsonrpc.Request, call: Awaitable[None]) -> None:
        """Await *call*; an exception becomes the response."""
        try:
            await call
        except JsonRpcError as error:
            self._send(jsonrpc.encode_error(request.id, error))
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, f"{request.method} of {self._name}")
            self._send(jsonrpc.encode_error(request.id, JsonRpcError.from_error(failure)))

    def execute_in_background(
        self, request: jsonrpc.Request, call: Coroutine[Any, Any, None]
    ) -> None:
        """Run a call that may wait for an agent, without holding up the reader.

        Raises:
            Error: ``rate_limited``.
        """
        try:
            self.check_limit()
        except Error:
            call.close()
            raise
        self._pending += 1
        task = self._tasks.spawn(self.execute(request, call), f"{request.method} of {self._name}")

        def finish(task: asyncio.Task[None]) -> None:
            # Not in the task itself: a task that is cancelled before it starts runs no code.
            call.close()
            self._pending -= 1
            self.forget(request)
            if task.cancelled():
                error = JsonRpcError(jsonrpc.REQUEST_CANCELLED, "cancelled")
                self._send(jsonrpc.encode_error(request.id, error))

        task.add_done_callback(finish)
        self.allow_cancel(request, task.cancel)

    def check_limit(self) -> None:
        """Check that one more request may wait for an agent.

        Raises:
            Error: ``rate_limited``.
        """
        if self._pending >= self.max_pending:
            raise Error(ErrorCode.RATE_LIMITED, "too many requests are pending")

    def allow_cancel(self, request: jsonrpc.Request, cancel: Callable[[], object]) -> None:
        """Call *cancel* if the client cancels the request."""
        self._cancels[request.key] = cancel

    def forget(self, request: jsonrpc.Request) -> None:
        """Note that the request has its response and can no longer be cancelled."""
        self._cancels.pop(request.key, None)

    def cancel(self, key: bytes) -> None:
        """Cancel the request with that key, if it is pending."""
        cancel = self._cancels.get(key)
        if cancel is not None:
            cancel()
