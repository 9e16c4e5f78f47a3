"""Waits until descriptors are readable, and accepts the connections of listening sockets."""

from __future__ import annotations

import asyncio
import logging
import socket

logger = logging.getLogger(__name__)

ACCEPT_RETRY_SECS = 1.0
"""The delay after a failed accept. Descriptors or memory may be available again by then."""


async def until_readable(descriptor: int | socket.socket) -> None:
    """Wait until *descriptor* is readable. Only one task may wait for it."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


async def next_connection(listening: socket.socket) -> socket.socket:
    """Accept the next connection, as soon as there are descriptors for it.

    A connection that arrives as the caller is cancelled stays in the queue of the kernel.
    ``loop.sock_accept`` would accept and lose it.

    Args:
        listening: a socket that does not block.
    """
    while True:
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, InterruptedError):
            await until_readable(listening)
        except ConnectionAbortedError:
            continue
        except OSError as error:
            logger.error("cannot accept connections: %s", error.strerror)
            await asyncio.sleep(ACCEPT_RETRY_SECS)
        else:
            accepted.setblocking(False)
            return accepted
