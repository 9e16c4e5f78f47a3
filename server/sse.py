"""Server-sent events: log entries over plain HTTP, `id:` being the position."""

from __future__ import annotations

from types import TracebackType

from aiohttp import web

KEEP_ALIVE_SECS = 15


def wants_stream(request: web.Request) -> bool:
    return "text/event-stream" in request.headers.get("Accept", "")


class EventStream:
    """A response that is written event by event."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )

    async def __aenter__(self) -> EventStream:
        await self.response.prepare(self._request)
        await self.response.write(b": ok\n\n")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        # A client that hangs up ends its stream, and nothing else.
        return isinstance(error, ConnectionError)

    async def send(self, position: int, frame: bytes) -> None:
        # A bare CR may stand between an agent's tokens; here it would end the line.
        data = frame.replace(b"\r", b" ")
        await self.response.write(b"id: %d\ndata: %b\n\n" % (position, data))

    async def keep_alive(self) -> None:
        await self.response.write(b": keep-alive\n\n")
