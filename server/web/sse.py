"""Server-sent events: streams of log entries over plain HTTP; `id:` is the position."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from types import TracebackType

from aiohttp import hdrs, web

from ..auth.credential import REVOKED_ABORT_SECS, Credential
from ..errors import Error, ErrorCode, failure_of
from ..ws import tcp
from .negotiation import weight_of

logger = logging.getLogger(__name__)

STREAM_KEEP_ALIVE_SECS = 15.0
SSE = "text/event-stream"
STREAM_EXAMPLE = (
    'id: 125\ndata: {"type":"turn_end","seq":125,"ts":1795479875223,"turn_index":1,'
    '"stop_reason":"end_turn","duration_ms":2451,"error":null}\n\n'
)


def wants_stream(request: web.Request) -> bool:
    """Return whether the client prefers a stream of events to JSON.

    A HEAD request gets no stream. A client that names both types with the same weight gets the
    stream, because JSON is the default.
    """
    accepted = request.headers.getall(hdrs.ACCEPT, [])
    stream, is_named = weight_of(accepted, SSE)
    json, _ = weight_of(accepted, "application/json")
    is_wanted = stream > json or (is_named and 0 < stream == json)
    return is_wanted and request.method != "HEAD"


class EventStream:
    """A response to which events are written one by one.

    Args:
        stall_timeout: seconds after which a client that accepts no data is disconnected.
        keep_alive_secs: a comment is due after this time without an event.
    """

    def __init__(self, request: web.Request, stall_timeout: float, keep_alive_secs: float) -> None:
        self._request = request
        self._stall_timeout = stall_timeout
        self.keep_alive_secs = keep_alive_secs
        self._watch: tcp.StallWatch | None = None
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )

    async def __aenter__(self) -> EventStream:
        await self.response.prepare(self._request)
        if self._request.transport is not None:
            tcp.limit_kernel_buffer(self._request.transport)
            self._watch = tcp.StallWatch(self._request.transport, self._stall_timeout)
            self._watch.start()
        await self._write(b": ok\n\n")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if self._watch is not None:
            self._watch.stop()
        if not isinstance(error, Exception):
            return False
        if isinstance(error, Error) and error.code is ErrorCode.UNAUTHORIZED:
            self._end_revoked()
            return True
        # A client that disconnects ends only its stream.
        if not isinstance(error, ConnectionError):
            failure_of(error, f"a stream of {self._request.path}")
            if self._request.transport is not None:  # the response has started
                self._request.transport.abort()
        return True

    async def send(self, position: int, frame: bytes) -> None:
        await self._write(b"id: %d\n" % position + _data(frame))

    async def send_frame(self, frame: bytes) -> None:
        """Send a frame that has no position in a log."""
        await self._write(_data(frame))

    async def send_named(self, name: str, frame: bytes) -> None:
        """Send JSON as an event with a name."""
        await self._write(b"event: %b\n" % name.encode() + _data(frame))

    async def keep_alive(self) -> None:
        await self._write(b": keep-alive\n\n")

    async def _write(self, data: bytes) -> None:
        if self._watch is not None:
            self._watch.written += len(data)
        await self.response.write(data)

    def _end_revoked(self) -> None:
        """End the response and the connection; abort it if the client accepts no data."""
        self.response.force_close()
        if self._request.transport is not None:
            abort = self._request.transport.abort
            asyncio.get_running_loop().call_later(REVOKED_ABORT_SECS, abort)


def _data(frame: bytes) -> bytes:
    # JSON allows a bare CR between tokens, but in an event stream it ends the line.
    return b"data: %b\n\n" % frame.replace(b"\r", b" ")


@contextlib.asynccontextmanager
async def event_stream(
    request: web.Request,
    credential: Credential,
    *,
    stall_timeout: float,
    keep_alive_secs: float,
) -> AsyncIterator[EventStream]:
    """Stream events to a client until the block or its credential ends.

    Raises:
        Error: ``unauthorized``; the credential was revoked before the stream began.
    """
    credential.check()
    stream = EventStream(request, stall_timeout, keep_alive_secs)
    async with stream, credential.waiting():
        yield stream
