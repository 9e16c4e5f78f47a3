"""Detects clients that read nothing or answer no ping. Times are monotonic seconds."""

from __future__ import annotations


class Liveness:
    """The signs of life of one client.

    Attributes:
        last_heard: when the client sent something last.
        bytes_read: bytes that the client had read at the last check.
    """

    __slots__ = ("_last_heartbeat", "_last_read", "bytes_read", "last_heard")

    def __init__(self, now: float) -> None:
        self.last_heard = now
        self.bytes_read = 0
        self._last_read = now
        self._last_heartbeat = now

    def is_stalled(self, now: float, written: int, unread: int, stall_timeout: float) -> bool:
        """Whether the client has read nothing for *stall_timeout*, although it could have.

        Args:
            written: bytes that were written to it so far.
            unread: how many of them it has not read.
        """
        read = written - unread
        if not unread or read != self.bytes_read:
            self.bytes_read, self._last_read = read, now
            return False
        return now - self._last_read >= stall_timeout

    def is_silent(
        self, now: float, last_write: float, heartbeat: float, stall_timeout: float
    ) -> bool:
        """Whether an idle client has not answered a ping.

        A slow client answers late: no pong is expected while data has been sent lately.

        Args:
            last_write: when data was sent last.
        """
        is_quiet = now - self.last_heard > max(stall_timeout, 1.5 * heartbeat)
        return is_quiet and now - last_write > 2 * stall_timeout

    def is_heartbeat_due(self, now: float, heartbeat: float) -> bool:
        """Whether the time for a heartbeat has come; if so, the next interval begins."""
        if now - self._last_heartbeat < heartbeat:
            return False
        self._last_heartbeat = now
        return True
