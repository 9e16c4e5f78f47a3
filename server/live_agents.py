"""The bound on running agents.

Any number of sessions is open, but only so many have a process; the longest
idle one makes room.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from typing import Protocol

from .tasks import Tasks


class Holder(Protocol):
    """Who may have a running agent: a session, or a prewarmed one without an owner."""

    @property
    def id(self) -> str: ...

    @property
    def agent_state(self) -> str: ...

    @property
    def can_hibernate(self) -> bool: ...

    @property
    def last_used(self) -> float: ...

    async def hibernate(self) -> bool: ...


class LiveAgents:
    """Slots for running agents: given in order, taken back from the longest idle."""

    def __init__(self, limit: int, tasks: Tasks) -> None:
        self._limit = limit
        self._tasks = tasks
        self._holders: set[Holder] = set()
        self._evicting: set[Holder] = set()
        self._waiting: deque[tuple[Holder, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def queued(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """How many could be given at once."""
        return max(0, self._limit - len(self._holders) - len(self._waiting))

    def count_states(self) -> Counter[str]:
        """How many holders' agents are in which state."""
        return Counter(holder.agent_state for holder in self._holders)

    def holds(self, holder: Holder) -> bool:
        """Whether it has a slot, and is not about to lose it."""
        return holder in self._holders and holder not in self._evicting

    async def acquire(self, holder: Holder) -> None:
        """Wait for a slot; a session that has one keeps it."""
        if self.holds(holder):
            return
        entry = (holder, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._settle()
        try:
            await entry[1]
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def try_acquire(self, holder: Holder) -> bool:
        """Take a slot only where one is free."""
        if len(self._holders) >= self._limit or self._waiting:
            return False
        self._holders.add(holder)
        return True

    def must_wait(self, holder: Holder) -> bool:
        """Whether no slot can be had for *holder* but by waiting for a busy agent."""
        if holder in self._holders or len(self._holders) < self._limit:
            return False
        return not any(one.can_hibernate for one in self._holders)

    def pass_on(self, holder: Holder, heir: Holder) -> None:
        """Give *holder*'s slot, if it has one, to *heir*."""
        if holder in self._holders:
            self._holders.remove(holder)
            self._holders.add(heir)
            self._settle()  # the heir may make room; the other was spoken for

    def release(self, holder: Holder) -> None:
        self._holders.discard(holder)
        self._settle()

    def idle(self, holder: Holder) -> None:
        """*holder* has no turn any more: it could make room."""
        self._settle()

    def idle_since(self, before: float) -> list[Holder]:
        """Holders that could hibernate and were last used before that time, longest ago first.

        Those that were never used wait for their use.
        """
        idle = [h for h in self._holders if h.can_hibernate and -math.inf < h.last_used <= before]
        return sorted(idle, key=lambda holder: holder.last_used)

    def _settle(self) -> None:
        if not self._waiting:
            return
        for entry in tuple(self._waiting):
            holder, future = entry
            # Who has a slot needs no second; who falls asleep first has to end its agent.
            free = holder in self._holders or len(self._holders) < self._limit
            if free and holder not in self._evicting:
                self._waiting.remove(entry)
                if not future.done():
                    self._holders.add(holder)
                    future.set_result(None)
        idle = [s for s in self._holders - self._evicting if s.can_hibernate]
        idle.sort(key=lambda holder: holder.last_used)
        for holder in idle[: max(0, len(self._waiting) - len(self._evicting))]:
            self._evicting.add(holder)
            self._tasks.spawn(self._evict(holder), f"hibernate-{holder.id}")

    async def _evict(self, holder: Holder) -> None:
        asleep = False
        try:
            asleep = await holder.hibernate()
        finally:
            self._evicting.discard(holder)
            if asleep:  # else a prompt came first
                self._holders.discard(holder)
            self._settle()
