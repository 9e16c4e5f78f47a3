"""Apps, sessions, agents and sockets come and go: what the server holds does not grow."""

from __future__ import annotations

import asyncio
import os
import time
from typing import NamedTuple

import aiohttp

from ..conftest import Connect, Spawn
from ..support.harness import (
    ADMIN,
    Client,
    ServerProcess,
    descendants,
    eventually,
    http_session,
    new_client,
    script,
)
from .conftest import Scenario
from .crowd import open_files, resident_kb, threads

SOAK_SECS = float(os.environ.get("CLAWDFORGE_TEST_SOAK_SECS", "1200"))


class Held(NamedTuple):
    """What a server holds when nothing goes on."""

    files: int
    tasks: int
    children: int
    threads: int
    memory_kb: int
    host_memory_kb: int


async def metric(admin: Client, name: str) -> int:
    async with admin.http.get(f"{admin.url}/metrics", headers=admin.headers()) as reply:
        lines = (await reply.text()).splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith(name + " "))))


async def held(server: ServerProcess, admin: Client) -> Held:
    """Wait until nobody uses the server, and see what it holds."""

    async def quiet() -> bool:
        gauges = ("clawdforge_sockets", "clawdforge_live_agents", "clawdforge_open_sessions")
        return not any([await metric(admin, name) for name in gauges])

    await eventually("the server to be idle", quiet)
    children = descendants(server.pid)
    return Held(
        files=open_files(server.pid),
        tasks=await metric(admin, "clawdforge_tasks"),
        children=len(children),
        threads=threads(server.pid),
        memory_kb=resident_kb(server.pid),
        host_memory_kb=max(map(resident_kb, children)),
    )


async def live(server: ServerProcess, connect: Connect, http: aiohttp.ClientSession, n: int) -> int:
    """An app's whole life: some sessions with viewers, turns of all kinds, and its end."""
    client = await new_client(server.url, http, f"app-{n}")
    turns = 0
    for permission, prompts in (
        ("ask", ["hello", script({"say": "x"}, {"crash": "SIGKILL"}), "again"]),
        ("approve-all", [script({"burst": {"count": 500, "text": "y" * 100}}), "bye"]),
    ):
        session = await client.create(permission=permission)
        socket = await client.connect(session, after=0)
        rude = await connect(client, session, after=0)
        for prompt in prompts:
            await socket.turn(prompt)
            turns += 1
        rude.abort()
        await socket.send("prompt", prompt=script({"permission": True}))
        if permission == "ask":
            asked = await socket.until("permission_request")
            await socket.send("permission", request_id=asked["request_id"], option_id="allow_once")
        await socket.until("turn_end")
        await socket.send("prompt", prompt=script({"spawn": {"pid_file": "p"}}, {"hang": True}))
        await socket.until("turn_start")
        await socket.send("cancel")
        await socket.until("turn_end")
        turns += 2
        if n % 2:
            await client.delete(f"/sessions/{session}")
        else:
            await socket.send("close")
        await socket.until_closed()
    viewer = await client.connect(await client.create())
    await Client(server.url, ADMIN, http).delete(f"/admin/tokens/app-{n}")
    assert await viewer.until_closed() == 4503
    return turns


async def test_nothing_grows(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Whatever comes and goes, memory, descriptors, tasks, threads and processes do not grow."""
    seconds, at_once, rounds = chaos.size((0.0, 2, 1), (SOAK_SECS, 4, 2))
    server = await spawn(
        DRAIN_SECS="0",
        SWEEP_INTERVAL_SECS="0.5",
        SESSION_TTL_SECS=chaos.size(
            "3", "10"
        ),  # the session whose app is revoked has nobody to close it
        SESSION_HARD_TTL_SECS="0.5",
    )
    admin = Client(server.url, ADMIN, http)
    lives = turns = 0

    async def round_of_lives() -> Held:
        nonlocal lives, turns
        # Their connections end with them: kept alive, they would be held by the server, too.
        async with http_session() as theirs:
            ends = await asyncio.gather(
                *(live(server, connect, theirs, lives + n) for n in range(at_once))
            )
        lives += at_once
        turns += sum(ends)
        return await held(server, admin)

    first = await round_of_lives()
    samples: list[tuple[float, Held]] = []
    began = time.monotonic()
    while time.monotonic() - began < seconds or len(samples) < rounds:
        samples.append((time.monotonic() - began, await round_of_lives()))
    last = samples[-1][1]
    later = samples[len(samples) // 2 :]
    chaos.measured(
        minutes=(time.monotonic() - began) / 60,
        apps=lives,
        sessions=3 * lives,
        turns=turns,
        files=f"{first.files} to {last.files}",
        tasks=f"{first.tasks} to {last.tasks}",
        threads=f"{first.threads} to {last.threads}",
        children=f"{first.children} to {last.children}",
        memory_mb=f"{first.memory_kb >> 10} to {last.memory_kb >> 10}",
        host_memory_mb=f"{first.host_memory_kb >> 10} to {last.host_memory_kb >> 10}",
        slope_kb_per_min=slope([(at / 60, h.memory_kb) for at, h in later]),
        host_slope_kb_per_min=slope([(at / 60, h.host_memory_kb) for at, h in later]),
    )

    for name in ("files", "tasks", "children"):

        async def given_back(name: str = name) -> bool:
            return bool(getattr(await held(server, admin), name) <= getattr(first, name))

        await eventually(f"the {name} that were held to be given back", given_back)
    assert last.threads <= 12  # the executor's own bound, SQLite's three, and the main one
    assert last.memory_kb < first.memory_kb + chaos.size(20_000, 40_000)
    if seconds >= 600:  # before that it is still warming up
        assert slope([(at / 60, h.memory_kb) for at, h in later]) < 300


def slope(points: list[tuple[float, int]]) -> float:
    """The slope of the line that fits best."""
    if len(points) < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
