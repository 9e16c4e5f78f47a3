"""Clients reconnect while sessions stream: no entry is lost or repeated."""

from __future__ import annotations

import asyncio
import random
import time

import aiohttp
import pytest

from ..conftest import Connect, Spawn
from ..support.harness import Client, eventually, new_client, script
from .conftest import Scenario
from .followers import Follower


def stream(count: int, *, batch: int = 2, pause_ms: int = 20) -> str:
    """A prompt with a response of *count* chunks, sent in batches."""
    burst = {"count": count, "text": "word", "batch": batch, "pause_ms": pause_ms}
    return script({"burst": burst})


async def start_turns(client: Client, sessions: list[str], prompt: str) -> None:
    for session in sessions:
        socket = await client.connect(session)
        await socket.send("prompt", prompt=prompt)
        await socket.until("accepted")
        await socket.close()


@pytest.mark.slow
async def test_connections_that_are_cut(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Subscribers whose connections are cut repeatedly get every entry once and in order."""
    dice = random.Random(1)
    sessions_count, each, entries = chaos.size((3, 4, 200), (20, 10, 3000))
    low, high = chaos.size((0.05, 0.4), (0.5, 2.0))
    server = await spawn(MAX_LIVE_AGENTS="32", DRAIN_SECS="0")
    client = await new_client(server.url, http)
    sessions = [await client.create() for _ in range(sessions_count)]
    await start_turns(client, sessions, stream(entries))
    followers = {s: [Follower(connect, client, s) for _ in range(each)] for s in sessions}
    async with asyncio.TaskGroup() as group:
        for session in sessions:
            steady, *others = followers[session]
            group.create_task(steady.follow(1))
            for follower in others:
                group.create_task(follower.follow(1, lambda: dice.uniform(low, high)))
    everyone = [follower for one in followers.values() for follower in one]
    lost = sum(follower.lost for follower in everyone)
    repeated = sum(follower.repeated for follower in everyone)
    chaos.record(
        subscribers=len(everyone),
        cuts=sum(follower.connections - 1 for follower in everyone),
        entries=sum(follower.last for follower in everyone),
        lost=lost,
        repeated=repeated,
    )
    assert (lost, repeated) == (0, 0)
    for session, (steady, *others) in followers.items():
        stored = await client.events(session)
        assert [entry["seq"] for entry in stored] == list(range(1, steady.last + 1))
        assert all(follower.digests == steady.digests for follower in others)


@pytest.mark.slow
async def test_subscription_during_stream(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """Replay continues as live delivery without gaps or repeats, whenever a client subscribes."""
    dice = random.Random(2)
    times = chaos.size(20, 340)
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    await start_turns(client, [session], stream(1_000_000, batch=5, pause_ms=20))

    gaps = repeats = 0

    async def subscribe(position: int | None) -> None:
        nonlocal gaps, repeats
        raw = await connect(client, session, after=position, receive_buffer=65536)
        head = int(raw.frames[0]["head"])
        want = (head if position is None else position) + 1
        # Continue beyond the transition from replay to live entries.
        until = max(head, want) + 10
        seen = 0
        while (raw.last or 0) < until:
            assert await raw.receive(65536)
        for seen in raw.seqs:
            gaps += seen > want
            repeats += seen < want
            want = seen + 1
        raw.abort()

    for _ in range(times):
        head = (await client.state(session))["head"]
        near = max(0, head - dice.randrange(500))
        await asyncio.gather(*(subscribe(p) for p in (near, head, None)))
    chaos.record(subscriptions=3 * times, gaps=gaps, repeats=repeats)
    assert (gaps, repeats) == (0, 0)


@pytest.mark.slow
async def test_graceful_restart(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """A restart sends `bye` to every socket, with spread retry times; clients lose nothing."""
    count = chaos.size(20, 500)
    server = await spawn(DRAIN_SECS="0.2")
    port = server.url.rpartition(":")[2]
    client = await new_client(server.url, http)
    sessions = [await client.create() for _ in range(chaos.size(3, 10))]
    await start_turns(client, sessions, stream(1_000_000, pause_ms=chaos.size(20, 500)))
    raws = [
        await connect(client, sessions[n % len(sessions)], after=0, receive_buffer=65536)
        for n in range(count)
    ]

    closing = asyncio.gather(*(raw.until_closed() for raw in raws))
    started_at = time.monotonic()
    status, _ = await asyncio.gather(server.stop(), closing)
    stopped = time.monotonic() - started_at
    byes = [next((f for f in raw.frames if f["type"] == "bye"), None) for raw in raws]
    assert status == 0
    assert all(bye is not None and bye["code"] == 1012 for bye in byes), byes
    assert {raw.close_code for raw in raws} == {1012}
    waits = sorted(bye["retry_after_ms"] for bye in byes if bye is not None)

    started_at = time.monotonic()
    client = Client((await spawn(PORT=port, DRAIN_SECS="0")).url, client.token, http)
    started = time.monotonic() - started_at
    missed = 0
    for n, raw in enumerate(raws):
        again = await connect(
            client, sessions[n % len(sessions)], after=raw.last, receive_buffer=65536
        )
        end = await again.until("turn_end")
        assert end["error"]["code"] == "server_restarted"
        assert (raw.seqs + again.seqs) == list(range(1, end["seq"] + 1))
        missed += end["seq"] - len(raw.seqs) - len(again.seqs)
        again.abort()
    chaos.record(
        sockets=count,
        retry_ms=f"{waits[0]} to {waits[-1]}",
        distinct_waits=len(set(waits)),
        stopped_in_s=stopped,
        started_in_s=started,
        missed=missed,
    )
    assert len(set(waits)) > count * 0.8
    assert waits[-1] - waits[0] > 1000
    await eventually("every socket to be closed", lambda: _has_no_sockets(client))


async def _has_no_sockets(client: Client) -> bool:
    _, reply = await client.get("/sessions")
    return all(session["sockets"] == 0 for session in reply["sessions"])
