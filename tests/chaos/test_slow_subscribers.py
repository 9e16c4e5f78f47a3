"""Subscribers that read nothing, read slowly, or answer no ping."""

from __future__ import annotations

import asyncio
import statistics
import time

import aiohttp
import pytest

from ..conftest import Connect, Spawn
from ..support.harness import eventually, new_client, script
from ..support.raw_socket import RawSocket
from .conftest import LONG, Scenario
from .measurements import connections_of, p99, resident_kb, turn_times

BIG = script({"burst": {"count": 6_000, "text": "x" * 100}})
"""About 2 MB: more than the kernel and the server buffer for one socket."""
PORTION = 8192


async def read_slowly(raw: RawSocket, head: int, seconds: float) -> None:
    """Read up to *head* in small portions, within *seconds*."""
    pause = seconds / (2 << 20) * PORTION
    while raw.last < head:
        assert await raw.receive(PORTION), f"dropped at {raw.last} of {head}"
        await asyncio.sleep(pause)


@pytest.mark.slow
async def test_subscribers_that_do_not_read(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Clients that never read are dropped and slow nobody down; slow readers get everything."""
    count, stall, samples = chaos.size((3, 3.0, 10), (20, 30.0, 500))
    server = await spawn(HEARTBEAT_SECS="0.3", STALL_TIMEOUT_SECS=str(stall), DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    assert (await client.turn(session, BIG))[0] == 200
    head = (await client.state(session))["head"]
    # Two new sessions, because turns become slower as these agents remember more.
    before, neighbour = [await client.connect(await client.create()) for _ in range(2)]
    for socket in (before, neighbour):
        await turn_times(socket, 3)

    alone = await turn_times(before, samples)
    others, memory = connections_of(server.pid), resident_kb(server.pid)
    started_at = time.monotonic()
    stuck, held = [], set[str]()
    for _ in range(count):
        stuck.append(await connect(client, session, after=0))
        held |= connections_of(server.pid) - others
    assert held
    slow = await connect(client, session, after=0)
    reading = asyncio.create_task(read_slowly(slow, head, stall * 1.5))
    beside = await turn_times(neighbour, samples)
    grown = resident_kb(server.pid) - memory

    await eventually(
        "the sockets that read nothing to be closed",
        lambda: not held & connections_of(server.pid),
        3 * stall + 20,
    )
    dropped = time.monotonic() - started_at
    await reading
    assert slow.seqs == list(range(1, head + 1))
    slow.abort()
    for raw in stuck:  # they only have the bytes in the kernel's buffer
        assert await raw.until_closed() in (None, 4003)
        assert raw.last < head
    chaos.record(
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
    if LONG:  # few samples, while other tests run, say nothing about delays
        assert statistics.median(beside) < 3 * statistics.median(alone) + 20
        assert p99(beside) < 1.2 * p99(alone) + 3


@pytest.mark.slow
async def test_subscribers_that_answer_no_ping(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Clients that answer no ping are disconnected in time, and their descriptors are closed."""
    count, stall = chaos.size((3, 0.5), (50, 10.0))
    server = await spawn(HEARTBEAT_SECS="0.2", STALL_TIMEOUT_SECS=str(stall), DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    await client.turn(session, "hello")
    others = connections_of(server.pid)
    started_at = time.monotonic()
    silent = [await connect(client, session) for _ in range(count)]
    codes = await asyncio.gather(*(raw.until_closed() for raw in silent))
    closed = time.monotonic() - started_at
    await eventually("their descriptors to be closed", lambda: connections_of(server.pid) <= others)
    chaos.record(silent=count, closed_after_s=closed)
    assert set(codes) == {4004}
    assert closed >= stall
