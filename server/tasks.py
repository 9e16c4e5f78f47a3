"""Tasks that somebody owns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


async def to_completion(work: Coroutine[Any, Any, Result]) -> Result:
    """Await *work* to its end, even if the waiter is cancelled meanwhile.

    A commit that nobody waits for is carried out all the same, so its outcome alone must decide
    what is true in memory. The waiter is cancelled at its next ``await``.
    """
    task, waiter = asyncio.create_task(work), asyncio.current_task()
    assert waiter is not None
    cancels = 0
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancels += 1
            waiter.uncancel()  # else an `asyncio.timeout` of the waiter would not know its own
    for _ in range(cancels):
        waiter.cancel()
    return task.result()


class Tasks:
    """A keeper of tasks: each is referenced, its failure logged, and it ends with its owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run *coroutine* as a task of this keeper."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def finish(self, patience: float) -> None:
        """Give the tasks *patience* seconds to end by themselves, then end them."""
        if self._tasks and patience > 0:
            await asyncio.wait(tuple(self._tasks), timeout=patience)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
