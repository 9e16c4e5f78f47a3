"""Pipes that survive a reload: their descriptors can be passed to the next version."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from .line_reader import LineReader


def unsent_bytes(transport: asyncio.WriteTransport) -> bytes:
    """The bytes that wait until the pipe takes them. asyncio has no public access to them."""
    return bytes(cast(Any, transport)._buffer)


def as_file(descriptor: int, mode: str) -> BinaryIO:
    return cast(BinaryIO, os.fdopen(descriptor, mode, 0))


class LinePipe(asyncio.Protocol):
    """Reads lines from a pipe.

    Args:
        limit: bytes of a line. Of a longer line, only the part after the limit is passed on.
        on_line: called with each line.

    Attributes:
        ended: done when the pipe has reached its end.
    """

    def __init__(self, limit: int, on_line: Callable[[bytes], None], rest: bytes = b"") -> None:
        self._limit = limit
        self._on_line = on_line
        self._lines = LineReader(limit)
        self._lines.feed(rest)
        self._transport: asyncio.ReadTransport
        self.descriptor = -1
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, descriptor: int) -> None:
        """Begin to read *descriptor*, which the pipe owns from now on."""
        self.descriptor = descriptor
        pipe = as_file(descriptor, "rb")
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: self, pipe)

    @property
    def rest(self) -> bytes:
        """The incomplete line."""
        return self._lines.rest

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        self._transport.close()

    # As an asyncio protocol.

    def data_received(self, data: bytes) -> None:
        try:
            lines = self._lines.feed(data)
        except OverflowError:
            self._lines = LineReader(self._limit)
            return
        for line in lines:
            self._on_line(line)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
