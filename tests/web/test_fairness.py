"""What one app uses does not keep another from its share: agents, runs, the disk."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from server.agents.base import URGENT_GRACE_SECS
from server.errors import Error
from server.sessions.agent_slots import AgentSlots
from server.tasks import Tasks

from ..conftest import Serve
from ..support.harness import Client, Deadline, Socket, script
from ..support.runs import make_fake_claude, steps

BUSY = script({"say": "on it"}, {"wait_for": "cancel"})


async def busy(client: Client) -> Socket:
    socket = await client.connect(await client.create())
    await socket.send("prompt", prompt=BUSY)
    await socket.until_text("on it")
    return socket


# Agents.


async def test_app_without_an_agent_is_served_while_another_uses_every_slot(serve: Serve) -> None:
    server = await serve(max_live_agents=2)
    greedy, other = await server.client("greedy"), await server.client("other")
    hogs = [await busy(greedy) for _ in range(2)]
    waiting = await greedy.connect(await greedy.create())
    await waiting.send("prompt", prompt="for one more")
    assert (await waiting.until("accepted"))["queued"] is True
    for _ in range(2):
        assert (await other.turn(await other.create(), "hello"))[0] == 200
        assert len(server.services.sessions.slots) == 3
    for hog in hogs:
        await hog.send("cancel")
    assert (await waiting.until("turn_end"))["stop_reason"] == "end_turn"


async def test_one_app_alone_uses_every_slot_and_no_reserved_one(serve: Serve) -> None:
    server = await serve(max_live_agents=2)
    client = await server.client()
    for _ in range(2):
        await busy(client)
    socket = await client.connect(await client.create())
    await socket.send("prompt", prompt="for one more")
    assert (await socket.until("accepted"))["queued"] is True
    assert len(server.services.sessions.slots) == 2


async def test_limit_of_an_app_leaves_slots_free(serve: Serve) -> None:
    server = await serve(max_live_agents=3, max_live_agents_per_app=1)
    client = await server.client()
    await busy(client)
    socket = await client.connect(await client.create())
    await socket.send("prompt", prompt="for one more")
    assert (await socket.until("accepted"))["queued"] is True
    other = await server.client("other")
    sessions = [await other.create() for _ in range(2)]
    for session in sessions:  # its own idle agent makes room
        assert (await other.turn(session, "hello"))[0] == 200
    assert len(server.services.sessions.slots) == 2


async def test_between_two_turns_a_session_yields_to_an_app_with_fewer_agents(
    serve: Serve,
) -> None:
    server = await serve(max_live_agents=2, reserved_agents=0)
    greedy, other = await server.client("greedy"), await server.client("other")
    hog, _ = await busy(greedy), await busy(greedy)
    await hog.send("prompt", prompt=BUSY)
    await hog.until("accepted", queued=True)
    socket = await other.connect(await other.create())
    await socket.send("prompt", prompt="hello")
    await socket.until("accepted", queued=True)
    await hog.send("cancel")
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"
    await hog.until_text("on it")


class Holder:
    """A session as the slots see it."""

    def __init__(self, name: str, *, last_used: float = 0.0, busy: bool = True) -> None:
        self.id = name
        self.app = name[0]
        self.last_used = last_used
        self.busy = busy
        self.agent_state = "live"
        self.grace = math.nan

    @property
    def can_hibernate(self) -> bool:
        return not self.busy

    async def hibernate(self, grace: float) -> bool:
        self.grace = grace
        return not self.busy


def slots_of(limit: int, **options: Any) -> Any:
    return AgentSlots(limit, Tasks(), app_of=lambda holder: holder.app, **options)


async def ticks() -> None:
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
    await ticks()
    for holder in running:
        slots.release(holder)
        await ticks()
    assert got == ["a1", "b1", "a2"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert slots.queued == 0


async def test_app_with_the_most_agents_gives_one_up_first() -> None:
    slots = slots_of(4)
    idle = [Holder("a1", last_used=5, busy=False), Holder("a2", last_used=6, busy=False)]
    lonely = Holder("b1", last_used=1, busy=False)
    for holder in (*idle, Holder("a3"), lonely):
        await slots.acquire(holder)
    await slots.acquire(Holder("c1"))
    assert not slots.has_slot(idle[0])
    assert slots.has_slot(idle[1])
    assert slots.has_slot(lonely)


async def test_reserved_slot_is_given_back_before_the_others_are_used_again() -> None:
    slots = slots_of(2, reserve=1)
    hogs, guest = [Holder("a1"), Holder("a2")], Holder("b1")
    for holder in (*hogs, guest):
        await slots.acquire(holder)
    waiting = asyncio.create_task(slots.acquire(Holder("a3")))
    await ticks()
    slots.release(hogs[0])
    await ticks()
    assert not waiting.done()
    slots.release(guest)
    await waiting
    assert len(slots) == 2


async def test_reserved_slot_is_given_at_once_while_idle_agents_end() -> None:
    slots = slots_of(2, reserve=2)
    idle = [Holder("a1", last_used=1, busy=False), Holder("a2", last_used=2, busy=False)]
    for holder in idle:
        await slots.acquire(holder)
    guest = Holder("b1")
    acquiring = asyncio.create_task(slots.acquire(guest))
    await asyncio.sleep(0)
    assert slots.has_slot(guest)
    await acquiring
    await ticks()
    assert [slots.has_slot(holder) for holder in idle] == [False, True]
    assert idle[0].grace == URGENT_GRACE_SECS


async def test_agent_that_becomes_idle_gives_its_slot_for_the_reserved_one() -> None:
    slots = slots_of(2, reserve=1)
    hogs, guest = [Holder("a1"), Holder("a2")], Holder("b1")
    for holder in (*hogs, guest):
        await slots.acquire(holder)
    for holder in (guest, hogs[0]):  # the guest's is its app's only one
        holder.busy = False
        slots.reconsider()
        await ticks()
    assert [slots.has_slot(holder) for holder in (*hogs, guest)] == [False, True, True]


async def test_agents_that_do_not_start_delay_no_other_app(serve: Serve) -> None:
    server = await serve(max_live_agents=6)
    greedy, other = await server.client("greedy"), await server.client("other")
    for _ in range(5):
        await greedy.create(agent="mock-silent")
    async with Deadline("the other app's turn"):
        assert (await other.turn(await other.create(), "hello"))[0] == 200


async def test_idle_agent_of_an_app_in_the_reserve_makes_room_for_its_own() -> None:
    slots = slots_of(1, reserve=1)
    await slots.acquire(Holder("a1"))
    first, second = Holder("b1"), Holder("b2")
    await slots.acquire(first)
    first.busy = False
    await slots.acquire(second)
    assert len(slots) == 2
    assert not slots.has_slot(first)


# Runs.


async def test_run_of_another_app_is_served_while_one_uses_every_place(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(claude_bin=make_fake_claude(tmp_path), max_runs=1, run_queue=1)
    greedy, other = await server.client("greedy"), await server.client("other")
    running = [
        asyncio.create_task(greedy.post("/run", {"prompt": steps({"sleep": 60_000})}))
        for _ in range(3)
    ]
    done, running_still = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result()[1]["code"] for task in done] == ["pool_full"]
    status, reply = await other.post("/run", {"prompt": steps({"result": "hi"})})
    assert (status, reply["ok"]) == (200, True)
    for task in running_still:
        task.cancel()
    await asyncio.gather(*running_still, return_exceptions=True)


# The disk.


async def test_nothing_new_is_accepted_below_the_reserve_and_what_runs_goes_on(
    serve: Serve,
) -> None:
    server = await serve(min_free_bytes=1000)
    disk = server.services.sessions.disk
    client = await server.client()
    socket = await busy(client)
    session = await client.create()
    disk.measure = lambda: 999
    await disk.look()
    for status, reply in (
        await client.post("/sessions", {"agent": "mock"}),
        await client.turn(session, "hello"),
        await client.post("/run", {"prompt": "hello"}),
        await client.post("/files", data=b"--x--", headers={"Content-Type": "multipart/x"}),
    ):
        assert status in (400, 500)
        assert reply["code"] in ("bad_request", "internal")
    await socket.send("prompt", prompt="hello")
    assert (await socket.until("error"))["retryable"] is True
    await socket.send("cancel")
    assert (await socket.until("turn_end"))["stop_reason"] == "cancelled"
    await server.services.sessions.sweeper.sweep()
    disk.measure = lambda: 1000
    await disk.look()
    assert (await client.turn(session, "hello"))[0] == 200


async def test_upload_is_refused_below_the_reserve(serve: Serve) -> None:
    server = await serve(min_free_bytes=1000)
    disk = server.services.sessions.disk
    disk.measure = lambda: 0
    await disk.look()

    async def chunks() -> Any:
        yield b"x"

    with pytest.raises(Error) as refused:
        await server.services.files.save("app", "name", chunks())
    assert (refused.value.code, refused.value.retryable) == ("internal", True)
