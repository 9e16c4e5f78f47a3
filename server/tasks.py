"""Owned tasks, and the supervisor of long-lived tasks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from .errors import DatabaseError

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]
"""Returns the coroutine of a long-lived task. It is called again after each failure of the task."""

PAUSES_SECS = (0.0, 0.1, 0.5, 2.0, 10.0)
"""Pauses before a failed task restarts. Each failure in a row selects the next one."""
RESTART_RESET_SECS = 30.0
"""A task that ran longer than this restarts without a pause."""


async def to_completion(work: Coroutine[Any, Any, Result]) -> Result:
    """Await *work* to its end, even if the waiting task is cancelled.

    A commit is executed even if its caller is cancelled, so the state in memory must follow the
    result of the commit. The waiting task is cancelled at its next ``await``.
    """
    task, waiter = asyncio.create_task(work), asyncio.current_task()
    assert waiter is not None
    cancels = 0
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancels += 1
            waiter.uncancel()  # so that an `asyncio.timeout` recognises its own cancellation
    for _ in range(cancels):
        waiter.cancel()
    return task.result()


class Semaphores:
    """A semaphore for each key, so that the work of one key does not delay another's.

    Args:
        each: the limit of one key.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._semaphores: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Semaphore:
        """The semaphore of a key. It exists while a task holds it or waits for it."""
        semaphore = self._semaphores.get(key)
        if semaphore is None:
            semaphore = self._semaphores[key] = asyncio.Semaphore(self._each)
        return semaphore


class Tasks:
    """The tasks of one owner: keeps references, logs failures, and cancels the tasks at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_empty(self) -> bool:
        """Whether no task runs."""
        return not self._tasks

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a coroutine as a task."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    def cancel(self) -> None:
        """Cancel the tasks, without waiting for their end."""
        for task in tuple(self._tasks):
            task.cancel()

    async def wait_empty(self) -> None:
        """Wait until no task runs, not even one that another has begun."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def finish(self, timeout: float) -> None:
        """Wait at most *timeout* seconds for the tasks to end, then cancel them."""
        if self._tasks and timeout > 0:
            await asyncio.wait(tuple(self._tasks), timeout=timeout)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2
"""The exit status after which a service manager should not start the server again."""


class CriticalTaskError(Exception):
    """A critical task has failed, so the server stops. The message is for the operator.

    Attributes:
        exit_status: of the process.
    """

    def __init__(self, message: str, exit_status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Supervisor:
    """Runs all long-lived tasks, and restarts them after unexpected exceptions.

    The exception is logged with its traceback, and the task restarts after a pause. A critical task
    cannot restart, because its work is in an unknown state: its failure stops the server.

    Attributes:
        failure: the failure of a critical task, as a sentence for the operator; None without one.
        exit_status: of the process after such a failure.
        on_failure: called as soon as a critical task fails.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.exit_status = EXIT_FAILED
        self.on_failure: Callable[[], None] = lambda: None
        self._failed = asyncio.Event()
        self._running: Counter[str] = Counter()

    @property
    def running(self) -> frozenset[str]:
        """The names of the running tasks."""
        return frozenset(name for name, count in self._running.items() if count)

    def spawn(
        self, owner: Tasks, name: str, loop: Loop, *, critical: bool = False
    ) -> asyncio.Task[None]:
        """Run *loop* as a task of *owner* until it returns or the owner cancels it.

        Args:
            name: of the task, for the log and :attr:`running`. Tasks may share a name.
            critical: whether the server stops if the task fails.
        """
        return owner.spawn(self._supervise(name, loop, critical=critical), name)

    async def execute(self, name: str, loop: Loop) -> None:
        """Run *loop* once. Tests override this to make a task fail."""
        await loop()

    def fail(self, message: str, exit_status: int = EXIT_FAILED) -> None:
        """Stop the server as after the failure of a critical task.

        Args:
            message: for the operator, one line.
        """
        if self.failure is None:
            self.failure = message
            self.exit_status = exit_status
            logger.critical("%s; the server stops", message)
            self._failed.set()
            self.on_failure()

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
                    await self.execute(name, loop)
                    return
                except Exception as error:  # noqa: BLE001 - both branches log it
                    if critical:
                        self._fail(name, error)
                        return
                    _log_restart(name, error)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if critical or task is None or task.cancelling():
                        raise  # by its owner
                    logger.exception("the task %s was cancelled; it restarts", name)
                failures = 0 if time.monotonic() - began > RESTART_RESET_SECS else failures + 1
                await asyncio.sleep(PAUSES_SECS[min(failures, len(PAUSES_SECS)) - 1])
        finally:
            self._running[name] -= 1

    def _fail(self, name: str, error: Exception) -> None:
        self.failure = f"the task {name} failed and cannot continue; the log has the details"
        logger.critical("the task %s failed; the server stops", name, exc_info=error)
        self._failed.set()
        self.on_failure()


def _log_restart(name: str, error: Exception) -> None:
    """Log why a task restarts; without a traceback if the machine is at fault and not the code."""
    if isinstance(error, DatabaseError) and error.is_transient:
        logger.error("the task %s failed, and restarts: %s", name, error)
    else:
        logger.error("the task %s failed; it restarts", name, exc_info=error)
