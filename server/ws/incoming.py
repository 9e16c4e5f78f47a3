"""Limits the memory that unhandled messages of clients take.

aiohttp buffers a message until it is whole. Therefore a large message must get its bytes from the
budget of its app before more than its beginning is read. The connection is not read while the
message waits for the budget.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import msgspec
from aiohttp import web

from ..errors import CloseCode
from ..limits import ByteBudget, Reservation
from .disconnect import Disconnect
from .upgrade import HARD_MAX_FRAME_BYTES

UNBUDGETED_BYTES = 4 << 10
"""Bytes of each connection's messages that need no budget."""
MAX_FRAGMENTS = 1024
"""Frames of one message. Each frame has a cost, however small it is."""
RETRY_AFTER_MS = 5000
_CONTROL = 0x8
_MIN_HEADER_BYTES, _MAX_HEADER_BYTES = 2, 14
_LENGTHS = {126: 2, 127: 8}


class IncomingLimits(msgspec.Struct):
    """The limits of messages that are in memory and not handled.

    Attributes:
        budget: bytes of all apps and of each app; request bodies share it.
        timeout: seconds in which a whole message must arrive.
        stall_timeout: seconds in which another byte of it must arrive.
        budget_timeout: seconds that a message may wait for the budget.
    """

    budget: ByteBudget
    timeout: float
    stall_timeout: float
    budget_timeout: float = 10.0


INCOMING_LIMITS = web.AppKey("incoming-limits", IncomingLimits)


class FrameScanner:
    """Parses the frame headers of RFC 6455, section 5.2, and counts the bytes of messages.

    Attributes:
        message: bytes received of the unfinished message.
        frames: frames received of the unfinished message.
        whole: bytes of whole messages; the reader subtracts those that it has handled.
        expected: the size of the unfinished message, from its frame headers; None if further
            frames will follow.
        is_in_message: whether a message is unfinished.
    """

    __slots__ = (
        *("_header", "_is_control", "_is_final", "_left"),
        *("expected", "frames", "is_in_message", "message", "whole"),
    )

    def __init__(self) -> None:
        self.message = 0
        self.frames = 0
        self.whole = 0
        self.expected: int | None = 0
        self.is_in_message = False
        self._header = b""
        self._left = 0
        self._is_control = False
        self._is_final = True

    def feed(self, data: bytes) -> None:
        """Count more received bytes. After too many frames of one message, nothing is counted."""
        at, end = 0, len(data)
        while at < end and self.frames <= MAX_FRAGMENTS:
            if self._left:
                size = min(self._left, end - at)
                at += size
                self._count_payload(size)
                continue
            header = self._header + data[at : at + _MAX_HEADER_BYTES - len(self._header)]
            size = _header_size(header)
            if len(header) < size:
                self._header = header
                return
            at += size - len(self._header)
            self._header = b""
            self._begin_frame(header)

    def _begin_frame(self, header: bytes) -> None:
        first, size = header[0], header[1] & 0x7F
        if size in _LENGTHS:
            size = int.from_bytes(header[2 : 2 + _LENGTHS[size]], "big")
        self._left = size
        self._is_control = bool(first & _CONTROL)
        if self._is_control:
            return
        self.frames += 1
        self._is_final = bool(first & 0x80)
        self.is_in_message = True
        self.expected = self.message + size if self._is_final else None
        if not size:
            self._count_payload(0)

    def _count_payload(self, size: int) -> None:
        self._left -= size
        if self._is_control:
            return
        self.message += size
        if self._is_final and not self._left:
            self.whole += self.message
            self.message = self.frames = self.expected = 0
            self.is_in_message = False


def _header_size(header: bytes) -> int:
    if len(header) < _MIN_HEADER_BYTES:
        return _MIN_HEADER_BYTES
    return _MIN_HEADER_BYTES + _LENGTHS.get(header[1] & 0x7F, 0) + (4 if header[1] & 0x80 else 0)


@runtime_checkable
class PausableConnection(Protocol):
    """The HTTP connection under a WebSocket, as ``web/listener.py`` implements it.

    Attributes:
        scanner: counts the connection's messages.
        on_data: called after the scanner has counted more bytes.
    """

    scanner: FrameScanner
    on_data: Callable[[], None] | None

    def pause_socket(self) -> None: ...
    def resume_socket(self) -> None: ...


