"""Apps, sessions, agents and sockets come and go: the server's resources do not grow."""

from __future__ import annotations

import asyncio
import os
import time
from typing import NamedTuple

import aiohttp
import pytest

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
from .measurements import open_files, resident_kb, thread_count

SOAK_SECS = float(os.environ.get("CLAWDFORGE_TEST_SOAK_SECS", "1200"))


class Resources(NamedTuple):
    """The resources of an idle server."""

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


async def resources_of(server: ServerProcess, admin: Client) -> Resources:
    """Wait until the server is idle, and measure its resources."""

    async def is_idle() -> bool:
        gauges = ("clawdforge_sockets", "clawdforge_live_agents", "clawdforge_open_sessions")
        return not any([await metric(admin, name) for name in gauges])

    await eventually("the server to be idle", is_idle)
    children = descendants(server.pid)
    return Resources(
        files=open_files(server.pid),
        tasks=await metric(admin, "clawdforge_tasks"),
        children=len(children),
        threads=thread_count(server.pid),
        memory_kb=resident_kb(server.pid),
        host_memory_kb=max(map(resident_kb, children)),
    )


async def run_app(
    server: ServerProcess, connect: Connect, http: aiohttp.ClientSession, n: int
) -> int:
    """Create an app, run turns of all kinds in several sessions, and revoke its token."""
    client = await new_client(server.url, http, f"app-{n}")
    turns = 0
    for permission, prompts in (
        ("ask", ["hello", script({"say": "x"}, {"crash": "SIGKILL"}), "again"]),
        ("approve-all", [script({"burst": {"count": 500, "text": "y" * 100}}), "bye"]),
    ):
        session = await client.create(permission=permission)
        socket = await client.connect(session, after=0)
        aborted = await connect(client, session, after=0)
        for prompt in prompts:
            await socket.turn(prompt)
            turns += 1
        aborted.abort()
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
    subscriber = await client.connect(await client.create())
    await Client(server.url, ADMIN, http).delete(f"/admin/tokens/app-{n}")
    assert await subscriber.until_closed() == 4503
    return turns


@pytest.mark.slow
async def test_resources_do_not_grow(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Memory, descriptors, tasks, threads and processes do not grow over time."""
    seconds, at_once, rounds = chaos.size((0.0, 2, 1), (SOAK_SECS, 4, 2))
    server = await spawn(
        DRAIN_SECS="0",
        SWEEP_INTERVAL_SECS="0.5",
        SESSION_TTL_SECS=chaos.size(
            "3", "10"
        ),  # sessions of revoked apps are closed when they expire
        SESSION_HARD_TTL_SECS="0.5",
    )
    admin = Client(server.url, ADMIN, http)
    apps = turns = 0

    async def run_apps() -> Resources:
        nonlocal apps, turns
        # Each round has its own HTTP session, so that no connection is kept alive.
        async with http_session() as own_http:
            ends = await asyncio.gather(
                *(run_app(server, connect, own_http, apps + n) for n in range(at_once))
            )
        apps += at_once
        turns += sum(ends)
        return await resources_of(server, admin)

    first = await run_apps()
    samples: list[tuple[float, Resources]] = []
    started_at = time.monotonic()
    while time.monotonic() - started_at < seconds or len(samples) < rounds:
        samples.append((time.monotonic() - started_at, await run_apps()))
    last = samples[-1][1]
    later = samples[len(samples) // 2 :]
    chaos.record(
        minutes=(time.monotonic() - started_at) / 60,
        apps=apps,
        sessions=3 * apps,
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

        async def is_released(name: str = name) -> bool:
            return bool(getattr(await resources_of(server, admin), name) <= getattr(first, name))

        await eventually(f"the {name} that were held to be released", is_released)
    assert last.threads <= 15  # the limit of the executor, six of SQLite, and the main thread
    assert last.memory_kb < first.memory_kb + chaos.size(20_000, 40_000)
    if seconds >= 600:  # before that the process is still warming up
        assert slope([(at / 60, h.memory_kb) for at, h in later]) < 300


def slope(points: list[tuple[float, int]]) -> float:
    """The slope of the regression line."""
    if len(points) < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
