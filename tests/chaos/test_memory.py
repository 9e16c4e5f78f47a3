"""One app tries to use as much of the server's memory as it can."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json

import aiohttp
import pytest

from ..conftest import Connect, Spawn
from ..support.client import Client
from ..support.harness import busy_socket, new_client, script
from ..support.raw_socket import open_connection
from .conftest import Scenario
from .measurements import resident_kb, turn_times

LIMIT_KB = 200 << 10


@pytest.mark.slow
async def test_memory_of_one_app_is_limited(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Memory is limited whatever one app sends or does not read, and other apps work."""
    prompts, readers, size = chaos.size((3, 4, 4), (8, 30, 15))
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    other = await new_client(server.url, http, "other")
    neighbour = await other.connect(await other.create())
    await turn_times(neighbour, 3)
    idle = most = resident_kb(server.pid)

    def measure() -> None:
        nonlocal most
        most = max(most, resident_kb(server.pid))

    session = await client.create()
    path = f"/sessions/{session}"
    # A long log, and responses that no client reads.
    burst = script({"burst": {"count": 12 * size, "text": "x" * 100_000}})
    assert (await client.turn(session, burst))[0] == 200
    measure()
    head = f"Host: localhost\r\nAuthorization: Bearer {client.token}\r\n\r\n"
    loop = asyncio.get_running_loop()
    stuck = [await open_connection(server.url) for _ in range(readers)]
    with contextlib.ExitStack() as closing:
        for connection in stuck:
            closing.enter_context(connection)
            request = f"GET {path}/events?limit=10000 HTTP/1.1\r\n{head}"
            await loop.sock_sendall(connection, request.encode())
        # Repeated requests with a `meta` over the limit.
        notes = json.dumps({"meta": {"x": "y" * (size << 20)}}).encode()
        for _ in range(prompts):
            assert (await client.call("PATCH", path, data=io.BytesIO(notes)))[0] == 413
            measure()
        # Waiting prompts, and sockets that do not read.
        await busy_socket(client, session)
        body = json.dumps({"prompt": "z" * (size << 20)}).encode()
        waiting = [
            asyncio.create_task(client.call("POST", f"{path}/turn", data=io.BytesIO(body)))
            for _ in range(prompts)
        ]
        sockets = [await connect(client, session, after=0) for _ in range(5)]
        beside = await turn_times(neighbour, 20)
        measure()
        await client.delete(path)
        answers = await asyncio.gather(*waiting)
        measure()
    for socket in sockets:
        socket.abort()
    chaos.record(
        idle_mb=idle >> 10,
        most_above_idle_mb=(most - idle) >> 10,
        waiting_prompts=sum(
            reply["code"] != "queue_full" if "code" in reply else True for _, reply in answers
        ),
        neighbour_worst_ms=beside[-1],
    )
    assert most - idle < LIMIT_KB


@pytest.mark.slow
async def test_memory_of_large_messages_of_agents_is_limited(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """Four agents of two apps write messages close to the limit at once."""
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    other = await new_client(server.url, http, "other")
    sessions = [(app, await app.create()) for app in (client, other) for _ in range(2)]
    for app, session in sessions:
        assert (await app.turn(session, "start the agent"))[0] == 200
    large = script({"chunk": 16_000_000})
    idle = most = resident_kb(server.pid)

    async def run(app: Client, session: str) -> object:
        """Run a turn whose events no client reads, and a short one after it."""
        socket = await app.connect(session)
        await socket.send("prompt", prompt=large)
        await socket.until("accepted")
        await socket.close()
        return (await app.turn(session, "hello"))[1]["turn_index"]

    turns = [asyncio.create_task(run(app, session)) for app, session in sessions]
    while not all(turn.done() for turn in turns):
        most = max(most, resident_kb(server.pid))
        await asyncio.wait(turns, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
    chaos.record(idle_mb=idle >> 10, most_above_idle_mb=(most - idle) >> 10)
    assert [await turn for turn in turns] == [3] * 4
    assert most - idle < LIMIT_KB
