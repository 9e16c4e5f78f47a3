"""The slots for running agents, without a server."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from server.agents.base import URGENT_GRACE_SECS
from server.sessions.agent_slots import AgentSlots
from server.tasks import Tasks


class Holder:
    """A session with an agent."""

    def __init__(self, name: str, *, last_used: float = 0.0, busy: bool = True) -> None:
        self.id = name
        self.app = name[0]
        self.last_used = last_used
        self.busy = busy
        self.presence = "live"
        self.grace = math.nan

    @property
    def can_hibernate(self) -> bool:
        return not self.busy

    async def hibernate(self, grace: float) -> bool:
        self.grace = grace
        return not self.busy


def slots_of(limit: int, **options: Any) -> Any:
    return AgentSlots(limit, Tasks(), app_of=lambda holder: holder.app, **options)


async def iterations() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_waiting_apps_get_slots_in_turn() -> None:
    slots = slots_of(3)
    running = [Holder(f"x{n}") for n in range(3)]
    for holder in running:
        await slots.acquire(holder)
    got: list[str] = []

    async def wait(holder: Holder) -> None:
        await slots.acquire(holder)
        got.append(holder.id)

    names = ["a1", "a2", "a3", "b1", "b2", "b3"]
    tasks = [asyncio.create_task(wait(Holder(name))) for name in names]
    await iterations()
    for holder in running:
        slots.release(holder)
        await iterations()
    assert got == ["a1", "b1", "a2"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert slots.queued == 0


async def test_idle_agent_of_the_app_with_the_most_is_evicted_first() -> None:
    slots = slots_of(4)
    idle = [Holder("a1", last_used=5, busy=False), Holder("a2", last_used=6, busy=False)]
    lonely = Holder("b1", last_used=1, busy=False)
    for holder in (*idle, Holder("a3"), lonely):
        await slots.acquire(holder)
    await slots.acquire(Holder("c1"))
    assert not slots.has_slot(idle[0])
    assert slots.has_slot(idle[1])
    assert slots.has_slot(lonely)


async def test_reserved_slot_is_freed_before_others_are_assigned_again() -> None:
    slots = slots_of(2, reserve=1)
    hogs, guest = [Holder("a1"), Holder("a2")], Holder("b1")
    for holder in (*hogs, guest):
        await slots.acquire(holder)
    waiting = asyncio.create_task(slots.acquire(Holder("a3")))
    await iterations()
    slots.release(hogs[0])
    await iterations()
    assert not waiting.done()
    slots.release(guest)
    await waiting
    assert len(slots) == 2


async def test_reserved_slot_is_assigned_at_once_while_idle_agents_end() -> None:
    slots = slots_of(2, reserve=2)
    idle = [Holder("a1", last_used=1, busy=False), Holder("a2", last_used=2, busy=False)]
    for holder in idle:
        await slots.acquire(holder)
    guest = Holder("b1")
    acquiring = asyncio.create_task(slots.acquire(guest))
    await asyncio.sleep(0)
    assert slots.has_slot(guest)
    await acquiring
    await iterations()
    assert [slots.has_slot(holder) for holder in idle] == [False, True]
    assert idle[0].grace == URGENT_GRACE_SECS


async def test_agent_that_becomes_idle_is_evicted_while_the_reserve_is_used() -> None:
    slots = slots_of(2, reserve=1)
    hogs, guest = [Holder("a1"), Holder("a2")], Holder("b1")
    for holder in (*hogs, guest):
        await slots.acquire(holder)
    for holder in (guest, hogs[0]):  # the guest's is its app's only one
        holder.busy = False
        slots.reconsider()
        await iterations()
    assert [slots.has_slot(holder) for holder in (*hogs, guest)] == [False, True, True]


async def test_idle_agent_in_the_reserve_is_evicted_for_its_own_app() -> None:
    slots = slots_of(1, reserve=1)
    await slots.acquire(Holder("a1"))
    first, second = Holder("b1"), Holder("b2")
    await slots.acquire(first)
    first.busy = False
    await slots.acquire(second)
    assert len(slots) == 2
    assert not slots.has_slot(first)


class SlowHolder:
    """A slot holder that hibernates when the test allows it."""

    last_used = 0.0

    def __init__(self, name: str) -> None:
        self.id = name
        self.busy = False
        self.may_hibernate = asyncio.Event()

    @property
    def can_hibernate(self) -> bool:
        return not self.busy

    async def hibernate(self, grace: float) -> bool:
        if self.busy:
            return False
        await self.may_hibernate.wait()
        return True


async def test_holder_that_is_evicted_and_waits_again_gets_a_slot() -> None:
    tasks = Tasks()
    slots: Any = AgentSlots(2, tasks)
    first, second, third, fourth = (SlowHolder(name) for name in "abcd")
    await slots.acquire(first)
    await slots.acquire(second)
    second.busy = True
    for_third = asyncio.ensure_future(slots.acquire(third))
    await iterations()  # the first is being evicted
    again = asyncio.ensure_future(slots.acquire(first))
    for_third.cancel()
    second.busy = False
    slots.release(second)
    await iterations()
    assert not again.done()  # its own agent must end first
    first.may_hibernate.set()
    await again
    assert len(slots) == 1
    await slots.acquire(fourth)
    assert len(slots) == 2
    await tasks.finish(1)


async def test_holder_that_becomes_busy_before_its_eviction_keeps_its_slot() -> None:
    tasks = Tasks()
    slots: Any = AgentSlots(1, tasks)
    first, second = SlowHolder("a"), SlowHolder("b")
    await slots.acquire(first)
    for_second = asyncio.ensure_future(slots.acquire(second))
    await asyncio.sleep(0)
    first.busy = True  # between the choice of the holder and its eviction
    await iterations()
    assert not for_second.done()
    first.busy = False
    first.may_hibernate.set()
    slots.reconsider()
    await for_second
    assert len(slots) == 1
    await tasks.finish(1)
