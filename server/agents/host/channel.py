"""One direction of a stdio proxy: a pipe that is read, and a pipe that is written."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import BinaryIO, Literal, cast

import msgspec

from ...reload.state import Inherited, PassedDescriptors
from ..pipes import as_file, unsent_bytes

OUTPUT_PIECE_BYTES = 16 << 10
"""The most that is read at once, so that the other sessions wait for half a millisecond at most
while one agent writes at full speed."""
BACKLOG_LIMIT_BYTES = 4 << 20
"""Reading stops while more than this waits to be written."""
REST_BYTES = 1 << 20
"""The most that is read from the pipe of a process that has ended."""

PauseReason = Literal["backlog", "prompt", "log", "memory", "reload"]
"""The target does not read, a prompt must wait, the log is full, a large message must wait, or the
server is being reloaded."""


class ChannelState(msgspec.Struct, kw_only=True):
    """A channel for the next version of the server.

    Attributes:
        source, target: descriptors of the pipes.
        unsent: what the target has not taken yet.
    """

    source: int
    target: int
    unsent: bytes


class Channel(asyncio.Protocol):
    """Reads chunks from a source pipe, and writes lines to a target pipe.

    It is the protocol of both transports.

    Args:
        on_data: called with each chunk.
        is_paused: it does not read before :meth:`resume` is called for the reason ``reload``.
    """

    def __init__(self, on_data: Callable[[bytes], None], *, is_paused: bool = False) -> None:
        self._on_data = on_data
        self._pause_reasons: set[PauseReason] = {"reload"} if is_paused else set()
        self._reader: asyncio.ReadTransport
        self._writer: asyncio.WriteTransport
        self._source_fd = self._target_fd = -1

    async def open_target(self, target: BinaryIO, undo: contextlib.ExitStack) -> None:
        """Connect the target pipe; *undo* closes it."""
        self._target_fd = target.fileno()
        loop = asyncio.get_running_loop()
        self._writer, _ = await loop.connect_write_pipe(lambda: self, target)
        undo.callback(self._writer.abort)
        self._writer.set_write_buffer_limits(high=BACKLOG_LIMIT_BYTES)

    async def open_source(self, source: BinaryIO, undo: contextlib.ExitStack) -> None:
        """Connect the source pipe, and start to read it; *undo* closes it."""
        self._source_fd = source.fileno()
        loop = asyncio.get_running_loop()
        self._reader, _ = await loop.connect_read_pipe(lambda: self, source)
        self._reader.max_size = OUTPUT_PIECE_BYTES  # type: ignore[attr-defined] # of every Unix pipe
        undo.callback(self._reader.close)

    async def restore(
        self, state: ChannelState, inherited: Inherited, undo: contextlib.ExitStack
    ) -> None:
        """Connect the pipes of an earlier version of the server; *undo* closes them."""
        target = undo.enter_context(as_file(inherited.claim(state.target), "wb"))
        source = undo.enter_context(as_file(inherited.claim(state.source), "rb"))
        await self.open_target(target, undo)
        if state.unsent:
            self._writer.write(state.unsent)
        await self.open_source(source, undo)

    def pack(self, passed: PassedDescriptors) -> ChannelState:
        return ChannelState(
            source=passed.add(self._source_fd),
            target=passed.add(self._target_fd),
            unsent=unsent_bytes(self._writer),
        )

    def write(self, line: bytes) -> None:
        """Write *line* and a line end, unless the target was closed."""
        if not self._writer.is_closing():
            self._writer.write(line + b"\n")

    def pause(self, reason: PauseReason) -> None:
        """Leave further data in the source pipe, until every reason is withdrawn."""
        self._pause_reasons.add(reason)
        if not self._reader.is_closing():
            self._reader.pause_reading()

    def resume(self, reason: PauseReason) -> None:
        """Withdraw *reason*; read on if it was the last one."""
        self._pause_reasons.discard(reason)
        if not self._pause_reasons and not self._reader.is_closing():
            self._reader.resume_reading()

    def read_rest(self) -> None:
        """Read the data that is in the source pipe now, and nothing that follows."""
        if self._reader.is_closing():
            return
        self._reader.pause_reading()
        with contextlib.suppress(BlockingIOError):
            if data := os.read(self._source_fd, REST_BYTES):
                self._on_data(data)

    def close(self) -> None:
        """Close both pipes; the target first receives what was written."""
        self._reader.close()
        self._writer.close()

    # As the protocol of the source.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        pipe = transport.get_extra_info("pipe")
        if self._pause_reasons and pipe.fileno() == self._source_fd:
            cast(asyncio.ReadTransport, transport).pause_reading()

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def eof_received(self) -> None:
        self._writer.close()

    # As the protocol of the target.

    def pause_writing(self) -> None:
        self.pause("backlog")

    def resume_writing(self) -> None:
        self.resume("backlog")
