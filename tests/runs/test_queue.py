"""The queue of runs: a slot is never lost, and waiting apps get slots in turn."""

from __future__ import annotations

import asyncio

from server.runs.queue import RunQueue

from ..support.harness import Deadline, eventually


async def test_slot_assigned_while_waiter_is_cancelled_is_not_lost() -> None:
    queue = RunQueue(1, 1, 10)
    never = asyncio.get_running_loop().create_future()

    async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with queue.slot(never):
            entered.set()
            await leave.wait()

    entered, leave = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold(entered, leave))
    await entered.wait()
    second = asyncio.create_task(hold(asyncio.Event(), leave))
    await eventually("the second to wait", lambda: queue.waiting)
    leave.set()
    await first  # the second task has the slot, but has not run since
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    async with Deadline("a slot"), queue.slot(never):
        pass


async def test_waiting_apps_get_slots_in_turn() -> None:
    queue = RunQueue(1, 5, 10)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    order: list[str] = []
    entered, release = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def hold(name: str) -> None:
        async with queue.slot(never, name[0]):
            order.append(name)
            entered.release()
            await release.acquire()

    tasks = [asyncio.create_task(hold(name)) for name in ("a1", "a2", "a3", "b1", "b2")]
    for _ in tasks:
        await entered.acquire()
        release.release()
    await asyncio.gather(*tasks)
    assert order == ["a1", "a2", "b1", "a3", "b2"]
    assert (queue.held, queue.waiting) == (0, 0)
