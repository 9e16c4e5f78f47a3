"""SIGTERM: clients get ``bye``, running turns may finish, and no process is left."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from .conftest import Spawn
from .support.engine import only_sqlite
from .support.harness import Client, descendants, eventually, is_running, new_client, script


async def test_running_turn_finishes_and_is_stored(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(DRAIN_SECS="10")
    client = await new_client(server.url, http)
    session = await client.create()
    gate = tmp_path / "gate"
    turn = asyncio.create_task(
        client.turn(session, script({"say": "on it"}, {"gate": str(gate)}, {"say": " done"}))
    )
    socket = await client.connect(session, after=0)
    await socket.until_text("on it")
    server.process.send_signal(signal.SIGTERM)
    bye = await socket.until("bye")
    assert bye["code"] == 1012
    assert 0 < bye["retry_after_ms"] <= 5000
    assert await socket.until_closed() == 1012
    gate.touch()
    status, reply = await turn
    assert (status, reply["stop_reason"]) == (200, "end_turn")
    assert await server.stop() == 0

    client = Client((await spawn()).url, client.token, http)
    assert (await client.events(session))[-1]["stop_reason"] == "end_turn"


@pytest.mark.slow
@only_sqlite
async def test_unfinished_turn_ends_as_server_restarted(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn(DRAIN_SECS="0.1", CANCEL_GRACE_SECS="0.3")
    client = await new_client(server.url, http)
    session = await client.create()
    steps = script({"ignore_cancel": True}, {"say": "never done"}, {"hang": True})
    turn = asyncio.create_task(client.turn(session, steps))
    socket = await client.connect(session, after=0)
    await socket.until_text("never done")
    await socket.send("prompt", id="queued", prompt="and then?")
    await socket.until("accepted", id="queued")
    server.process.send_signal(signal.SIGTERM)
    assert await socket.until_closed() == 1012
    status, reply = await turn
    assert (status, reply["code"], reply["retryable"]) == (503, "server_restarted", True)
    assert await server.stop() == 0

    client = Client((await spawn()).url, client.token, http)
    ends = [e for e in await client.events(session) if e["type"] == "turn_end"]
    assert {end["turn_index"]: end["error"]["code"] for end in ends} == {
        1: "server_restarted",
        2: "server_restarted",
    }


async def test_stopping_server_refuses_requests_and_leaves_no_process(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(DRAIN_SECS="10")
    client = await new_client(server.url, http)
    session = await client.create()
    gate = tmp_path / "gate"
    turn = asyncio.create_task(client.turn(session, script({"say": "hm"}, {"gate": str(gate)})))
    socket = await client.connect(session, after=0)
    await socket.until_text("hm")
    below = descendants(server.pid)
    server.process.send_signal(signal.SIGTERM)
    await socket.until_closed()
    server.process.send_signal(signal.SIGTERM)  # a second signal has no effect
    try:
        status, reply = await client.turn(session, "one more?")
        assert (status, reply["code"]) == (503, "draining")
        assert int(client.last_headers["Retry-After"]) > 0
    except aiohttp.ClientConnectionError:
        pass  # the server no longer accepts connections
    gate.touch()
    assert (await turn)[0] == 200
    assert await server.stop() == 0
    await eventually("every process to end", lambda: not any(map(is_running, below)))


@pytest.mark.slow
async def test_event_stream_does_not_delay_stop(spawn: Spawn, http: aiohttp.ClientSession) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create()
    headers = {**client.headers(), "Accept": "text/event-stream"}
    url = f"{server.url}/sessions/{session}/events?after=0"
    async with http.get(url, headers=headers) as response:
        assert await response.content.readline() == b": ok\n"
        assert await server.stop() == 0
        rest = await response.read()
    assert rest.endswith(b"\n")


@pytest.mark.slow
async def test_idle_server_stops_at_once(spawn: Spawn) -> None:
    server = await spawn()
    async with asyncio.timeout(3):
        assert await server.stop() == 0


async def test_server_with_closed_stdout_stops_cleanly(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    # In `make run | tee log`, a Ctrl-C also ends tee.
    server = await spawn(DRAIN_SECS="10")
    client = await new_client(server.url, http)
    socket = await client.connect(await client.create())
    server.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    await asyncio.sleep(0)  # the transport closes in the next iteration
    server.process.send_signal(signal.SIGTERM)
    assert await socket.until_closed() == 1012
    assert await server.stop() == 0
