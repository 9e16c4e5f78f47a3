"""One prepared WebSocket, whatever is spoken on it: what is written, read and watched.

The writer is a loop: what there is to send goes out, and else it waits to be
woken. What that is, a subclass says: a session's log behind a cursor, or several
of them. Frames that are no entries (answers, pongs) wait in a small outbox.

The reader never awaits a turn, or a cancel could not be read. It also owns the
close: the writer says good-bye, and the reader shuts the socket.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any

from aiohttp import HttpVersion11, WSMsgType, hdrs, web

from ..codec import MAX_CONTAINERS, MAX_VALUES, aside, has_too_many_values
from ..errors import CLOSE_CODES, CloseCode, Error, bad_request
from ..limits import TokenBucket
from ..storage.failures import failure_of
from . import framing, tcp
from .incoming import Incoming, IncomingConnection, IncomingLimits

logger = logging.getLogger(__name__)

WRITE_BYTES = 256 << 10
"""What goes into the transport at once; more waits in the log."""
OUTBOX_FRAMES = 256
OUTBOX_BYTES = 64 << 10
"""Above so many answers unsent, or so large ones, no further command is read, and the one before
them counts as not handled."""
CLOSE_SECS = 3.0
MAX_FRAME_BYTES = 4 << 20
HARD_MAX_FRAME_BYTES = 2 * MAX_FRAME_BYTES
TOO_BIG = (
    f"a frame has at most {MAX_FRAME_BYTES} bytes, {MAX_CONTAINERS} objects and arrays and"
    f" {MAX_VALUES} values: do not send this one again"
)
INCOMING_LIMITS = web.AppKey("incoming-limits", IncomingLimits)
RETRY_MS = 5000
BURST_SECS = 10
"""So many seconds' worth of commands may come at once."""


