"""A WebSocket connection: its reader, its writer and its close, for any protocol.

The writer is a loop: it sends all frames that are due, then waits. A subclass supplies log
entries, of one session or of several. Other frames wait in a small outbox.

The reader never awaits a turn; otherwise it could not read a cancel. It also closes the connection:
the writer sends the last frames, then the reader does the closing handshake.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import WSMsgType, web

from ..errors import CloseCode, failure_of
from ..limits import TokenBucket
from . import framing
from .disconnect import Disconnect
from .incoming import IncomingMessages, track_incoming
from .liveness import Liveness
from .outbox import Outbox
from .paced_writer import WRITE_BYTES, PacedWriter
from .upgrade import TOO_BIG, is_too_big

logger = logging.getLogger(__name__)

BURST_SECS = 10
"""A client may send the messages of this many seconds at once."""
CLOSE_TIMEOUT_SECS = 3.0
"""The time limit of the closing handshake."""
_DATA = (WSMsgType.TEXT, WSMsgType.BINARY)


class WebSocketConnection(abc.ABC):
    """A connection whose upgrade is done. Subclasses implement a protocol.

    Args:
        name: of the connection, for the server's log.
        messages_per_sec: how many messages the client may send.

    Attributes:
        output: the bytes to the client.
        liveness: the client's signs of life.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        app_name: str,
        *,
        name: str,
        messages_per_sec: float,
    ) -> None:
        self.app_name = app_name
        self.name = name
        self.output = PacedWriter(request)
        self._request = request
        self._response = response
        self._rate = TokenBucket(messages_per_sec, BURST_SECS * messages_per_sec)
        self._outbox = Outbox()
        self._incoming: IncomingMessages | None = None
        self._writer: asyncio.Task[None]
        self._is_write_scheduled = False
        # A flag beside the future: to read the future's state would cost a cache miss for each of
        # a thousand subscribers.
        self._is_idle = False
        self._wakeup: asyncio.Future[None] | None = None
        self._disconnect: Disconnect | None = None
        self._read_timeout: asyncio.Timeout | None = None
        self._is_heartbeat_due = False
        self._pong: bytes | None = None
        self.liveness = Liveness(self.output.last_write)

    # Implemented by subclasses

    @property
    def lag(self) -> int:
        """The number of log entries that have not been sent to the client."""
        return 0

    @abc.abstractmethod
    def on_open(self) -> None:
        """Called before the first message is read."""

    @abc.abstractmethod
    def on_close(self) -> None:
        """Called after the last message has been read."""

    @abc.abstractmethod
    async def next_frames(self) -> list[bytes]:
        """The WebSocket frames to write next: of the outbox, then of the log."""

    @abc.abstractmethod
    def has_more(self) -> bool:
        """Whether the log has entries after those that :meth:`next_frames` returned."""

    @abc.abstractmethod
    async def on_text(self, data: bytes) -> None:
        """Handle a text message."""

    def on_binary(self) -> None:
        """Handle a binary message."""
        self.close(Disconnect(CloseCode.BAD_FRAME, "frames are text"))

    def final_close(self) -> Disconnect | None:
        """The close after the last entry, once there is nothing more to send."""
        return None

    def heartbeat_frames(self) -> list[bytes]:
        """The WebSocket frames that precede the ping of a heartbeat."""
        return []

    def closing_frames(self, disconnect: Disconnect) -> list[bytes]:
        """The last WebSocket frames before the close frame."""
        return []

    # Called by others

    def send(self, message: bytes) -> None:
        """Send a text message that is not a log entry, before entries that are yet unsent."""
        self._outbox.put(message)
        self.schedule_write()

    def schedule_write(self) -> None:
        """Have the writer send all frames that are due."""
        self._is_write_scheduled = True
        if self._wakeup is not None and not self._wakeup.done():
            self._is_idle = False
            self._wakeup.set_result(None)

    def close(self, disconnect: Disconnect) -> None:
        """Close the connection in order, after the frames that are being sent."""
        if self._disconnect is None:
            self._disconnect = disconnect
            self.schedule_write()

    def abort(self) -> None:
        """Drop the connection; nothing else frees a blocked write at once."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def check_liveness(self, now: float, heartbeat: float, stall_timeout: float) -> None:
        """Send a heartbeat if it is due, and drop a client that is stalled or does not answer."""
        # A client that had read everything, and was sent nothing since, is not stalled.
        written = self.output.written
        unread = 0 if self.liveness.bytes_read == written else self.output.unread_bytes()
        if self.liveness.is_stalled(now, written, unread, stall_timeout):
            logger.info("%s: connection stalled; aborted", self.name)
            self.close(Disconnect(CloseCode.STALLED, "the client reads nothing"))
            self.abort()
            return
        if self._incoming is not None:
            self._incoming.check_timeouts(now)
        if self.output.is_backpressured:
            return
        if self.liveness.is_silent(now, self.output.last_write, heartbeat, stall_timeout):
            self.close(Disconnect(CloseCode.NO_PONG, "no pong"))
        if self.liveness.is_heartbeat_due(now, heartbeat):
            self._is_heartbeat_due = True
            self.schedule_write()

    async def serve(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        close_timeout: float = CLOSE_TIMEOUT_SECS,
    ) -> None:
        """Serve the connection until it is closed.

        Args:
            clock: returns monotonic seconds.
            close_timeout: seconds that the closing handshake may take.
        """
        self.output.start(clock)
        self.liveness = Liveness(self.output.last_write)
        self._incoming = track_incoming(self._request, self.app_name, self.close)
        self.on_open()
        writer = self._writer = asyncio.create_task(self._write_loop(), name=self.name)
        try:
            await self._read_loop()
            try:
                await _close_in_order(self._response, self._disconnect, close_timeout)
            except TimeoutError:
                self.abort()
        finally:
            self.on_close()
            if self._incoming is not None:
                self._incoming.release()
            if not writer.done():
                # The writer is not cancelled while it may be writing: aborting its transport ends
                # it.
                self.close(Disconnect(CloseCode.GOING_AWAY, "the client has disconnected"))
                self.abort()
            await asyncio.gather(writer, return_exceptions=True)

    # The writer

    async def _write_loop(self) -> None:
        try:
            while not await self._write_pending():
                if not self._is_write_scheduled:
                    self._wakeup = asyncio.get_running_loop().create_future()
                    self._is_idle = True
                    await self._wakeup
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has disconnected; the reader ends, too
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            self._disconnect = Disconnect.from_error(failure_of(error, self.name))
            with contextlib.suppress(ConnectionError):
                self.output.write(b"".join(self.closing_frames(self._disconnect)))
        if self._read_timeout is not None:
            self._read_timeout.reschedule(0)

    async def _write_pending(self) -> bool:
        """Write all frames that are due; True after the last frame before the close."""
        while True:
            self._is_write_scheduled = False
            disconnect = self._disconnect
            is_revoked = disconnect is not None and disconnect.code is CloseCode.REVOKED
            frames = [] if is_revoked else await self.next_frames()
            if self._is_heartbeat_due:
                self._is_heartbeat_due = False
                frames += [*self.heartbeat_frames(), framing.ping_frame()]
            elif frames:
                self.output.note_data()
            if self._pong is not None:
                frames.append(framing.pong_frame(self._pong))
                self._pong = None
            disconnect = self._disconnect = self._disconnect or self.final_close()
            if disconnect is not None:
                frames += self.closing_frames(disconnect)
            await self.output.write_in_pieces(b"".join(frames))
            await self.output.drain(WRITE_BYTES if disconnect is None else 0)
            self._outbox.note_written()
            if disconnect is not None:
                return True
            if not self._outbox and not self.has_more():
                return False

    # The reader

    async def _read_loop(self) -> None:
        while True:
            message = await self._unless_writer_ends(self._response.receive())
            if message is None:
                return
            self.liveness.last_heard = self.output.clock()
            if not self._rate.try_acquire():
                self.close(Disconnect(CloseCode.RATE_LIMIT, "too many frames", retry_after_ms=1000))
                await asyncio.wait({self._writer})
                return
            if message.type in _DATA and await is_too_big(message.data):
                self.close(Disconnect(CloseCode.TOO_BIG, TOO_BIG))
            elif message.type is WSMsgType.TEXT:
                await self._handle_text(message.data)
            elif message.type is WSMsgType.BINARY:
                self.on_binary()
            elif message.type is WSMsgType.PING:
                self._pong = bytes(message.data)  # a pong for the newest ping is enough
                self.schedule_write()
            elif message.type is not WSMsgType.PONG:
                return
            if self._outbox.drained is not None:
                await self._unless_writer_ends(asyncio.wait({self._outbox.drained}))
            if self._incoming is not None and message.type in _DATA:
                self._incoming.message_handled(len(message.data))

    async def _handle_text(self, data: bytes) -> None:
        if self._disconnect is not None:  # the connection is about to close
            return
        try:
            await self.on_text(data)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            self.close(Disconnect.from_error(failure_of(error, f"a command of {self.name}")))

    async def _unless_writer_ends(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await *coroutine*; return None once the writer has sent its last frame."""
        if self._writer.done():
            coroutine.close()
            return None
        try:
            async with asyncio.timeout(None) as self._read_timeout:
                return await coroutine
        except TimeoutError:
            return None
        finally:
            self._read_timeout = None


async def _close_in_order(
    response: web.WebSocketResponse[bool], disconnect: Disconnect | None, timeout: float
) -> None:
    """Do the closing handshake.

    Raises:
        TimeoutError: the client does not close its side.
    """
    code = int(disconnect.code) if disconnect is not None else 1000
    reason = disconnect.reason.encode()[:120] if disconnect is not None else b""
    async with asyncio.timeout(timeout):
        await response.close(code=code, message=reason)
