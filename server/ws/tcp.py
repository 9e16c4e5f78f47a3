"""The kernel's view of a TCP connection: how many of the bytes written the client has read."""

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


def limit_kernel_buffer(transport: asyncio.WriteTransport) -> None:
    """Keep the backlog of a slow client out of the kernel's send buffer."""
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_LOW_WATER)


def unread_bytes(transport: asyncio.WriteTransport) -> int:
    """Bytes that the client has not read: in the transport's buffer and in the kernel's."""
    connection = transport.get_extra_info("socket")
    try:
        queued = fcntl.ioctl(connection.fileno(), _SIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError, AttributeError):
        return transport.get_write_buffer_size()
    return transport.get_write_buffer_size() + int(struct.unpack("i", queued)[0])


def acknowledged_bytes(transport: asyncio.WriteTransport) -> int:
    """Bytes that the client has acknowledged so far; 0 for a connection that is not TCP."""
    connection = transport.get_extra_info("socket")
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        return int(_BYTES_ACKED.unpack(info)[0])
    except (OSError, AttributeError, struct.error):
        return 0


class StallWatch:
    """Aborts the connection of a client that reads nothing of what it is sent.

    Args:
        timeout: seconds in which the client must read something.

    Attributes:
        written: bytes that have been written so far; the writer counts them.
    """

    def __init__(self, transport: asyncio.WriteTransport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._bytes_read = 0
        self._timer: asyncio.TimerHandle | None = None
        self.written = 0

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout, self._check)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        unread = unread_bytes(self._transport)
        bytes_read = self.written - unread
        if unread and bytes_read == self._bytes_read:
            self._transport.abort()  # nothing else frees a blocked write
            return
        self._bytes_read = bytes_read
        self.start()