class Disconnect(Exception):  # noqa: N818 - not an error
    """The socket is to be closed, by code and reason."""

    def __init__(self, code: CloseCode, reason: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after_ms = retry_after_ms

    @classmethod
    def of(cls, error: Error) -> Disconnect:
        """What ends a socket that cannot go on for *error*."""
        return cls(CLOSE_CODES.get(error.code, CloseCode.INTERNAL), error.message)


async def is_too_big(data: bytes) -> bool:
    """Whether a frame is over the bound, in bytes or in values.

    aiohttp has a bound of its own, but it closes while the peer still sends: the
    peer then sees a reset instead of why. So that one is set higher, for those
    who are far over, and this one says good-bye in order.
    """
    if len(data) > MAX_FRAME_BYTES:
        return True
    return await aside(has_too_many_values, data)


def new_socket(
    request: web.Request, protocols: tuple[str, ...] = ()
) -> web.WebSocketResponse[bool]:
    """A response that becomes a socket; it leaves pings and text to its peer.

    Raises:
        Error: ``bad_request``, for what aiohttp does not check.
    """
    if request.version < HttpVersion11:
        raise bad_request("a WebSocket needs HTTP/1.1")
    if not request.headers.get(hdrs.SEC_WEBSOCKET_KEY, "").isascii():
        raise bad_request("Sec-WebSocket-Key: must be base64")
    return web.WebSocketResponse(
        protocols=protocols,
        max_msg_size=HARD_MAX_FRAME_BYTES,
        compress=False,
        autoping=False,
        decode_text=False,
        timeout=3,
    )


class WebSocketConnection(abc.ABC):
    """A prepared socket.

    Args:
        name: what the server's log calls it.
        commands_per_sec: how many frames it may send.
    """

    def __init__(
        self,
        request: web.Request,
        socket_response: web.WebSocketResponse[bool],
        app_name: str,
        *,
        name: str,
        commands_per_sec: float,
    ) -> None:
        assert request.transport is not None
        self.app_name = app_name
        self.name = name
        self._request = request
        self._ws = socket_response
        self._transport: asyncio.WriteTransport = request.transport
        self._rate = TokenBucket(commands_per_sec, BURST_SECS * commands_per_sec)
        # Lists and futures: an idle socket's deques and events took 3.7 KB.
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None]
        self._is_due = False
        # Of its own: to look at the future costs a thousand viewers a cache miss each.
        self._is_resting = False
        self._rest: asyncio.Future[None] | None = None
        self._goodbye: Disconnect | None = None
        self._patience: asyncio.Timeout | None = None
        self._heartbeat_due = False
        now = time.monotonic()
        self._last_heard = now
        self._last_wrote = now
        self._last_beat = now
        self._incoming: Incoming | None = None
        self._pong: bytes | None = None
        self._draining = False
        self._written = 0
        self._taken = 0
        self._last_took = now

    # What a subclass says.

    @property
    def lag(self) -> int:
        """Entries of its log that it has not been sent."""
        return 0

    @abc.abstractmethod
    def _enter(self) -> None:
        """The socket begins to be served."""

    @abc.abstractmethod
    def _leave(self) -> None:
        """It is not served any more."""

    @abc.abstractmethod
    async def _gather(self) -> list[bytes]:
        """What goes out next, as WebSocket frames: answers of the outbox, and entries."""

    @abc.abstractmethod
    def _has_more(self) -> bool:
        """Whether there is something to send behind what was gathered."""

    @abc.abstractmethod
    async def _command(self, data: bytes) -> None:
        """Carry out what a text frame asks."""

    def _take_binary(self) -> None:
        """A binary frame has come."""
        self.close(Disconnect(CloseCode.BAD_FRAME, "frames are text"))

    def _natural_end(self) -> Disconnect | None:
        """Why the socket is over by itself, once it is."""
        return None

    def _heartbeat(self) -> list[bytes]:
        """What goes before the heartbeat's ping, as WebSocket frames."""
        return []

    def _farewell(self, goodbye: Disconnect) -> list[bytes]:
        """The last WebSocket frames before the close."""
        return []

    # What others may ask of it.

    def send(self, frame: bytes) -> None:
        """Send a frame that is no log entry; it goes before entries not yet sent."""
        self._outbox.append(frame)
        self._outbox_bytes += len(frame)
        is_full = len(self._outbox) > OUTBOX_FRAMES or self._outbox_bytes > OUTBOX_BYTES
        if is_full and self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        self.wake()

    def wake(self) -> None:
        """Have the writer look for what there is to send."""
        self._is_due = True
        if self._rest is not None and not self._rest.done():
            self._is_resting = False
            self._rest.set_result(None)

    def close(self, goodbye: Disconnect) -> None:
        """Say good-bye behind what is on its way, and close."""
        if self._goodbye is None:
            self._goodbye = goodbye
            self.wake()

    def abort(self) -> None:
        """Drop the connection; the only thing that frees a blocked one at once."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def tick(self, now: float, heartbeat: float, stall_timeout: float) -> None:
        """Heartbeat when it is due, and drop a peer that is gone.

        A peer that takes nothing for *stall_timeout* is dropped, and so is a
        quiet one that answers no ping. Whoever is only slow answers late: as long
        as data flowed lately, no pong is asked for.
        """
        # Who had taken all, and was sent nothing since, need not be asked.
        untaken = tcp.untaken(self._transport) if self._taken != self._written else 0
        taken = self._written - untaken
        if not untaken or taken != self._taken:
            self._taken, self._last_took = taken, now
        elif now - self._last_took >= stall_timeout:
            logger.info("%s: the peer takes nothing; dropped", self.name)
            self.close(Disconnect(CloseCode.STALLED, "the peer takes nothing"))
            self.abort()
            return
        if self._incoming is not None:
            self._incoming.tick(now)
        if self._draining:
            return
        silent = now - self._last_heard > max(stall_timeout, 1.5 * heartbeat)
        if silent and now - self._last_wrote > 2 * stall_timeout:
            self.close(Disconnect(CloseCode.NO_PONG, "no pong"))
        if now - self._last_beat >= heartbeat:
            self._last_beat = now
            self._heartbeat_due = True
            self.wake()

    # Its life.

    async def run(self) -> None:
        """Serve the socket until it is closed."""
        tcp.keep_little(self._transport)
        self._transport.set_write_buffer_limits(high=WRITE_BYTES)
        self._incoming = self._count_incoming()
        self._enter()
        writer = self._writer = asyncio.create_task(self._write_all(), name=self.name)
        try:
            await self._read_all()
            await self._shut()
        finally:
            self._leave()
            if self._incoming is not None:
                self._incoming.end()
            if not writer.done():
                # Never cancelled while it may be sending: its transport goes, and it ends.
                self.close(Disconnect(CloseCode.GOING_AWAY, "the peer is gone"))
                self.abort()
            await asyncio.gather(writer, return_exceptions=True)

    def _count_incoming(self) -> Incoming | None:
        """Have the bytes of its messages counted on its app's account."""
        connection = self._request.protocol
        if not isinstance(connection, IncomingConnection):
            return None  # the operator's
        limits = self._request.app[INCOMING_LIMITS]
        return Incoming(
            connection,
            limits.budget,
            self.app_name,
            refuse=lambda why: self.close(
                Disconnect(CloseCode.OVERLOADED, why, retry_after_ms=RETRY_MS)
            ),
            largest=HARD_MAX_FRAME_BYTES,
            timeout=limits.timeout,
            stall_timeout=limits.stall_timeout,
        )

    async def _shut(self) -> None:
        goodbye = self._goodbye
        code = int(goodbye.code) if goodbye is not None else 1000
        reason = goodbye.reason.encode()[:120] if goodbye is not None else b""
        try:
            async with asyncio.timeout(CLOSE_SECS):
                await self._ws.close(code=code, message=reason)
        except TimeoutError:
            self.abort()

    # Down.

    async def _write_all(self) -> None:
        try:
            while not await self._write_some():
                if not self._is_due:
                    self._rest = asyncio.get_running_loop().create_future()
                    self._is_resting = True
                    await self._rest
        except (ConnectionError, asyncio.CancelledError):
            pass  # the peer is gone; the reader sees it too
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            self._give_up(Disconnect.of(failure_of(error, self.name)))
        if self._patience is not None:
            self._patience.reschedule(0)

    def _give_up(self, goodbye: Disconnect) -> None:
        self._goodbye = goodbye
        with contextlib.suppress(ConnectionError):
            self._write(b"".join(self._farewell(goodbye)))

    async def _write_some(self) -> bool:
        """Send all that there is to send; True after the last frame."""
        while True:
            self._is_due = False
            goodbye = self._goodbye
            is_revoked = goodbye is not None and goodbye.code is CloseCode.REVOKED
            chunks = [] if is_revoked else await self._gather()
            if self._heartbeat_due:
                self._heartbeat_due = False
                chunks += [*self._heartbeat(), framing.ping_frame()]
            elif chunks:
                self._last_wrote = time.monotonic()
            if self._pong is not None:
                chunks.append(framing.pong_frame(self._pong))
                self._pong = None
            goodbye = self._goodbye = self._goodbye or self._natural_end()
            if goodbye is not None:
                chunks += self._farewell(goodbye)
            await self._write_in_pieces(b"".join(chunks))
            await self._drain(WRITE_BYTES if goodbye is None else 0)
            self._make_room()
            if goodbye is not None:
                return True
            if not self._outbox and not self._has_more():
                return False

    async def _write_in_pieces(self, data: bytes) -> None:
        """Write *data*, of which one entry may be megabytes, as the peer takes it."""
        view = memoryview(data)
        while len(view) > 2 * WRITE_BYTES:
            self._write(view[:WRITE_BYTES])
            view = view[WRITE_BYTES:]
            await self._drain(WRITE_BYTES)
        self._write(view)

    def _take_outbox(self) -> list[bytes]:
        taken = [framing.text_frame(frame) for frame in self._outbox]
        self._outbox, self._outbox_bytes = [], 0
        return taken

    def _make_room(self) -> None:
        """What was in the outbox has been written: commands are read again."""
        if self._room is not None and not self._outbox:
            self._room.set_result(None)
            self._room = None

    def _write(self, data: bytes | memoryview) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError
        self._written += len(data)
        self._transport.write(data)

    async def _drain(self, limit: int) -> None:
        """Wait until the transport's buffer is as good as below *limit*."""
        if self._transport.is_closing():
            raise ConnectionResetError
        if self._transport.get_write_buffer_size() <= limit:
            # The protocol is not paused then: let others run, and go on.
            await asyncio.sleep(0)
            return
        self._transport.set_write_buffer_limits(high=limit)
        self._draining = True
        try:
            await self._request.writer.drain()
        finally:
            self._draining = False
            self._last_wrote = time.monotonic()

    # Up.

    async def _read_all(self) -> None:
        while True:
            message = await self._receive()
            if message is None:
                return
            self._last_heard = time.monotonic()
            if not self._rate.allows():
                self.close(Disconnect(CloseCode.RATE_LIMIT, "too many frames", retry_after_ms=1000))
                await asyncio.wait({self._writer})
                return
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY) and (
                await is_too_big(message.data)
            ):
                self.close(Disconnect(CloseCode.TOO_BIG, TOO_BIG))
            elif message.type is WSMsgType.TEXT:
                await self._obey(message.data)
            elif message.type is WSMsgType.BINARY:
                self._take_binary()
            elif message.type is WSMsgType.PING:
                self._pong = bytes(message.data)  # the newest alone is answered
                self.wake()
            elif message.type is not WSMsgType.PONG:
                return
            if self._room is not None:
                await self._until_goodbye(asyncio.wait({self._room}))
            if self._incoming is not None and message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self._incoming.handled(len(message.data))

    async def _obey(self, data: bytes) -> None:
        if self._goodbye is not None:  # the writer is about to say it
            return
        try:
            await self._command(data)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            self.close(Disconnect.of(failure_of(error, f"a command of {self.name}")))

    async def _receive(self) -> Any:
        """The next message, or None once good-bye is said."""
        return await self._until_goodbye(self._ws.receive())

    async def _until_goodbye(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._writer.done():
            coroutine.close()
            return None
        try:
            async with asyncio.timeout(None) as self._patience:
                return await coroutine
        except TimeoutError:
            return None
        finally:
            self._patience = None
