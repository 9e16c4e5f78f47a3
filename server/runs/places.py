"""So many places at once, and a short queue for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from ..errors import Error

RETRY_SECS = 5


class Queue:
    """Places, first come first served; who would wait for too long is refused.

    Args:
        places: how many are held at once.
        length: how many may wait for one.
        patience: seconds that each of them waits.
    """

    def __init__(self, places: int, length: int, patience: float) -> None:
        self._places = places
        self._free = places
        self._length = length
        self._patience = patience
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def held(self) -> int:
        return self._places - self._free

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def hold(self, unwanted: asyncio.Future[Any]) -> AsyncIterator[None]:
        """Hold a place for the time of the block.

        Args:
            unwanted: done when the place is no longer wanted.

        Raises:
            Error: ``pool_full``; the queue is full, or it took too long.
        """
        await self._enter(unwanted)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, unwanted: asyncio.Future[Any]) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        if len(self._waiting) >= self._length:
            raise _full("the server runs all that it may, and its queue is full")
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await asyncio.wait(
                {mine, unwanted}, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif mine.exception() is None:
                self._leave()  # the place came in the same moment
            raise
        if not mine.done():
            self._waiting.remove(mine)
            raise _full("the server runs all that it may, for too long already")
        mine.result()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1

    def refuse_all(self, error: Error) -> None:
        """Let nobody wait any longer."""
        while self._waiting:
            self._waiting.popleft().set_exception(error)


def _full(message: str) -> Error:
    return Error("pool_full", message, retry_after=RETRY_SECS)
