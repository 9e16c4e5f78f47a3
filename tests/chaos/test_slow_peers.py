"""Viewers that read nothing, or little, or answer no ping."""

from __future__ import annotations

import asyncio
import statistics
import time

import aiohttp

from ..conftest import Connect, Spawn
from ..support.harness import eventually, new_client, script
from ..support.raw_socket import RawSocket
from .conftest import Scenario
from .crowd import open_files, p99, resident_kb, turn_times

BIG = script({"burst": {"count": 6_000, "text": "x" * 100}})
"""Some 2 MB: more than the kernel and the server keep for one socket."""
PORTION = 8192


async def take_slowly(raw: RawSocket, head: int, seconds: float) -> None:
    """Read up to that position, in small portions spread over that time."""
    pause = seconds / (2 << 20) * PORTION
    while raw.last < head:
        assert await raw.receive(PORTION), f"dropped at {raw.last} of {head}"
        await asyncio.sleep(pause)


async def test_viewers_that_do_not_read(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Who never reads costs nothing, slows nobody and is dropped; who reads slowly gets all."""
    count, stall, samples = chaos.size((3, 1.0, 10), (20, 30.0, 500))
    server = await spawn(HEARTBEAT_SECS="0.3", STALL_TIMEOUT_SECS=str(stall), DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    assert (await client.turn(session, BIG))[0] == 200
    head = (await client.state(session))["head"]
    # Two, each as new as the other: the more these agents remember, the slower are their turns.
    before, neighbour = [await client.connect(await client.create()) for _ in range(2)]
    for socket in (before, neighbour):
        await turn_times(socket, 3)

    alone = await turn_times(before, samples)
    files, memory = open_files(server.pid), resident_kb(server.pid)
    began = time.monotonic()
    stuck = [await connect(client, session, after=0) for _ in range(count)]
    slow = await connect(client, session, after=0)
    assert open_files(server.pid) >= files + count + 1
    taking = asyncio.create_task(take_slowly(slow, head, stall * 1.5))
    beside = await turn_times(neighbour, samples)
    grown = resident_kb(server.pid) - memory

    await eventually(
        "the descriptors of those that read nothing to be free",
        lambda: open_files(server.pid) <= files + 1,
        3 * stall + 20,
    )
    dropped = time.monotonic() - began
    await taking
    assert slow.seqs == list(range(1, head + 1))
    slow.abort()
    for raw in stuck:  # what the kernel held is all that they have
        assert await raw.until_closed() in (None, 4003)
        assert raw.last < head
    chaos.measured(
        stuck=count,
        dropped_after_s=dropped,
        memory_kb=grown,
        alone_median_ms=statistics.median(alone),
        beside_median_ms=statistics.median(beside),
        alone_p99_ms=p99(alone),
        beside_p99_ms=p99(beside),
    )
    assert dropped >= stall
    assert grown < (count + 1) * 1024 + 8192
    assert statistics.median(beside) < 3 * statistics.median(alone) + 20
    if chaos.size(False, True):  # of few, and beside other tests, the slowest says nothing
        assert p99(beside) < 1.2 * p99(alone) + 3


async def test_viewers_that_answer_no_ping(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Who answers no ping is closed in time, and its descriptor is free."""
    count, stall = chaos.size((3, 0.5), (50, 10.0))
    server = await spawn(HEARTBEAT_SECS="0.2", STALL_TIMEOUT_SECS=str(stall), DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    await client.turn(session, "hello")
    files = open_files(server.pid)
    began = time.monotonic()
    silent = [await connect(client, session) for _ in range(count)]
    codes = await asyncio.gather(*(raw.until_closed() for raw in silent))
    closed = time.monotonic() - began
    await eventually("their descriptors to be free", lambda: open_files(server.pid) <= files)
    chaos.measured(silent=count, closed_after_s=closed)
    assert set(codes) == {4004}
    assert closed >= stall
