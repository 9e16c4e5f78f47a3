"""Work of every kind that waits while the server is reloaded."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest

from ..conftest import Spawn
from ..sessions.test_elicitations import elicit
from ..sessions.test_steering import HANG, steer_as
from ..support.harness import eventually, new_client, run_step, script
from .following import following, reload

pytestmark = pytest.mark.slow


async def test_questions_steered_prompts_and_other_agents_survive(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn(AGENT_IDLE_SECS="1", SWEEP_INTERVAL_SECS="0.5", PREWARMED_AGENTS="1")
    client = await new_client(server.url, http)
    idle = await client.create()
    assert (await client.turn(idle, script({"say": "before"})))[0] == 200
    asking = await client.create(elicitation="ask")
    steered = await client.create("mock-steers")
    async with following(client, asking, steered) as (ask, steer):
        await ask.socket.send("prompt", prompt=elicit())
        question = await ask.until_kind("elicitation_request")
        await steer.socket.send("prompt", prompt=HANG)
        await steer.until(lambda entry: "hanging" in str(entry))
        await steer.socket.send("prompt", prompt=steer_as("queue"), steer=True)
        for count in (1, 2, 3):  # the idle agent hibernates in the middle of one
            assert (await reload(server.url))["reloads"] == count
        about = {"request_id": question["request_id"], "action": "decline"}
        answered = asyncio.create_task(ask.until_kind("elicitation_resolved"))
        while not answered.done():
            with contextlib.suppress(ConnectionError):  # it resumes just now
                await ask.socket.send("elicitation", **about)
            await asyncio.wait({answered}, timeout=1)
        assert (await ask.until_kind("turn_end"))["stop_reason"] == "end_turn"
        cancelled = asyncio.create_task(steer.until_kind("turn_end"))
        while not cancelled.done():
            with contextlib.suppress(ConnectionError):
                await steer.socket.send("cancel")
            await asyncio.wait({cancelled}, timeout=1)
        assert (await cancelled)["stop_reason"] == "cancelled"
        ask.check()
        steer.check()

    async def is_hibernated() -> bool:
        return bool((await client.state(idle))["agent_state"] == "hibernated")

    await eventually("the idle agent to hibernate", is_hibernated)
    texts: list[str] = await run_step(client, idle, {"history": True})
    assert "before" in str(texts)
