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
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import Error, bad_request
from ..limits import ConcurrencyLimit
from ..tasks import Supervisor, Tasks
from ..ws import tcp
from ..ws.incoming import FrameScanner
from .accepting import PAUSE_SECS, accept_connections
from .responses import SERVER_NAME, error_response

logger = logging.getLogger(__name__)

IDLE_CONNECTION_SECS = 75
"""An idle connection is closed after this time, which is longer than proxies keep theirs."""
BACKLOG = 1024
"""Connections that may wait in the kernel to be accepted."""
UNAUTHENTICATED_READ_BYTES = 16 << 10
AUTHENTICATED_READ_BYTES = 256 << 10
"""Bytes that are read from a connection at a time, before and after it has shown a credential."""
WEBSOCKET_READ_BYTES = 32 << 10
"""Bytes that are read from a WebSocket at a time: each of its frames is scanned."""


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


class _ReadLimit(msgspec.Struct):
    """The bytes that may still arrive on a connection. *reached* is done when more have arrived."""

    left: int
    reached: asyncio.Future[None]


class _ScannedParser:
    """A WebSocket parser whose input also passes through a scanner."""

    def __init__(self, parser: Any, scanner: FrameScanner) -> None:
        self._parser = parser
        self._scanner = scanner
        self.feed_eof = parser.feed_eof

    def feed_data(self, data: bytes) -> Any:
        self._scanner.feed(data)
        return self._parser.feed_data(data)


class BoundedRequestHandler(web.RequestHandler):
    """One HTTP connection. It holds a slot of the listener until its first request is complete.

    Attributes:
        scanner: of the frames, once it is a WebSocket.
        on_data: called after each piece of data.
        is_busy: a request is in progress that does not wait for an agent.
        wait: the request that waits for a turn, if one does; see ``waits.py``.
    """

    __slots__ = (
        "_listener",
        "_read_limit",
        "_requests",
        "_slot",
        "is_busy",
        "on_data",
        "scanner",
        "wait",
    )

    def __init__(
        self, listener: Listener, handlers: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            handlers,
            loop=loop,
            keepalive_timeout=IDLE_CONNECTION_SECS,
            auto_decompress=False,  # two megabytes can become two gigabytes
            lingering_time=0,  # `middleware.py` limits how much of an unread body is read
            access_log=None,  # type: ignore[arg-type]  # `middleware.py` writes the access log
        )
        self._listener = listener
        self._slot: contextlib.ExitStack | None = None
        self._requests = 0
        self._read_limit: _ReadLimit | None = None
        self.scanner = FrameScanner()
        self.is_busy = False
        self.wait: Any = None
        self.on_data: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = transport.get_extra_info("peername")
        self._slot = self._listener.acquire_slot(self, address[0] if address else "")
        if self._slot is not None:
            self._listener.watch(self)
            transport.max_size = UNAUTHENTICATED_READ_BYTES  # type: ignore[attr-defined]
            super().connection_made(transport)
        elif isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._release_slot()
        self._listener.unwatch(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if (limit := self._read_limit) is not None:
            limit.left -= len(data)
            if limit.left < 0 and self.transport is not None:
                self.transport.pause_reading()
                if not limit.reached.done():
                    limit.reached.set_result(None)
        if self.on_data is not None:
            self.on_data()

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        super().set_parser(_ScannedParser(parser, self.scanner), data_received_cb)  # type: ignore[arg-type]

    def stop_reading(self) -> None:
        """Leave further data of the client in the kernel, unless a request needs it."""
        if self.transport is not None and not self.is_busy:
            self.transport.pause_reading()

    def start_reading(self) -> None:
        if self.transport is not None and self._read_limit is None:
            self.transport.resume_reading()

    def pause_socket(self) -> None:
        """Stop reading the WebSocket, even if aiohttp's buffer has room."""
        self._pause_reading_for_buffer()

    def resume_socket(self) -> None:
        """Read the WebSocket again, unless aiohttp's buffer is full."""
        self._resume_reading_for_buffer()

    def request_started(self) -> bool:
        """Release the slot: a request is complete.

        Returns:
            Whether it is the connection's first request.
        """
        self._release_slot()
        self._listener.mark_busy(self)
        self._requests += 1
        self.is_busy = True
        return self._requests == 1

    def request_finished(self, *, is_authenticated: bool) -> None:
        """Record that the request is answered."""
        self.is_busy = False
        if not is_authenticated and self.transport is not None:
            self._listener.mark_idle(self)

    def upgraded(self) -> None:
        """Record that the connection is a WebSocket, which watches itself."""
        self._listener.unwatch(self)
        if self.transport is not None:
            self.transport.max_size = WEBSOCKET_READ_BYTES  # type: ignore[attr-defined]

    def limit_reading(self, size: int) -> asyncio.Future[None]:
        """Stop reading after about *size* more bytes.

        Returns:
            A future that is done once the limit is exceeded.
        """
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._read_limit = _ReadLimit(size, reached)
        return reached

    def lift_limits(self) -> None:
        """Read on, and more bytes at a time: the client is authenticated."""
        if self.transport is None:
            return
        if not self._upgraded:
            self.transport.max_size = AUTHENTICATED_READ_BYTES  # type: ignore[attr-defined]
        if self._read_limit is not None:
            self._read_limit = None
            self.transport.resume_reading()

    @property
    def is_writing(self) -> bool:
        """Whether bytes wait until the client accepts more."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def acknowledged_bytes(self) -> int:
        """The bytes that the client has accepted so far."""
        return tcp.acknowledged_bytes(self.transport) if self.transport is not None else 0

    def _release_slot(self) -> None:
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to bytes that are not HTTP. The middleware handles the errors of requests."""
        response: web.StreamResponse
        if status >= 500 or request.writer.output_size > 0:
            response = super().handle_error(request, status, exc, message)
        else:
            self.log_exception(exc_info=exc)
            request_id = uuid.uuid4().hex[:16]
            response = error_response(bad_request("malformed HTTP request"), request_id)
            response.headers["X-Request-Id"] = request_id
            response.force_close()
        response.headers[hdrs.SERVER] = SERVER_NAME  # no hook of the application is called
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log an exception, but not malformed bytes, which may contain a secret."""
        error = options.get("exc_info")
        if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            logger.info("malformed HTTP request: %s", type(error).__name__)
        else:
            super().log_exception(*args, **options)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
