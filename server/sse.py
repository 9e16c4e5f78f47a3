"""Server-sent events: log entries over plain HTTP, `id:` being the position."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

from aiohttp import web

from . import tcp

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECS = 15


def wants_stream(request: web.Request) -> bool:
    """Whether the answer is to be a stream; that to a HEAD has no body to stream."""
    accepted = request.headers.get("Accept", "").lower()
    return "text/event-stream" in accepted and request.method != "HEAD"


class EventStream:
    """A response that is written event by event.

    Args:
        stall_timeout: seconds after which a peer that has taken nothing is dropped.
    """

    def __init__(self, request: web.Request, stall_timeout: float) -> None:
        self._request = request
        self._stall_timeout = stall_timeout
        self._written = self._taken = 0
        self._looking: asyncio.TimerHandle | None = None
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
            tcp.keep_little(self._request.transport)
        self._look_again()
        await self._write(b": ok\n\n")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if self._looking is not None:
            self._looking.cancel()
        if not isinstance(error, Exception):
            return False
        # A client that hangs up ends its stream, and nothing else.
        if not isinstance(error, ConnectionError):
            logger.error("a stream of %s is cut", self._request.path, exc_info=error)
            if self._request.transport is not None:  # too late for another answer
                self._request.transport.abort()
        return True

    async def send(self, position: int, frame: bytes) -> None:
        # A bare CR may stand between an agent's tokens; here it would end the line.
        data = frame.replace(b"\r", b" ")
        await self._write(b"id: %d\ndata: %b\n\n" % (position, data))

    async def keep_alive(self) -> None:
        await self._write(b": keep-alive\n\n")

    async def _write(self, data: bytes) -> None:
        self._written += len(data)
        await self.response.write(data)

    def _look_again(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(self._stall_timeout, self._look)

    def _look(self) -> None:
        """Drop a peer that has taken nothing since the last look."""
        transport = self._request.transport
        if transport is None:
            return
        untaken = tcp.untaken(transport)
        taken = self._written - untaken
        if untaken and taken == self._taken:
            transport.abort()  # the only thing that frees a blocked write
            return
        self._taken = taken
        self._look_again()
