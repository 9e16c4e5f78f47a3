"""The limit on running agents, shared fairly between apps.

Any number of sessions may be open, but only a limited number of agents run. If a session needs an
agent and no slot is free, the session that has been idle longest hibernates, of the app with the
most agents. A free slot goes to the waiting app that has the fewest agents; apps with equal numbers
take turns. If every slot is taken, an app without any gets one of a few reserved slots at once, so
that it need not wait until an idle agent has ended. While reserved slots are in use, idle agents of
apps that have several hibernate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from ..agents.base import URGENT_GRACE_SECS
from ..limits import FairQueue, Waiter
from ..tasks import Tasks
from .own_limits import OwnLimits

NO_APP = ""
"""The app name of prewarmed agents."""


class SlotHolder(Protocol):
    """An owner of a running agent: a session, or a prewarmed agent without a session."""

    @property
    def id(self) -> str: ...

    @property
    def presence(self) -> str: ...

    @property
    def can_hibernate(self) -> bool: ...

    @property
    def last_used(self) -> float: ...

    @property
    def is_in_use(self) -> bool: ...

    async def hibernate(self, grace: float = ..., /) -> bool: ...


class AgentSlots:
    """Slots for running agents.

    Args:
        limit: the number of slots.
        reserve: further slots for apps that have none while all others are taken.
        limit_per_app: slots of one app; 0 for no limit per app.
        own_limit: returns the limit of an app that has its own; None for the others.

    Attributes:
        limits: of single apps.
        app_of: returns the app of a holder.
        is_frozen: the server is being reloaded; no slot is assigned, and no agent is evicted.
    """

    def __init__(
        self,
        limit: int,
        tasks: Tasks,
        *,
        reserve: int = 0,
        limit_per_app: int = 0,
        app_of: Callable[[Any], str] = lambda _: NO_APP,
        own_limit: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._limit = limit
        self._tasks = tasks
        self._reserve = reserve
        self.limits = OwnLimits(limit_per_app or limit + reserve, own_limit, app_of)
        self._app_of = app_of
        self._holders: set[SlotHolder] = set()
        self._evicting: set[SlotHolder] = set()
        self._waiting: FairQueue[SlotHolder] = FairQueue()
        self.is_frozen = False

    def __len__(self) -> int:
        """The number of slots that are taken."""
        return len(self._holders)

    @property
    def queued(self) -> int:
        """The number of sessions that wait for a slot."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """The number of slots that are neither taken nor awaited."""
        return max(0, self._limit - len(self._holders) - len(self._waiting))

    def count_states(self) -> Counter[str]:
        """The number of holders in each agent state."""
        return Counter(holder.presence for holder in self._holders)

    def has_slot(self, holder: SlotHolder, *, also_evicted: bool = False) -> bool:
        """Whether *holder* has a slot, and is not being evicted unless *also_evicted*."""
        return holder in self._holders and (also_evicted or holder not in self._evicting)

    def check_own_limit(self, holder: SlotHolder) -> None:
        """Check that a limit of the app's own lets *holder* have an agent: :meth:`OwnLimits.check`.

        Raises:
            Error: ``pool_full``.
        """
        if not self.has_slot(holder):
            waiting = (waiter.item for waiter in self._waiting.of(self._app_of(holder)))
            self.limits.check(holder, self._holders, waiting)

    async def acquire(self, holder: SlotHolder) -> None:
        """Wait for a slot; return at once if *holder* has one."""
        if self.has_slot(holder):
            return
        app_name = self._app_of(holder)
        waiter = self._waiting.add(app_name, holder)
        self.reconsider()
        try:
            await waiter.future
        finally:
            self._waiting.remove(app_name, waiter)

    def try_acquire(self, holder: SlotHolder) -> bool:
        """Assign a slot if one is free, without evictions. Return whether *holder* has one."""
        counts = self._count_by_app()
        is_full = len(self._holders) >= self._limit or counts[
            self._app_of(holder)
        ] >= self.limits.of(self._app_of(holder))
        if is_full or self._waiting:
            return False
        self._holders.add(holder)
        return True

    def restore(self, holder: SlotHolder) -> None:
        """Give *holder* the slot that it had before a reload."""
        self._holders.add(holder)

    def must_wait(self, holder: SlotHolder) -> bool:
        """Whether *holder* can get a slot only after a busy agent has become idle."""
        if holder in self._holders or self._may_get_slot(
            self._app_of(holder), self._count_by_app()
        ):
            return False
        return not any(holder.can_hibernate for holder in self._holders)

    def must_yield(self, holder: SlotHolder) -> bool:
        """Whether *holder*, between two turns, must give up its slot.

        It does so for an app with fewer agents, and if its own app exceeds a limit of its own.
        """
        app_name = self._app_of(holder)
        if self.limits.changed and self.limits.excess(app_name, self._holders - self._evicting):
            return True
        if not self._waiting or len(self._holders) < self._limit:
            return False
        counts = self._count_by_app()
        own = counts[app_name]
        return any(counts[app_name] + 1 < own for app_name in self._waiting.apps())

    def transfer(self, holder: SlotHolder, new_holder: SlotHolder) -> None:
        """Give *holder*'s slot, if it has one, to *new_holder*."""
        if holder in self._holders:
            self._holders.remove(holder)
            self._holders.add(new_holder)
            self.reconsider()  # the new holder may be evicted, unlike a reserved prewarmed agent

    def release(self, holder: SlotHolder) -> None:
        """Free *holder*'s slot, if it has one."""
        self._holders.discard(holder)
        self.reconsider()

    def idle_since(self, before: float) -> list[SlotHolder]:
        """Idle holders that were last used before that time, the longest idle first.

        Prewarmed agents are excluded: they have never been used.
        """
        idle = [h for h in self._holders if h.can_hibernate and -math.inf < h.last_used <= before]
        return sorted(idle, key=lambda holder: holder.last_used)

    def reconsider(self) -> None:
        """Assign free slots and evict idle agents for the sessions that wait.

        Called whenever a slot may have become free, or a holder may have become able to hibernate.
        """
        if self.is_frozen:
            return
        if not (self._waiting or self.limits.changed) and len(self._holders) <= self._limit:
            return
        counts = self._count_by_app()
        while (waiter := self._next_waiting(counts)) is not None:
            if not waiter.future.done():
                if waiter.item not in self._holders:
                    counts[self._app_of(waiter.item)] += 1
                    self._holders.add(waiter.item)
                waiter.future.set_result(None)
        self._evict_for_waiting()
        self._evict_from_reserve()
        if self.limits.changed:
            staying, idle = self._holders - self._evicting, self._evictable()[0]
            for holder in self.limits.choose_evictions(staying, idle):
                self._start_eviction(holder)

    def _count_by_app(self) -> Counter[str]:
        return Counter(map(self._app_of, self._holders))

    def _may_get_slot(self, app_name: str, counts: Counter[str]) -> bool:
        """Whether the app may have one more slot, given the slots that each app has."""
        if counts[app_name] >= self.limits.of(app_name):
            return False
        total = counts.total()
        # The reserve is used only if other apps, not prewarmed agents, have all regular slots.
        is_crowded_out = counts[app_name] == 0 and total - counts[NO_APP] >= self._limit
        return total < self._limit or (is_crowded_out and total < self._limit + self._reserve)

    def _next_waiting(self, counts: Counter[str]) -> Waiter[SlotHolder] | None:
        """Choose the waiter that gets the next slot, and remove it from the queue."""
        for app_name in self._waiting.apps(lambda name: counts[name]):
            may_get_slot = self._may_get_slot(app_name, counts)
            for waiter in self._waiting.of(app_name):
                # A holder never takes a second slot. One that is being evicted must first finish
                # hibernating.
                if waiter.item not in self._evicting and (
                    may_get_slot or waiter.item in self._holders
                ):
                    self._waiting.serve(app_name, waiter)
                    return waiter
        return None

    def _evictable(self) -> tuple[list[SlotHolder], Counter[str]]:
        """The idle holders, and the slots of each app once the current evictions are done."""
        staying = self._holders - self._evicting
        idle = [holder for holder in staying if holder.can_hibernate]
        return idle, Counter(map(self._app_of, staying))

    def _evict_for_waiting(self) -> None:
        """Evict the idle agents whose slots let a waiting session run, and no others."""
        idle, counts = self._evictable()
        for app_name in self._waiting.apps():
            for _ in self._waiting.of(app_name):
                evicted = self._choose_evictions(app_name, idle, counts)
                if evicted is None:
                    break
                for holder in evicted:
                    idle.remove(holder)
                    counts[self._app_of(holder)] -= 1
                    self._start_eviction(holder)
                counts[app_name] += 1

    def _evict_from_reserve(self) -> None:
        """Evict idle agents while reserved slots are in use, but never an app's only agent."""
        idle, counts = self._evictable()
        while counts.total() > self._limit:
            several = [h for h in idle if counts[self._app_of(h)] > 1 or self._app_of(h) == NO_APP]
            if not several:
                return
            holder = _first_to_evict(several, counts, self._app_of)
            idle.remove(holder)
            counts[self._app_of(holder)] -= 1
            self._start_eviction(holder)

    def _choose_evictions(
        self, app_name: str, idle: list[SlotHolder], counts: Counter[str]
    ) -> list[SlotHolder] | None:
        """The idle holders to evict so that the app gets a slot; None if none would suffice."""
        idle, counts = [*idle], counts.copy()
        evicted: list[SlotHolder] = []
        while not self._may_get_slot(app_name, counts):
            if counts[app_name] >= self.limits.of(app_name):
                idle = [holder for holder in idle if self._app_of(holder) == app_name]
            if not idle:
                return None
            holder = _first_to_evict(idle, counts, self._app_of)
            idle.remove(holder)
            counts[self._app_of(holder)] -= 1
            evicted.append(holder)
        return evicted

    def _start_eviction(self, holder: SlotHolder) -> None:
        self._evicting.add(holder)
        self._tasks.spawn(self._evict(holder), f"hibernate-{holder.id}")

    async def _evict(self, holder: SlotHolder) -> None:
        is_hibernated = False
        try:
            is_hibernated = await holder.hibernate(URGENT_GRACE_SECS)
        finally:
            self._evicting.discard(holder)
            if is_hibernated:  # otherwise a prompt arrived before the agent was ended
                self._holders.discard(holder)
            self.reconsider()


def _first_to_evict(
    idle: list[SlotHolder], counts: Counter[str], app_of: Callable[[Any], str]
) -> SlotHolder:
    """Prewarmed agents first, then the longest idle agent of the app that has the most."""
    return min(idle, key=lambda h: (h.last_used > -math.inf, -counts[app_of(h)], h.last_used))
