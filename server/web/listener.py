"""The door: connections that have asked for nothing yet are bounded, in number and in time.

A connection that sends no request, or half of one, costs a descriptor and says
nothing of who it is. It holds one of the places of those who have yet to say so
(:class:`limits.ConcurrencyLimit`) until its first request is whole; where there is none
left it is dropped, and where it takes too long, too.

A connection whose last request showed no credential is worth no more than that
while it idles: of those there are only so many, and the one that has idled
longest goes first. One whose peer takes nothing of its answer goes, too.

Who comes alone is let in at once. A crowd is let in one by one, or who is in
already would feel each of them: a socket and what it missed take half a
millisecond of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import select
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import Error, bad_request
from ..limits import ConcurrencyLimit
from ..tasks import Supervisor, Tasks
from ..ws import tcp
from ..ws.incoming import FrameScanner
from .responses import SERVER_NAME, error_response

logger = logging.getLogger(__name__)

IDLE_CONNECTION_SECS = 75
"""An idle connection is closed after so long: longer than proxies keep theirs."""
BACKLOG = 1024
"""So many wait at the system for us to accept them."""
PAUSE_SECS = 0.003
"""Between connections that come together."""
CROWD = 100
"""Of so many that come together each has its pause; of the next hundred every second, and so on:
ten thousand wait two seconds, not thirty."""
STRANGERS_READ_BYTES = 16 << 10
APPS_READ_BYTES = 256 << 10
"""What is read of a connection at a time, before and after it has shown a credential."""
SOCKETS_READ_BYTES = 32 << 10
"""The same of a socket: each of its frames is looked at."""
ACCEPT_RETRY_SECS = 1.0
"""Where the system has no descriptor or memory for a connection, it may have one by then."""


class Listener:
    """Where connections come in.

    Args:
        places: for those that have yet to say who they are.
        patience: seconds that a first request may take.
        stall_timeout: seconds after which a peer that has taken nothing of an answer is dropped.
        supervisor: of the tasks that accept.
    """

    def __init__(
        self,
        places: ConcurrencyLimit,
        patience: float,
        stall_timeout: float = 30,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._supervisor = supervisor or Supervisor()
        self._places = places
        self._patience = patience
        self._stall_timeout = stall_timeout
        self._connections: set[BoundedRequestHandler] = set()
        self._idle_strangers: dict[BoundedRequestHandler, None] = {}

    @contextlib.asynccontextmanager
    async def open(self, runner: web.AppRunner, host: str, port: int) -> AsyncIterator[int]:
        """Listen for *runner*, which has been set up.

        Yields:
            The port; it is chosen here where *port* is 0.

        Raises:
            OSError: the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        handlers = runner.server
        assert handlers is not None

        def connection() -> BoundedRequestHandler:
            return BoundedRequestHandler(self, handlers, loop)

        # asyncio accepts as many at a time as it lets wait: it only binds, and the rest is ours.
        bound = await loop.create_server(connection, host, port, start_serving=False)
        accepting = Tasks()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(bound.close)
            listeners = [
                stack.enter_context(socket.socket(fileno=os.dup(one.fileno())))
                for one in bound.sockets
            ]
            stack.push_async_callback(accepting.finish, 0)
            for listener in listeners:
                listener.setblocking(False)
                listener.listen(BACKLOG)
                self._supervisor.spawn(accepting, "door", partial(_accept, listener, connection))
            self._supervisor.spawn(accepting, "stalled connections", self._drop_stalled)
            yield bound.sockets[0].getsockname()[1]

    def enter(self, connection: BoundedRequestHandler, address: str) -> contextlib.ExitStack | None:
        """A place for *connection*, to be given back by closing it; None where there is none."""
        place = contextlib.ExitStack()
        try:
            place.enter_context(self._places.take(address))
        except Error:
            return None
        timer = asyncio.get_running_loop().call_later(self._patience, connection.abort)
        place.callback(timer.cancel)
        return place

    def add(self, connection: BoundedRequestHandler) -> None:
        """Watch over *connection*."""
        self._connections.add(connection)

    def remove(self, connection: BoundedRequestHandler) -> None:
        """Stop watching: it is gone, or has become a socket, which is watched by itself."""
        self._connections.discard(connection)
        self._idle_strangers.pop(connection, None)

    def is_busy(self, connection: BoundedRequestHandler) -> None:
        """A request has come."""
        self._idle_strangers.pop(connection, None)

    def is_idle(self, connection: BoundedRequestHandler) -> None:
        """Its request is answered, and showed no credential."""
        self._idle_strangers[connection] = None
        if len(self._idle_strangers) > self._places.total:
            next(iter(self._idle_strangers)).abort()

    async def _drop_stalled(self) -> None:
        """Drop connections that take nothing of their answers, for ever."""
        taken: dict[BoundedRequestHandler, int] = {}
        while True:
            await asyncio.sleep(self._stall_timeout)
            before, taken = taken, {c: c.taken for c in self._connections if c.is_writing}
            for connection, size in taken.items():
                if before.get(connection) == size:
                    logger.info("a connection has taken nothing of its answer; dropped")
                    connection.abort()