class IncomingMessages:
    """The unhandled messages of one connection, which use the budget of its app.

    Args:
        connection: is not read while a message waits for the budget.
        app_name: the app whose budget is used.
        refuse: closes the WebSocket.
    """

    def __init__(
        self,
        connection: PausableConnection,
        limits: IncomingLimits,
        app_name: str,
        refuse: Callable[[Disconnect], None],
    ) -> None:
        self._connection = connection
        self._scanner = connection.scanner
        self._limits = limits
        self._app_name = app_name
        self._refuse = refuse
        self._reservations: list[Reservation] = []
        self._reserved = 0
        self._budget_timer: asyncio.TimerHandle | None = None
        self._started = self._last_data = 0.0
        connection.on_data = self.on_data
        self.on_data()

    def on_data(self) -> None:
        """Reserve the bytes that the messages need, after the scanner has counted more."""
        self._last_data = time.monotonic()
        if self._scanner.frames > MAX_FRAGMENTS:
            self._connection.pause_socket()
            self._close(f"a message has at most {MAX_FRAGMENTS} fragments")
            return
        needed = self._needed()
        if not self._reserved and needed:
            self._started = self._last_data
        if needed > self._reserved:
            self._reserve(needed - self._reserved)

    def message_handled(self, size: int) -> None:
        """Stop counting a message of *size* bytes."""
        self._scanner.whole -= size
        self._started = self._last_data = time.monotonic()
        if not self._needed():
            self.release()

    def check_timeouts(self, now: float) -> None:
        """Refuse a message that has its budget and arrives too slowly."""
        if (
            not self._scanner.is_in_message
            or not self._reservations
            or self._budget_timer is not None
        ):
            return
        is_stalled = now - self._last_data > self._limits.stall_timeout
        if is_stalled or now - self._started > self._limits.timeout:
            self._close("a message did not arrive in time")

    def release(self) -> None:
        """Return all bytes to the budget."""
        reservations, self._reservations, self._reserved = self._reservations, [], 0
        for reservation in reservations:
            self._limits.budget.release(reservation)
        self._stop_waiting()

    def _close(self, reason: str) -> None:
        self._refuse(Disconnect(CloseCode.OVERLOADED, reason, retry_after_ms=RETRY_AFTER_MS))

    def _needed(self) -> int:
        """Bytes of all unhandled messages, including the rest of the unfinished one."""
        scanner = self._scanner
        size = scanner.whole + scanner.message
        if scanner.is_in_message and size > UNBUDGETED_BYTES:
            expected = HARD_MAX_FRAME_BYTES if scanner.expected is None else scanner.expected
            size = scanner.whole + min(max(expected, scanner.message), HARD_MAX_FRAME_BYTES)
        return size if size > UNBUDGETED_BYTES else 0

    def _reserve(self, size: int) -> None:
        reservation = self._limits.budget.request(self._app_name, size)
        self._reservations.append(reservation)
        self._reserved += size
        if not reservation.done():
            self._connection.pause_socket()
            if self._budget_timer is None:
                self._budget_timer = asyncio.get_running_loop().call_later(
                    self._limits.budget_timeout,
                    self._close,
                    "the app's messages exceed their memory limit",
                )
            reservation.add_done_callback(self._on_granted)

    def _on_granted(self, reservation: Reservation) -> None:
        if reservation.cancelled() or not all(other.done() for other in self._reservations):
            return
        self._started = self._last_data = time.monotonic()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._budget_timer is not None:
            self._budget_timer.cancel()
            self._budget_timer = None
            self._connection.resume_socket()


def track_incoming(
    request: web.Request, app_name: str, refuse: Callable[[Disconnect], None]
) -> IncomingMessages | None:
    """Count the messages of a WebSocket against the budget of its app.

    Returns:
        None for a connection through the operator's socket.
    """
    connection = request.protocol
    if not isinstance(connection, PausableConnection):
        return None
    return IncomingMessages(connection, request.app[INCOMING_LIMITS], app_name, refuse)
