"""The limit on running agents, shared between apps.

Any number of sessions is open, but only so many have a process. If one more is needed, an idle one
makes room: of the app that has the most, the one that has been idle longest. Slots are given to the
waiting app that has the fewest, and among equals in turn. If every slot is taken, an app that has
none gets one of a few reserved slots at once, and need not wait until an idle agent has ended. Idle
agents of apps that have several make room until no reserved slot is in use.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from ..agents.base import URGENT_GRACE_SECS
from ..limits import Entry, Waiting
from ..tasks import Tasks

NOBODY = ""
"""The app that prewarmed agents belong to."""


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

    async def hibernate(self, grace: float = ..., /) -> bool: ...


class AgentSlots:
    """Slots for running agents.

    Args:
        limit: how many there are.
        reserve: how many more there are for apps that have none, while all others are taken.
        each: how many one app may have; 0 for all.
        app_of: the app that a holder belongs to.
    """

    def __init__(
        self,
        limit: int,
        tasks: Tasks,
        *,
        reserve: int = 0,
        each: int = 0,
        app_of: Callable[[Any], str] = lambda _: NOBODY,
    ) -> None:
        self._limit = limit
        self._tasks = tasks
        self._reserve = reserve
        self._each = each or limit + reserve
        self._app_of = app_of
        self._holders: set[Holder] = set()
        self._evicting: set[Holder] = set()
        self._waiting: Waiting[Holder] = Waiting()

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
        app_name = self._app_of(holder)
        entry = self._waiting.add(app_name, holder)
        self._settle()
        try:
            await entry.future
        finally:
            self._waiting.remove(app_name, entry)

    def try_acquire(self, holder: Holder) -> bool:
        """Take a slot only where one is free."""
        held = self._held()
        is_full = len(self._holders) >= self._limit or held[self._app_of(holder)] >= self._each
        if is_full or self._waiting:
            return False
        self._holders.add(holder)
        return True

    def must_wait(self, holder: Holder) -> bool:
        """Whether no slot can be had for *holder* but by waiting for a busy agent."""
        if holder in self._holders or self._has_slot(self._app_of(holder), self._held()):
            return False
        return not any(one.can_hibernate for one in self._holders)

    def must_yield(self, holder: Holder) -> bool:
        """Whether *holder*, between two turns, is to make room for an app that has fewer agents."""
        if not self._waiting or len(self._holders) < self._limit:
            return False
        held = self._held()
        mine = held[self._app_of(holder)]
        return any(held[app_name] + 1 < mine for app_name in self._waiting.apps())

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

    def _held(self) -> Counter[str]:
        return Counter(map(self._app_of, self._holders))

    def _has_slot(self, app_name: str, held: Counter[str]) -> bool:
        """Whether there is a slot for the app, if the apps hold so many."""
        if held[app_name] >= self._each:
            return False
        total = held.total()
        # The reserve is for when other apps, and not prewarmed agents, have all the others.
        is_crowded_out = held[app_name] == 0 and total - held[NOBODY] >= self._limit
        return total < self._limit or (is_crowded_out and total < self._limit + self._reserve)

    def _settle(self) -> None:
        if not self._waiting and len(self._holders) <= self._limit:
            return
        held = self._held()
        while (entry := self._next(held)) is not None:
            if not entry.future.done():
                if entry.holder not in self._holders:
                    held[self._app_of(entry.holder)] += 1
                    self._holders.add(entry.holder)
                entry.future.set_result(None)
        self._make_room()
        self._free_reserve()

    def _next(self, held: Counter[str]) -> Entry[Holder] | None:
        """The next that gets a slot, taken out of the queue."""
        for app_name in self._waiting.apps(lambda name: held[name]):
            has_slot = self._has_slot(app_name, held)
            for entry in self._waiting.of(app_name):
                # Who has a slot needs no second; who falls asleep first has to end its agent.
                if entry.holder not in self._evicting and (
                    has_slot or entry.holder in self._holders
                ):
                    self._waiting.take(app_name, entry)
                    return entry
        return None

    def _staying(self) -> tuple[list[Holder], Counter[str]]:
        """The idle agents that nobody puts to sleep yet; how many agents each app will have."""
        staying = self._holders - self._evicting
        idle = [holder for holder in staying if holder.can_hibernate]
        return idle, Counter(map(self._app_of, staying))

    def _make_room(self) -> None:
        """Put to sleep the idle agents whose slots help those that wait, and no others."""
        idle, held = self._staying()
        for app_name in self._waiting.apps():
            for _ in self._waiting.of(app_name):
                leaving = self._who_leaves(app_name, idle, held)
                if leaving is None:
                    break
                for holder in leaving:
                    idle.remove(holder)
                    held[self._app_of(holder)] -= 1
                    self._put_to_sleep(holder)
                held[app_name] += 1

    def _free_reserve(self) -> None:
        """Put idle agents to sleep while reserved slots are in use, but no app's only one."""
        idle, held = self._staying()
        while held.total() > self._limit:
            several = [h for h in idle if held[self._app_of(h)] > 1 or self._app_of(h) == NOBODY]
            if not several:
                return
            holder = self._first_to_leave(several, held)
            idle.remove(holder)
            held[self._app_of(holder)] -= 1
            self._put_to_sleep(holder)

    def _put_to_sleep(self, holder: Holder) -> None:
        self._evicting.add(holder)
        self._tasks.spawn(self._evict(holder), f"hibernate-{holder.id}")

    def _first_to_leave(self, idle: list[Holder], held: Counter[str]) -> Holder:
        """First those that never had a turn, then of the app that has the most."""
        return min(
            idle,
            key=lambda h: (h.last_used > -math.inf, -held[self._app_of(h)], h.last_used),
        )

    def _who_leaves(
        self, app_name: str, idle: list[Holder], held: Counter[str]
    ) -> list[Holder] | None:
        """The idle agents that must leave so that the app gets a slot; None if that is no help."""
        idle, held = [*idle], held.copy()
        leaving: list[Holder] = []
        while not self._has_slot(app_name, held):
            if held[app_name] >= self._each:
                idle = [holder for holder in idle if self._app_of(holder) == app_name]
            if not idle:
                return None
            holder = self._first_to_leave(idle, held)
            idle.remove(holder)
            held[self._app_of(holder)] -= 1
            leaving.append(holder)
        return leaving

    async def _evict(self, holder: Holder) -> None:
        asleep = False
        try:
            asleep = await holder.hibernate(URGENT_GRACE_SECS)
        finally:
            self._evicting.discard(holder)
            if asleep:  # else a prompt came first
                self._holders.discard(holder)
            self._settle()