async def _accept(listener: socket.socket, connection: Callable[[], asyncio.Protocol]) -> None:
    """Accept for ever."""
    loop = asyncio.get_running_loop()
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    together = 0
    while True:
        try:
            accepted, _ = await loop.sock_accept(listener)
        except ConnectionAbortedError:
            continue
        except OSError as error:
            logger.error("no connection can be accepted: %s", error.strerror)
            await asyncio.sleep(ACCEPT_RETRY_SECS)
            continue
        try:
            await loop.connect_accepted_socket(connection, accepted)
        except Exception:
            logger.exception("a connection could not be served")
            accepted.close()
        together = together + 1 if waiting.poll(0) else 0
        if is_to_pause(together):
            await asyncio.sleep(PAUSE_SECS)


def is_to_pause(together: int) -> bool:
    """Whether there is a pause behind the connection of that number, if others wait behind it."""
    return together > 0 and together % (1 + together // CROWD) == 0


@dataclasses.dataclass(slots=True)
class Allowance:
    """What may still come in on a connection.

    Attributes:
        is_spent: done once more has come.
    """

    left: int
    is_spent: asyncio.Future[None]


class _ScannedParser:
    """A socket's parser, and before it a scanner of the same bytes."""

    def __init__(self, parser: Any, scanner: FrameScanner) -> None:
        self._parser = parser
        self._scanner = scanner
        self.feed_eof = parser.feed_eof

    def feed_data(self, data: bytes) -> Any:
        self._scanner.feed(data)
        return self._parser.feed_data(data)


class BoundedRequestHandler(web.RequestHandler):
    """One connection; it holds a place at the door until it has asked for something.

    Attributes:
        scanner: of the frames, once it is a socket.
        on_data: called after each piece of data.
    """

    __slots__ = ("_allowance", "_door", "_place", "_requests", "on_data", "scanner")

    def __init__(
        self, door: Listener, handlers: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            handlers,
            loop=loop,
            keepalive_timeout=IDLE_CONNECTION_SECS,
            auto_decompress=False,  # two megabytes can be two gigabytes
            lingering_time=0,  # `middleware.py` says how much of an unread body is read
            access_log=None,  # type: ignore[arg-type]  # none, as everywhere in aiohttp
        )
        self._door = door
        self._place: contextlib.ExitStack | None = None
        self._requests = 0
        self._allowance: Allowance | None = None
        self.scanner = FrameScanner()
        self.on_data: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._place = self._door.enter(self, peer[0] if peer else "")
        if self._place is not None:
            self._door.add(self)
            transport.max_size = STRANGERS_READ_BYTES  # type: ignore[attr-defined]
            super().connection_made(transport)
        elif isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._leave_place()
        self._door.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if (allowance := self._allowance) is not None:
            allowance.left -= len(data)
            if allowance.left < 0 and self.transport is not None:
                self.transport.pause_reading()
                if not allowance.is_spent.done():
                    allowance.is_spent.set_result(None)
        if self.on_data is not None:
            self.on_data()

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        super().set_parser(_ScannedParser(parser, self.scanner), data_received_cb)  # type: ignore[arg-type]

    def pause_socket(self) -> None:
        """Read no more of it for now, however much aiohttp has room for."""
        self._pause_reading_for_buffer()

    def resume_socket(self) -> None:
        """Read on, unless aiohttp has no room."""
        self._resume_reading_for_buffer()

    def begin_request(self) -> bool:
        """A request is whole: the connection's place at the door is free.

        Returns:
            Whether it is the connection's first.
        """
        self._leave_place()
        self._door.is_busy(self)
        self._requests += 1
        return self._requests == 1

    def end_request(self, *, is_stranger: bool) -> None:
        """It is answered, or as good as that."""
        if is_stranger and self.transport is not None:
            self._door.is_idle(self)

    def become_socket(self) -> None:
        """From now on it is watched by itself."""
        self._door.remove(self)
        if self.transport is not None:
            self.transport.max_size = SOCKETS_READ_BYTES  # type: ignore[attr-defined]

    def limit(self, size: int) -> asyncio.Future[None]:
        """Read about *size* more bytes, and then no more.

        Returns:
            Done once so many have come.
        """
        is_spent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._allowance = Allowance(size, is_spent)
        return is_spent

    def lift_limits(self) -> None:
        """A credential has been shown: read on, and more at a time."""
        if self.transport is None:
            return
        if not self._upgraded:
            self.transport.max_size = APPS_READ_BYTES  # type: ignore[attr-defined]
        if self._allowance is not None:
            self._allowance = None
            self.transport.resume_reading()

    @property
    def is_writing(self) -> bool:
        """Whether there are bytes for the peer that its connection does not take yet."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def taken(self) -> int:
        """Bytes that the peer has taken so far."""
        return tcp.acknowledged_bytes(self.transport) if self.transport is not None else 0

    def _leave_place(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are no request; what is one is the middleware's, errors too."""
        reply: web.StreamResponse
        if status >= 500 or request.writer.output_size > 0:
            reply = super().handle_error(request, status, exc, message)
        else:
            self.log_exception(exc_info=exc)
            error = bad_request("this is no request that is understood")
            request_id = uuid.uuid4().hex[:16]
            reply = error_response(error, request_id)
            reply.headers["X-Request-Id"] = request_id
            reply.force_close()
        reply.headers[hdrs.SERVER] = SERVER_NAME  # no application sees it on its way
        return reply

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log it; of bytes that make no sense only that: they may be anyone's secret."""
        error = options.get("exc_info")
        if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            logger.info("a connection sent what is no request: %s", type(error).__name__)
        else:
            super().log_exception(*args, **options)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
