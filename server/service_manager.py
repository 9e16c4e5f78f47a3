"""Notifications to systemd (``sd_notify``): ready, stopping, reloading, and the watchdog.

Outside of systemd, nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Mapping

PINGS = 3
"""So often the watchdog is reset within its time."""


class ServiceManager:
    """The service manager that has started this process, if one has.

    Args:
        environ: contains ``NOTIFY_SOCKET`` and, with a watchdog, ``WATCHDOG_USEC``.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_secs = _watchdog_secs(environ) if self._address else 0.0
        """The time after which systemd restarts a server that does not respond; 0 for never."""

    def is_ready(self, status: str) -> None:
        """Report that the server accepts requests: also the end of a reload."""
        self.notify("READY=1", f"STATUS={status}")

    def is_stopping(self) -> None:
        self.notify("STOPPING=1", "STATUS=stopping; running turns may finish")

    def is_reloading(self) -> None:
        """Report the begin of a reload, which :meth:`is_ready` ends."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.notify("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reloading")

    async def feed_watchdog(self) -> None:
        """Reset the watchdog as long as this event loop runs.

        The notification is sent by a callback of the loop: a loop that is blocked, or that is so
        busy that its callbacks come too late for the clients, does not send it.
        """
        if not self.watchdog_secs:
            return
        while True:
            self.notify("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_secs / PINGS)

    def notify(self, *assignments: str) -> None:
        """Send variables to the service manager. A manager that is not there is ignored."""
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]  # an abstract socket
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.connect(address)
            sender.send("\n".join(assignments).encode())


def _watchdog_secs(environ: Mapping[str, str]) -> float:
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(usec) / 1e6
