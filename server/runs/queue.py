"""So many places at once, shared between apps, and a short queue of each app for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from ..errors import Error
from ..limits import Entry, Waiting, give_back

RETRY_SECS = 5


class Queue:
    """Places. The next one is for the waiting app that has the fewest, and among equals in turn.

    Args:
        places: how many are held at once.
        length: how many of one app may wait for one.
        patience: seconds that each of them waits.
        reserve: how many more there are for apps that have none, while all others are held and
            an app has, or asks for, more than one.
        each: how many one app may hold; 0 for all.
    """

    def __init__(
        self, places: int, length: int, patience: float, *, reserve: int = 0, each: int = 0
    ) -> None:
        self._places = places
        self._length = length
        self._patience = patience
        self._reserve = reserve
        self._each = each or places + reserve
        self._held: Counter[str] = Counter()
        self._waiting: Waiting[str] = Waiting()

    @property
    def held(self) -> int:
        return self._held.total()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def hold(self, unwanted: asyncio.Future[Any], app_name: str = "") -> AsyncIterator[None]:
        """Hold a place for the time of the block.

        Args:
            unwanted: done when the place is no longer wanted.

        Raises:
            Error: ``pool_full``; the app's queue is full, or it took too long.
        """
        await self._enter(unwanted, app_name)
        try:
            yield
        finally:
            self._leave(app_name)

    async def _enter(self, unwanted: asyncio.Future[Any], app_name: str) -> None:
        if self._has_place(app_name):  # then nobody waits who has fewer
            self._held[app_name] += 1
            return
        if len(self._waiting.of(app_name)) >= self._length:
            raise _full("the server runs all that it may, and its queue is full")
        entry = self._waiting.add(app_name, app_name)
        try:
            await asyncio.wait(
                {entry.future, unwanted},
                timeout=self._patience,
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:
            if entry.future.done() and entry.future.exception() is None:
                self._leave(app_name)  # the place came in the same moment
            raise
        finally:
            self._waiting.remove(app_name, entry)
        if not entry.future.done():
            raise _full("the server runs all that it may, for too long already")
        entry.future.result()

    def _has_place(self, app_name: str) -> bool:
        held = self._held[app_name]
        if held >= self._each:
            return False
        if self.held < self._places:
            return True
        return held == 0 and self.held < self._places + self._reserve and self._is_greedy()

    def _is_greedy(self) -> bool:
        """Whether an app holds, or waits for, more than one place: else all have their share."""
        return any(
            count + len(self._waiting.of(app_name)) > 1 for app_name, count in self._held.items()
        )

    def _leave(self, app_name: str) -> None:
        give_back(self._held, app_name)
        while (entry := self._next()) is not None:
            self._held[entry.holder] += 1
            entry.future.set_result(None)

    def _next(self) -> Entry[str] | None:
        for app_name in self._waiting.apps(lambda name: self._held[name]):
            if self._has_place(app_name):
                entry = self._waiting.of(app_name)[0]
                self._waiting.take(app_name, entry)
                return entry
        return None

    def refuse_all(self, error: Error) -> None:
        """Let nobody wait any longer."""
        for app_name in self._waiting.apps():
            for entry in self._waiting.of(app_name):
                self._waiting.remove(app_name, entry)
                entry.future.set_exception(error)


def _full(message: str) -> Error:
    return Error("pool_full", message, retry_after=RETRY_SECS)
