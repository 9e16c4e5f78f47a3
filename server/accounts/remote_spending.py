"""The spending of the other nodes of a cluster.

The table of the usage has it with the end of each turn and run. It is read before a prompt or a run
of an app with a budget begins, and after one has ended, so that no node acts on an older sum.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..errors import Error
from ..tasks import Tasks
from .spending import DAY_SECS, NANOS, Spending, day_number, day_of, first_of_month

logger = logging.getLogger(__name__)


class SharedUsage(Protocol):
    """The part of the shared database that is asked. Each method raises ``internal``."""

    async def spent_elsewhere(
        self, app_name: str, since: float
    ) -> list[tuple[str, int, float]]: ...

    async def note_exceeded(self, app_name: str, budget: str) -> bool: ...


class RemoteSpending:
    """The spending of apps on other nodes, as it was read last.

    Args:
        stored: returns when everything that this node has spent is in the database.

    Attributes:
        update: reads the spending of an app, and lets it take effect.
    """

    def __init__(
        self,
        usage: SharedUsage,
        stored: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.update: Callable[[str], Awaitable[None]] = self.read
        self._usage = usage
        self._stored = stored
        self._clock = clock
        self._tasks = Tasks()
        self._due: set[str] = set()
        self._numbers = itertools.count(1)
        self._known: dict[str, tuple[int, int, Spending]] = {}  # number, day of a whole read

    async def stop(self) -> None:
        await self._tasks.finish(0)

    async def settle(self) -> None:
        """Wait until what this node has spent is stored, compared and reported."""
        await self._tasks.wait_empty()

    def spending_of(self, app_name: str) -> Spending:
        known = self._known.get(app_name)
        return known[2] if known is not None else Spending()

    async def read(self, app_name: str) -> None:
        """Read the spending of an app.

        Raises:
            Error: ``internal``; the database is out of reach.
        """
        number = next(self._numbers)
        today = day_of(self._clock())
        first = first_of_month(today)
        before = self._known.get(app_name)
        if before is not None and before[1] == today:
            first = max(first, today - 1)  # nothing more is added to earlier days
        rows = await self._usage.spent_elsewhere(app_name, first * DAY_SECS)
        now = self._known.get(app_name)
        if now is not None and now[0] > number:
            return  # a later read was faster
        days = {day_number(day): (tokens, round(usd * NANOS)) for day, tokens, usd in rows}
        known = now[2] if now is not None and now[1] == today else Spending()
        self._known[app_name] = (number, today, known.replaced(first, days))

    def read_soon(self, app_name: str) -> None:
        """Read the spending of an app once what this node has spent is stored.

        Of two nodes that spend at once, the one that stores later finds the sum of both.
        """
        if app_name not in self._due:
            self._due.add(app_name)
            self._tasks.spawn(self._read_stored(app_name), "spending-elsewhere")

    async def _read_stored(self, app_name: str) -> None:
        try:
            await self._stored()
            self._due.discard(app_name)
            await self.update(app_name)
        except Error as error:
            logger.debug("the spending of other nodes cannot be read: %s", error)
        finally:
            self._due.discard(app_name)

    def report(self, app_name: str, budget: str, alert: Callable[[], None]) -> None:
        """Call *alert*, unless a node has reported this end of the budget before."""

        async def note() -> None:
            try:
                is_first = await self._usage.note_exceeded(app_name, budget)
            except Error as error:
                logger.warning("the alert about a used-up budget was not stored: %s", error)
                return
            if is_first:
                alert()

        self._tasks.spawn(note(), "budget-exceeded")
