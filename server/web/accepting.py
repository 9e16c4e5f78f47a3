"""Accepts the connections of a listening socket, and paces bursts of them."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable

from ..descriptors import next_connection

logger = logging.getLogger(__name__)

PAUSE_SECS = 0.003
"""The pause between connections of a burst."""
PAUSE_STEP = 100
"""Of the first 100 connections of a burst each is followed by a pause, of the next 100 every
second, and so on: 10,000 connections wait 2 seconds instead of 30."""


async def accept_connections(
    listening: socket.socket, make_connection: Callable[[], asyncio.Protocol], pause: float
) -> None:
    """Accept connections; runs forever."""
    loop = asyncio.get_running_loop()
    backlog = select.poll()
    backlog.register(listening, select.POLLIN)
    burst = 0
    while True:
        accepted = await next_connection(listening)
        connecting = asyncio.ensure_future(loop.connect_accepted_socket(make_connection, accepted))
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await connecting  # asyncio would close the connection
            raise
        except Exception:
            logger.exception("cannot serve a connection")
            accepted.close()
        burst = burst + 1 if backlog.poll(0) else 0
        if should_pause(burst):
            await asyncio.sleep(pause)


def should_pause(burst: int) -> bool:
    """Return whether a pause follows the connection of that number in a burst."""
    return burst > 0 and burst % (1 + burst // PAUSE_STEP) == 0
