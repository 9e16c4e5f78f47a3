"""A repeated prompt with the same `Idempotency-Key` runs once."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc

import pytest

from ..conftest import Serve
from ..support.harness import (
    Client,
    failure,
    script,
    texts_of,
)
from .rest_turns import release, turn_with_key, wait_running


async def test_repeated_idempotency_key_returns_stored_result(client: Client) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, "once", "k1")
    assert first[0] == 200
    assert await turn_with_key(client, session, "once", "k1") == first
    assert await turn_with_key(client, session, "another prompt", "k1") == first
    assert (await client.state(session))["turn_count"] == 1
    _, other = await turn_with_key(client, session, "twice", "k2")
    assert (other["turn_index"], texts_of(other["events"])) == (2, "echo: twice")


async def test_repeated_idempotency_key_waits_for_running_turn(client: Client) -> None:
    session = await client.create()
    prompt = script({"gate": "go"}, {"say": "held"})
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(turn_with_key(client, session, prompt, "k")) for _ in range(5)]
        await wait_running(client, session)
        await release(client, session)
    assert {json.dumps(turn.result()) for turn in turns} == {json.dumps(turns[0].result())}
    assert turns[0].result()[0] == 200
    assert (await client.state(session))["turn_count"] == 1


async def test_ended_turn_keeps_its_key_but_not_its_prompt(client: Client) -> None:
    size = 900_000
    prompt = script({"say": "hi"}) + " " * size
    await turn_with_key(client, await client.create(), prompt, "k")  # imports and caches are filled
    gc.collect()
    gc.disable()  # it would come too late in a real server
    tracemalloc.start()
    try:
        for _ in range(10):
            await turn_with_key(client, await client.create(), prompt, "k")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 10 * size  # not one each; the newest pages of the logs are kept


async def test_idempotency_key_is_per_session(client: Client) -> None:
    for _ in range(2):
        _, reply = await turn_with_key(client, await client.create(), "hello", "k")
        assert (reply["turn_index"], texts_of(reply["events"])) == (1, "echo: hello")


async def test_repeated_idempotency_key_returns_stored_failure(
    client: Client,
) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, script({"exit": 1}), "k")
    failure(first, 502, "agent_failed")
    again = await turn_with_key(client, session, script({"exit": 1}), "k")
    assert again[1].pop("request_id") != first[1].pop("request_id")
    assert again == first


async def test_idempotency_key_survives_restart(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    first = await turn_with_key(client, session, "hello", "k")
    await server.stop()
    again = await serve()
    client = Client(again.url, client.token, client.http)
    assert await turn_with_key(client, session, "hello", "k") == first
    assert (await client.state(session))["turn_count"] == 1


async def test_idempotency_key_returns_result_after_close(client: Client) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, "hello", "k")
    await client.delete(f"/sessions/{session}")
    assert await turn_with_key(client, session, "hello", "k") == first


@pytest.mark.parametrize("key", ["\U0001f468\u200d\U0001f469", "a\u00a0b", "a\tb"])
async def test_idempotency_key_may_be_any_text(client: Client, key: str) -> None:
    session = await client.create()
    first = await turn_with_key(client, session, "hello", key)
    assert first[0] == 200
    socket = await client.connect(session)
    await socket.send("prompt", id=key, prompt="hello")
    assert (await socket.until("accepted"))["duplicate"] is True


async def test_invalid_idempotency_key_is_refused(client: Client) -> None:
    session = await client.create()
    for bad in ("", "x" * 257, "\udcff"):
        failure(await turn_with_key(client, session, "hello", bad), 400, "bad_request")
    assert (await client.state(session))["turn_count"] == 0
