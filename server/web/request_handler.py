"""The handler of one HTTP connection. It holds a slot of the listener until its first request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import bad_request
from ..ws import tcp
from ..ws.incoming import FrameScanner
from .responses import SERVER_NAME, error_response

if TYPE_CHECKING:
    from .listener import Listener

logger = logging.getLogger(__name__)

IDLE_CONNECTION_SECS = 75
"""An idle connection is closed after this time, which is longer than proxies keep theirs."""
UNAUTHENTICATED_READ_BYTES = 16 << 10
AUTHENTICATED_READ_BYTES = 256 << 10
"""Bytes that are read from a connection at a time, before and after it has shown a credential."""
WEBSOCKET_READ_BYTES = 32 << 10
"""Bytes that are read from a WebSocket at a time: each of its frames is scanned."""


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
        "_is_partial",
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
        self._is_partial = False
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
        known = self._request_count
        super().data_received(data)
        self._is_partial = self._waiter is not None and self._request_count == known
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

    @property
    def is_starting(self) -> bool:
        """Whether a request was read and its handler has not begun."""
        return self._request_count > self._requests

    @property
    def is_between_requests(self) -> bool:
        """Whether the last response is written, and no part of a next request was read."""
        if self.transport is None or self.transport.is_closing() or self.is_writing:
            return False
        return self._waiter is not None and not (self._is_partial or self.is_starting)

    def stop_reading(self) -> None:
        """Leave further data of the client in the kernel, unless a request needs it."""
        if self.transport is not None and not (self.is_busy or self.is_starting):
            self.transport.pause_reading()

    def start_reading(self) -> None:
        if self.transport is not None and self._read_limit is None:
            self.transport.resume_reading()

    async def pause(self, seconds: float) -> None:
        """Read nothing for a time."""
        transport = self.transport
        if seconds <= 0 or transport is None:
            return
        transport.pause_reading()
        await asyncio.sleep(seconds)
        if not (self._reading_paused or self._buffer_paused):
            transport.resume_reading()

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
