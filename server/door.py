"""The door: connections that have asked for nothing yet are bounded, in number and in time.

A connection that sends no request, or half of one, costs a descriptor and says
nothing of who it is. It holds one of the places of those who have yet to say so
(:class:`limits.Places`) until its first request is whole; where there is none
left it is dropped, and where it takes too long, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from .errors import Error, bad_request
from .limits import Places
from .replies import NAME, error_reply

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECS = 75
"""An idle connection is closed after so long: longer than proxies keep theirs."""
BACKLOG = 1024
"""So many wait at the system for us to accept them."""
ACCEPTS_AT_ONCE = 32
"""So many are accepted in one turn of the event loop, which others need as well."""


class Door:
    """Where connections come in.

    Args:
        places: for those that have yet to say who they are.
        patience: seconds that a first request may take.
    """

    def __init__(self, places: Places, patience: float) -> None:
        self._places = places
        self._patience = patience

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
        listener = await loop.create_server(
            lambda: Connection(self, handlers, loop), host, port, backlog=ACCEPTS_AT_ONCE
        )
        for one in listener.sockets:  # for asyncio the two are one number
            with socket.fromfd(one.fileno(), one.family, one.type) as same:
                same.listen(BACKLOG)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()

    def enter(self, connection: Connection, address: str) -> contextlib.ExitStack | None:
        """A place for *connection*, to be given back by closing it; None where there is none."""
        place = contextlib.ExitStack()
        try:
            place.enter_context(self._places.take(address))
        except Error:
            return None
        timer = asyncio.get_running_loop().call_later(self._patience, connection.abort)
        place.callback(timer.cancel)
        return place


class Connection(web.RequestHandler):
    """One connection; it holds a place at the door until it has asked for something."""

    __slots__ = ("_door", "_place")

    def __init__(self, door: Door, handlers: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            handlers,
            loop=loop,
            keepalive_timeout=KEEP_ALIVE_SECS,
            access_log=None,  # type: ignore[arg-type]  # none, as everywhere in aiohttp
        )
        self._door = door
        self._place: contextlib.ExitStack | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._place = self._door.enter(self, peer[0] if peer else "")
        if self._place is not None:
            super().connection_made(transport)
        elif isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.has_asked()
        super().connection_lost(exc)

    def has_asked(self) -> None:
        """Its first request is there: it is a matter of that now, and not of the door's."""
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
            reply = error_reply(error, uuid.uuid4().hex)
            reply.force_close()
        reply.headers[hdrs.SERVER] = NAME  # no application sees it on its way
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
