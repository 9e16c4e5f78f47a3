"""Writes bytes to a client at the speed at which the client reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from . import tcp

WRITE_BYTES = 256 << 10
"""Bytes that are given to the transport at once; further entries stay in the log."""


class PacedWriter:
    """The transport of one connection, for writing.

    Attributes:
        clock: returns monotonic seconds.
        last_write: the time at which data was last sent or taken by the client, without heartbeats.
        written: bytes that have been written so far.
        is_backpressured: the client reads slowly, and :meth:`drain` waits for it.
    """

    __slots__ = (
        *("_request", "_transport"),
        *("clock", "is_backpressured", "last_write", "written"),
    )

    def __init__(self, request: web.Request) -> None:
        assert request.transport is not None
        self._request = request
        self._transport: asyncio.WriteTransport = request.transport
        self.clock: Callable[[], float] = time.monotonic
        self.last_write = self.clock()
        self.written = 0
        self.is_backpressured = False

    def start(self, clock: Callable[[], float]) -> None:
        """Keep the backlog of a slow client small, in the kernel and in the transport."""
        self.clock = clock
        self.last_write = clock()
        tcp.limit_kernel_buffer(self._transport)
        self._transport.set_write_buffer_limits(high=WRITE_BYTES)

    @property
    def descriptor(self) -> int:
        """The descriptor of the socket; -1 if it is closed."""
        connection = self._transport.get_extra_info("socket")
        if connection is None or self._transport.is_closing():
            return -1
        return int(connection.fileno())

    @property
    def is_empty(self) -> bool:
        """Whether the connection is open and all written bytes are in the kernel."""
        return not (self._transport.is_closing() or self._transport.get_write_buffer_size())

    def unread_bytes(self) -> int:
        """Bytes that the client has not read."""
        return tcp.unread_bytes(self._transport)

    def note_data(self) -> None:
        """Note that data is being sent now."""
        self.last_write = self.clock()

    def write(self, data: bytes | memoryview) -> None:
        """Write *data* without waiting.

        Raises:
            ConnectionResetError: the connection is closed.
        """
        if self._transport.is_closing():
            raise ConnectionResetError
        self.written += len(data)
        self._transport.write(data)

    async def write_in_pieces(self, data: bytes) -> None:
        """Write *data*, of which one entry may be megabytes, and wait for the client in between.

        Raises:
            ConnectionResetError: the connection is closed.
        """
        view = memoryview(data)
        while len(view) > 2 * WRITE_BYTES:
            self.write(view[:WRITE_BYTES])
            view = view[WRITE_BYTES:]
            await self.drain(WRITE_BYTES)
        self.write(view)

    async def drain(self, limit: int) -> None:
        """Wait until the transport's buffer has at most about *limit* bytes.

        Raises:
            ConnectionResetError: the connection is closed.
        """
        if self._transport.is_closing():
            raise ConnectionResetError
        if self._transport.get_write_buffer_size() <= limit:
            await asyncio.sleep(0)  # the transport is not paused: only let other tasks run
            return
        self._transport.set_write_buffer_limits(high=limit)
        self.is_backpressured = True
        try:
            await self._request.writer.drain()
        finally:
            self.is_backpressured = False
            self.note_data()
