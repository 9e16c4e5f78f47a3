"""Tasks that somebody owns, and the supervisor of those that run as long as their owner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]
"""Makes the coroutine of a long-lived task; called again whenever the task has failed."""

PAUSES_SECS = (0.0, 0.1, 0.5, 2.0, 10.0)
"""Before a failed task begins again: the more often it fails, the longer."""
STABLE_SECS = 30.0
"""A task that ran for so long begins again without a pause."""


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


class Semaphores:
    """A semaphore for each key, so that nobody waits for what another key's work takes.

    Args:
        each: how many of one key may be at work at once.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._semaphores: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Semaphore:
        """The key's; it is kept as long as somebody holds it or waits for it."""
        semaphore = self._semaphores.get(key)
        if semaphore is None:
            semaphore = self._semaphores[key] = asyncio.Semaphore(self._each)
        return semaphore


class Tasks:
    """A keeper of tasks: each is referenced, its failure logged, and it ends with its owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_empty(self) -> bool:
        """Whether no task runs."""
        return not self._tasks

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


class CriticalTaskError(Exception):
    """A task without which the server cannot work has failed; the message is for the operator."""


class Supervisor:
    """The registry of all long-lived tasks. An exception that nobody expected ends none of them.

    Such an exception is logged with its traceback, and the task begins again after a pause. A
    critical task cannot begin again, because what it was doing is in an unknown state: its
    failure ends the server.

    Attributes:
        failure: of a critical task, in a sentence for the operator; None as long as there is none.
        on_failure: called at once when there is one.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._failed = asyncio.Event()
        self._running: Counter[str] = Counter()

    @property
    def running(self) -> frozenset[str]:
        """The names of the tasks that run now."""
        return frozenset(name for name, count in self._running.items() if count)

    def spawn(
        self, owner: Tasks, name: str, loop: Loop, *, critical: bool = False
    ) -> asyncio.Task[None]:
        """Run *loop* as a task of *owner* until it returns or the owner ends it.

        Args:
            name: what the task is called in the log and in :attr:`running`; several may share it.
        """
        return owner.spawn(self._supervise(name, loop, critical=critical), name)

    async def carry_out(self, name: str, loop: Loop) -> None:
        """Run *loop* once. Tests override it to have the task of that name fail."""
        await loop()

    async def wait_for_failure(self) -> None:
        """Wait until a critical task has failed."""
        await self._failed.wait()

    async def _supervise(self, name: str, loop: Loop, *, critical: bool) -> None:
        failures = 0
        self._running[name] += 1
        try:
            while True:
                began = time.monotonic()
                try:
                    await self.carry_out(name, loop)
                    return
                except Exception as error:
                    if critical:
                        self._fail(name, error)
                        return
                    logger.exception("the task %s failed; it begins again", name)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if critical or task is None or task.cancelling():
                        raise  # its owner ends it
                    logger.exception("the task %s was cancelled; it begins again", name)
                failures = 0 if time.monotonic() - began > STABLE_SECS else failures + 1
                await asyncio.sleep(PAUSES_SECS[min(failures, len(PAUSES_SECS)) - 1])
        finally:
            self._running[name] -= 1

    def _fail(self, name: str, error: Exception) -> None:
        self.failure = f"the task {name} failed and cannot continue; the log has the details"
        logger.critical("the task %s failed; the server stops", name, exc_info=error)
        self._failed.set()
        self.on_failure()
