"""Fair sharing between apps: agents, runs, the disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.errors import Error

from ..conftest import Serve
from ..support.harness import BUSY, Client, Deadline, Socket, busy_socket
from ..support.runs import make_fake_claude, steps


async def busy(client: Client) -> Socket:
    return await busy_socket(client, await client.create())


# Agents.


async def test_app_without_an_agent_is_served_while_another_uses_every_slot(share: Serve) -> None:
    server = await share(max_live_agents=2)
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


async def test_single_app_uses_every_slot_except_the_reserved_ones(share: Serve) -> None:
    server = await share(max_live_agents=2)
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
    for session in sessions:  # the app's own idle agent is evicted
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


async def test_agents_that_do_not_start_delay_no_other_app(serve: Serve) -> None:
    server = await serve(max_live_agents=6)
    greedy, other = await server.client("greedy"), await server.client("other")
    for _ in range(5):
        await greedy.create(agent="mock-silent")
    async with Deadline("the other app's turn"):
        assert (await other.turn(await other.create(), "hello"))[0] == 200


# Runs.


async def test_run_of_another_app_is_served_while_one_uses_every_slot(
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


async def test_work_is_refused_below_disk_reserve_and_running_turns_continue(
    serve: Serve,
) -> None:
    server = await serve(min_free_bytes=1000)
    disk = server.services.sessions.disk
    client = await server.client()
    socket = await busy(client)
    session = await client.create()
    disk.free_bytes = lambda: 999
    await disk.measure()
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
    disk.free_bytes = lambda: 1000
    await disk.measure()
    assert (await client.turn(session, "hello"))[0] == 200


async def test_upload_is_refused_below_disk_reserve(serve: Serve) -> None:
    server = await serve(min_free_bytes=1000)
    disk = server.services.sessions.disk
    disk.free_bytes = lambda: 0
    await disk.measure()

    async def chunks() -> Any:
        yield b"x"

    with pytest.raises(Error) as refused:
        await server.services.files.save("app", "name", chunks())
    assert (refused.value.code, refused.value.retryable) == ("internal", True)
