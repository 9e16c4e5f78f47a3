"""What the kernel knows of a connection: how much of what was written its peer has taken."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct

UNSENT_LOW_WATER = 64 << 10
_SIOCOUTQ = 0x5411
_BYTES_ACKED = struct.Struct("120xQ")
"""``tcpi_bytes_acked`` in the kernel's ``struct tcp_info``."""
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


def keep_little(transport: asyncio.WriteTransport) -> None:
    """Leave what a slow peer has not taken where it comes from, and not in the kernel."""
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_LOW_WATER)


def untaken(transport: asyncio.WriteTransport) -> int:
    """Bytes that the peer has not taken: in the transport's buffer, and in the kernel's."""
    connection = transport.get_extra_info("socket")
    try:
        queued = fcntl.ioctl(connection.fileno(), _SIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError, AttributeError):
        return transport.get_write_buffer_size()
    return transport.get_write_buffer_size() + int(struct.unpack("i", queued)[0])


def taken(transport: asyncio.WriteTransport) -> int:
    """Bytes that the peer has taken so far; of a connection that is not TCP, 0."""
    connection = transport.get_extra_info("socket")
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        return int(_BYTES_ACKED.unpack(info)[0])
    except (OSError, AttributeError, struct.error):
        return 0


class StallWatch:
    """Drops a peer that takes nothing of what it is sent.

    Args:
        timeout: seconds without a byte taken.

    Attributes:
        written: bytes that have been written so far; the writer counts them.
    """

    def __init__(self, transport: asyncio.WriteTransport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._taken = 0
        self._timer: asyncio.TimerHandle | None = None
        self.written = 0

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        waiting = untaken(self._transport)
        taken = self.written - waiting
        if waiting and taken == self._taken:
            self._transport.abort()  # the only thing that frees a blocked write
            return
        self._taken = taken
        self.start()
