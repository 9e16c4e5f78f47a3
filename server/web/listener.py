"""The listener: accepts connections, and bounds those that are not authenticated.

A connection that has not sent a whole request costs a descriptor and has no identity. It holds a
slot for unauthenticated connections (:class:`limits.ConcurrencyLimit`) until its first request is
complete. If no slot is free, or if the request takes too long, the connection is aborted.

A connection whose last request had no credential is bounded while it is idle as well: above the
limit the one that has been idle longest is closed. A connection whose client accepts no data is
aborted.

A single connection is accepted immediately. Bursts are paced, so that accepting them does not delay
connected clients: a socket and the entries that it has missed take half a millisecond of the event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from aiohttp import web

from ..errors import Error
from ..limits import ConcurrencyLimit
from ..tasks import Supervisor, Tasks
from .accepting import PAUSE_SECS, accept_connections
from .request_handler import BoundedRequestHandler

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that may wait in the kernel to be accepted."""


class Listener:
    """Accepts connections, and watches those that are not WebSockets.

    Args:
        slots: for connections that are not authenticated yet.
        request_timeout: seconds that the first request of a connection may take.
        stall_timeout: seconds after which a client that accepts no data is disconnected.
        supervisor: of the tasks that accept connections.
        pause: seconds between the connections of a burst.
    """

    def __init__(
        self,
        slots: ConcurrencyLimit,
        request_timeout: float,
        stall_timeout: float = 30,
        supervisor: Supervisor | None = None,
        *,
        pause: float = PAUSE_SECS,
    ) -> None:
        self._supervisor = supervisor or Supervisor()
        self._slots = slots
        self._request_timeout = request_timeout
        self._stall_timeout = stall_timeout
        self._pause = pause
        self._connections: set[BoundedRequestHandler] = set()
        self._listening: list[socket.socket] = []
        self.make_connection: Callable[[], BoundedRequestHandler]
        self._accepting = Tasks()
        # Unauthenticated connections between two requests, the one that is idle longest first.
        self._idle: dict[BoundedRequestHandler, None] = {}

    @contextlib.asynccontextmanager
    async def open(
        self, runner: web.AppRunner, host: str, port: int, inherited: Sequence[int] = ()
    ) -> AsyncIterator[int]:
        """Listen for *runner*, which has been set up.

        Args:
            inherited: the descriptors of the sockets at which an earlier version of the server
                listens.

        Yields:
            The port, which the kernel chooses if *port* is 0.

        Raises:
            OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        handlers = runner.server
        assert handlers is not None

        def make_connection() -> BoundedRequestHandler:
            return BoundedRequestHandler(self, handlers, loop)

        self.make_connection = make_connection
        tasks = Tasks()
        async with contextlib.AsyncExitStack() as stack:
            descriptors = [*inherited]
            if not descriptors:
                # asyncio would accept the whole backlog at once, so it only binds.
                bound = await loop.create_server(make_connection, host, port, start_serving=False)
                stack.callback(bound.close)
                descriptors = [os.dup(original.fileno()) for original in bound.sockets]
            self._listening = [
                stack.enter_context(socket.socket(fileno=descriptor)) for descriptor in descriptors
            ]
            stack.push_async_callback(tasks.finish, 0)
            stack.push_async_callback(self._accepting.finish, 0)
            for listening in self._listening:
                listening.setblocking(False)
                listening.listen(BACKLOG)
            self.start_accepting()
            self._supervisor.spawn(tasks, "stalled-connections", self._abort_stalled)
            yield self._listening[0].getsockname()[1]

    def start_accepting(self) -> None:
        for listening in self._listening:
            accept = partial(accept_connections, listening, self.make_connection, self._pause)
            self._supervisor.spawn(self._accepting, "accept-connections", accept)

    async def stop_accepting(self) -> None:
        """Leave further connections in the backlog."""
        await self._accepting.finish(0)

    async def adopt(self, descriptor: int) -> BoundedRequestHandler:
        """Serve a connection that an earlier version of the server has accepted."""
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        return (await loop.connect_accepted_socket(self.make_connection, connection))[1]

    @property
    def connections(self) -> frozenset[BoundedRequestHandler]:
        """The connections that are not WebSockets."""
        return frozenset(self._connections)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors of the listening sockets."""
        return [listening.fileno() for listening in self._listening]

    def acquire_slot(
        self, connection: BoundedRequestHandler, address: str
    ) -> contextlib.ExitStack | None:
        """Return a slot for *connection*, which is released by closing it; None if none is free."""
        slot = contextlib.ExitStack()
        try:
            slot.enter_context(self._slots.acquire(address))
        except Error:
            return None
        timer = asyncio.get_running_loop().call_later(self._request_timeout, connection.abort)
        slot.callback(timer.cancel)
        return slot

    def watch(self, connection: BoundedRequestHandler) -> None:
        """Abort *connection* if its client accepts no data."""
        self._connections.add(connection)

    def unwatch(self, connection: BoundedRequestHandler) -> None:
        """Stop watching *connection*: it is closed, or it is a WebSocket, which watches itself."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)

    def mark_busy(self, connection: BoundedRequestHandler) -> None:
        """Record that *connection* has sent a request."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: BoundedRequestHandler) -> None:
        """Record that the request of *connection* is answered and had no credential."""
        self._idle[connection] = None
        if len(self._idle) > self._slots.total:
            next(iter(self._idle)).abort()

    async def _abort_stalled(self) -> None:
        """Abort connections whose clients accept no data; runs forever."""
        accepted: dict[BoundedRequestHandler, int] = {}
        while True:
            await asyncio.sleep(self._stall_timeout)
            before = accepted
            accepted = {c: c.acknowledged_bytes for c in self._connections if c.is_writing}
            for connection, size in accepted.items():
                if before.get(connection) == size:
                    logger.info("connection stalled during a response; aborted")
                    connection.abort()
