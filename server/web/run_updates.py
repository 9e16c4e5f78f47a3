"""The updates of a run on their way to the client that waits for its result."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from .sse import EventStream

MAX_UNSENT_BYTES = 16 << 20
"""Updates that a slow client has not read. Above it the run is stopped."""


class UpdateQueue:
    """The updates of a run that have not been sent to its client.

    Attributes:
        on_full: called if the client reads so slowly that too many wait.
    """

    def __init__(self) -> None:
        self.on_full: Callable[[], object] = lambda: None
        self._updates: deque[bytes] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._is_closed = False

    def add(self, update: bytes) -> None:
        """Add an update of the run."""
        if self._is_closed:
            return
        self._size += len(update)
        self._updates.append(update)
        self._arrived.set()
        if self._size > MAX_UNSENT_BYTES:
            self.on_full()

    def close(self) -> None:
        """Discard the updates that wait, and all that follow."""
        self._is_closed = True
        self._updates.clear()

    async def send(self, stream: EventStream, done: asyncio.Future[Any]) -> None:
        """Send updates as they arrive, until *done* is done and none is left."""
        done.add_done_callback(lambda _: self._arrived.set())
        while True:
            self._arrived.clear()
            while self._updates:
                update = self._updates.popleft()
                await stream.send_named("update", update)
                self._size -= len(update)
            if done.done():
                return
            try:
                async with asyncio.timeout(stream.keep_alive_secs):
                    await self._arrived.wait()
            except TimeoutError:
                await stream.keep_alive()
