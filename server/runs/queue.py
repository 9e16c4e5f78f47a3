"""The queue of runs: run slots, shared fairly between apps, and a short queue for each app."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..errors import Error, ErrorCode
from ..limits import FairQueue, Waiter, decrement

RETRY_AFTER_SECS = 5


class RunQueue:
    """Run slots. A free slot goes to the waiting app with the fewest slots, in turn among equals.

    Args:
        slots: how many runs are in progress at once.
        max_queued_per_app: how many runs of one app may wait for a slot.
        max_wait_secs: how long a run may wait.
        reserved: additional slots for apps that have none. They are used if all other slots are
            taken and some app holds, or waits for, more than one.
        max_per_app: how many slots one app may hold; 0 for all.
        own_limit: returns the limit of an app that has its own; None for the others. Its runs above
            that limit do not wait.
    """

    def __init__(
        self,
        slots: int,
        max_queued_per_app: int,
        max_wait_secs: float,
        *,
        reserved: int = 0,
        max_per_app: int = 0,
        own_limit: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._slots = slots
        self._max_queued_per_app = max_queued_per_app
        self._max_wait_secs = max_wait_secs
        self._reserved = reserved
        self._max_per_app = max_per_app or slots + reserved
        self._own_limit = own_limit
        self._held: Counter[str] = Counter()
        self._waiting: FairQueue[str] = FairQueue()

    @property
    def held(self) -> int:
        """The number of slots that are taken."""
        return self._held.total()

    @property
    def waiting(self) -> int:
        """The number of runs that wait for a slot."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def slot(self, stopped: asyncio.Future[Any], app_name: str = "") -> AsyncIterator[None]:
        """Hold a slot for the duration of the block.

        Args:
            stopped: done if the run no longer needs a slot.

        Raises:
            Error: ``pool_full``; the app's queue is full, or the wait took too long.
        """
        await self._acquire(stopped, app_name)
        try:
            yield
        finally:
            self._release(app_name)

    async def _acquire(self, stopped: asyncio.Future[Any], app_name: str) -> None:
        if self._has_slot_for(app_name):  # then no app with fewer slots waits
            self._held[app_name] += 1
            return
        own = self._own_limit(app_name)
        if own is not None and self._held[app_name] + len(self._waiting.of(app_name)) >= own:
            raise _pool_full(f"the app may have {own} runs at once")
        if len(self._waiting.of(app_name)) >= self._max_queued_per_app:
            raise _pool_full("all run slots are taken and the queue is full")
        waiter = self._waiting.add(app_name, app_name)
        try:
            await asyncio.wait(
                {waiter.future, stopped},
                timeout=self._max_wait_secs,
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:
            if waiter.future.done() and waiter.future.exception() is None:
                self._release(app_name)  # the slot was assigned at the same moment
            raise
        finally:
            self._waiting.remove(app_name, waiter)
        if not waiter.future.done():
            raise _pool_full("timed out waiting for a run slot")
        waiter.future.result()

    def _has_slot_for(self, app_name: str) -> bool:
        held, own = self._held[app_name], self._own_limit(app_name)
        if held >= (self._max_per_app if own is None else own):
            return False
        if self.held < self._slots:
            return True
        return held == 0 and self.held < self._slots + self._reserved and self._is_contended()

    def _is_contended(self) -> bool:
        """Whether some app holds and waits for more than one slot in total.

        Otherwise each app has its fair share already, and the reserved slots stay free.
        """
        return any(
            count + len(self._waiting.of(app_name)) > 1 for app_name, count in self._held.items()
        )

    def _release(self, app_name: str) -> None:
        decrement(self._held, app_name)
        self.reconsider()

    def reconsider(self) -> None:
        """Give slots to waiting runs: a slot is free, or an app's limit has changed."""
        while (waiter := self._pop_next()) is not None:
            self._held[waiter.item] += 1
            waiter.future.set_result(None)

    def _pop_next(self) -> Waiter[str] | None:
        for app_name in self._waiting.apps(lambda name: self._held[name]):
            if self._has_slot_for(app_name):
                waiter = self._waiting.of(app_name)[0]
                self._waiting.serve(app_name, waiter)
                return waiter
        return None

    def refuse_all(self, error: Error) -> None:
        """Fail all runs that wait with *error*."""
        for app_name in self._waiting.apps():
            for waiter in self._waiting.of(app_name):
                self._waiting.remove(app_name, waiter)
                waiter.future.set_exception(error)


def _pool_full(message: str) -> Error:
    return Error(ErrorCode.POOL_FULL, message, retry_after=RETRY_AFTER_SECS)
