"""What a WebSocket's peer has sent and nobody has handled yet: counted, and paid for.

aiohttp keeps a message until it is whole. So a large one needs room in the budget of its app
before more than its beginning is read; the connection is not read while it waits for that.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ..limits import ByteBudget, Claim

FREE_BYTES = 4 << 10
"""So much of a socket's messages needs no room."""
MAX_FRAMES = 1024
"""In so many frames a message may come. Each costs, however small it is."""
ROOM_SECS = 10.0
"""So long a message waits for others to be done with."""
_CONTROL = 0x8
_SHORT_HEAD, _LONGEST_HEAD = 2, 14
_LENGTHS = {126: 2, 127: 8}


@dataclasses.dataclass(slots=True)
class IncomingLimits:
    """The bounds on messages that are in memory and not handled.

    Attributes:
        budget: bytes of all apps and of each; request bodies share it.
        timeout: seconds that a whole message may take.
        stall_timeout: seconds without a byte of it.
    """

    budget: ByteBudget
    timeout: float
    stall_timeout: float


class FrameScanner:
    """Follows the frames of RFC 6455, 5.2, and counts the bytes of messages.

    Attributes:
        message: bytes of the message that has begun.
        frames: how many of its frames have begun.
        whole: bytes of messages that are whole, until somebody subtracts them.
        expected: bytes that the message will have as far as its frames tell; None if more of
            them will come.
        is_in_message: whether a message has begun that is not whole.
    """

    __slots__ = (
        *("_head", "_is_control", "_is_final", "_left"),
        *("expected", "frames", "is_in_message", "message", "whole"),
    )

    def __init__(self) -> None:
        self.message = 0
        self.frames = 0
        self.whole = 0
        self.expected: int | None = 0
        self.is_in_message = False
        self._head = b""
        self._left = 0
        self._is_control = False
        self._is_final = True

    def feed(self, data: bytes) -> None:
        """Look at more of what the peer sends; once it has sent too many frames, at nothing."""
        at, end = 0, len(data)
        while at < end and self.frames <= MAX_FRAMES:
            if self._left:
                size = min(self._left, end - at)
                at += size
                self._take(size)
                continue
            head = self._head + data[at : at + _LONGEST_HEAD - len(self._head)]
            size = _head_size(head)
            if len(head) < size:
                self._head = head
                return
            at += size - len(self._head)
            self._head = b""
            self._begin_frame(head)

    def _begin_frame(self, head: bytes) -> None:
        first, size = head[0], head[1] & 0x7F
        if size in _LENGTHS:
            size = int.from_bytes(head[2 : 2 + _LENGTHS[size]], "big")
        self._left = size
        self._is_control = bool(first & _CONTROL)
        if self._is_control:
            return
        self.frames += 1
        self._is_final = bool(first & 0x80)
        self.is_in_message = True
        self.expected = self.message + size if self._is_final else None
        if not size:
            self._take(0)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._is_control:
            return
        self.message += size
        if self._is_final and not self._left:
            self.whole += self.message
            self.message = self.frames = self.expected = 0
            self.is_in_message = False


def _head_size(head: bytes) -> int:
    if len(head) < _SHORT_HEAD:
        return _SHORT_HEAD
    return _SHORT_HEAD + _LENGTHS.get(head[1] & 0x7F, 0) + (4 if head[1] & 0x80 else 0)


@runtime_checkable
class IncomingConnection(Protocol):
    """What a connection does for this, once it is a socket: see ``door.py``.

    Attributes:
        scanner: of its frames.
        more_has_come: told of each piece of them.
    """

    scanner: FrameScanner
    more_has_come: Callable[[], None] | None

    def pause_socket(self) -> None: ...
    def resume_socket(self) -> None: ...


class Incoming:
    """The room of a socket's messages.

    Args:
        connection: it is not read while a message waits for room.
        budget: from which the room is taken, on the account of *app_name*.
        refuse: close the socket, for the reason.
        largest: bytes that a message may have.
        timeout: seconds that a whole message may take.
        stall_timeout: seconds without a byte of it.
    """

    def __init__(
        self,
        connection: IncomingConnection,
        budget: ByteBudget,
        app_name: str,
        *,
        refuse: Callable[[str], None],
        largest: int,
        timeout: float,
        stall_timeout: float,
    ) -> None:
        self._connection = connection
        self._scanner = connection.scanner
        self._budget = budget
        self._app_name = app_name
        self._refuse = refuse
        self._largest = largest
        self._timeout = timeout
        self._stall_timeout = stall_timeout
        self._claims: list[Claim] = []
        self._claimed = 0
        self._patience: asyncio.TimerHandle | None = None
        self._began = self._came = 0.0
        connection.more_has_come = self.more_has_come
        self.more_has_come()

    def more_has_come(self) -> None:
        """Bytes have come; the scanner has seen them."""
        self._came = time.monotonic()
        if self._scanner.frames > MAX_FRAMES:
            self._connection.pause_socket()
            self._refuse(f"a message has at most {MAX_FRAMES} fragments")
            return
        wanted = self._wanted()
        if not self._claimed and wanted:
            self._began = self._came
        if wanted > self._claimed:
            self._claim(wanted - self._claimed)

    def handled(self, size: int) -> None:
        """A message of *size* bytes needs no room any more."""
        self._scanner.whole -= size
        self._began = self._came = time.monotonic()
        if not self._wanted():
            self._give_back()

    def tick(self, now: float) -> None:
        """Refuse a message that has room and takes too long to come."""
        if not self._scanner.is_in_message or not self._claims or self._patience is not None:
            return
        if now - self._came > self._stall_timeout or now - self._began > self._timeout:
            self._refuse("a message did not come in time")

    def end(self) -> None:
        """The socket is over."""
        self._give_back()

    def _wanted(self) -> int:
        """Bytes that are needed for what has come, and for the rest of its last message."""
        scanner = self._scanner
        size = scanner.whole + scanner.message
        if scanner.is_in_message and size > FREE_BYTES:
            expected = self._largest if scanner.expected is None else scanner.expected
            size = scanner.whole + min(max(expected, scanner.message), self._largest)
        return size if size > FREE_BYTES else 0

    def _claim(self, size: int) -> None:
        claim = self._budget.claim(self._app_name, size)
        self._claims.append(claim)
        self._claimed += size
        if not claim.done():
            self._connection.pause_socket()
            loop = asyncio.get_running_loop()
            if self._patience is None:
                self._patience = loop.call_later(
                    ROOM_SECS, self._refuse, "the app sends too much at once"
                )
            claim.add_done_callback(self._got)

    def _got(self, claim: Claim) -> None:
        if claim.cancelled() or not all(one.done() for one in self._claims):
            return
        self._began = self._came = time.monotonic()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
            self._connection.resume_socket()

    def _give_back(self) -> None:
        claims, self._claims, self._claimed = self._claims, [], 0
        for claim in claims:
            self._budget.give_back(claim)
        self._stop_waiting()
