"""Slow, silent, stalled and vanished clients: a raw client that reads only on request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.ws.connection import WebSocketConnection

from ..conftest import Connect, Serve
from ..support.harness import Client, Clock, Deadline, Json, LocalServer, eventually, script
from ..support.raw_socket import CLOSE, PING, PONG, RawSocket, upgrade

BIG: Json = {"burst": {"count": 6_000, "text": "x" * 100}}
"""Some 2 MB: more than the kernel and the server keep for one socket."""


@pytest.fixture
def clock(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which the connections are checked."""
    clock = Clock()
    monkeypatch.setattr(server.services.sockets, "clock", clock)
    return clock


def subscribers(server: LocalServer) -> list[WebSocketConnection]:
    return server.services.sockets.connections


def bytes_read(subscriber: WebSocketConnection) -> int:
    """The bytes that a client has read, as far as the server's kernel knows."""
    return subscriber.output.written - subscriber.output.unread_bytes()


def is_held(server: LocalServer, raw: RawSocket) -> bool:
    """Whether the server's end of the connection has a descriptor (one without has no inode)."""
    ends = (f":{urlsplit(server.url).port:04X}", f":{raw.port:04X}")
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    return any(
        row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[9] != "0" for row in rows
    )


async def until_freed(server: LocalServer, raw: RawSocket) -> None:
    await eventually("the socket to be freed", lambda: not is_held(server, raw))


async def long_log(client: Client) -> tuple[str, int]:
    """A session whose log exceeds the buffers between server and client, and its head."""
    session = await client.create()
    await client.post(f"/sessions/{session}/turn", {"prompt": script(BIG)})
    return session, (await client.state(session))["head"]


# Slow.


async def test_slow_client_gets_everything(
    server: LocalServer, client: Client, connect: Connect, clock: Clock
) -> None:
    session = await client.create()
    slow = await connect(client, session, after=0)
    await slow.send("prompt", prompt=script(BIG))
    await eventually("the turn to end", lambda: is_idle(client, session, 1))
    (subscriber,) = subscribers(server)
    for _ in range(20):  # it reads a little, but never nothing, for several stall times
        before = bytes_read(subscriber)
        while bytes_read(subscriber) == before:  # the kernel may acknowledge them later
            assert await slow.receive(2048)
            await asyncio.sleep(0.001)
        clock.advance(20)
        subscriber.check_liveness(clock(), 20, 30)
    assert slow.last < 3000
    slow.enlarge_receive_buffer()
    end = await slow.until("turn_end")
    assert end["seq"] > 6000
    assert slow.seqs == list(range(1, end["seq"] + 1))


async def test_slow_acp_client_gets_everything_and_a_stalled_one_is_dropped(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session, _ = await long_log(client)
    told: list[Json] = []
    load = {"sessionId": session, "cwd": "/", "mcpServers": []}
    slow, stuck = [
        await upgrade(client, "/acp", sink=lambda frame: told.append(json.loads(frame)))
        for _ in range(2)
    ]
    with contextlib.closing(slow.connection), contextlib.closing(stuck.connection):
        for raw in (stuck, slow):
            await raw.request(1, "initialize", protocolVersion=1)
            await raw.request(2, "session/load", **load)
        await eventually("both to be full", lambda: draining(server) == 2)
        for _ in range(20):
            for _ in range(8):
                assert await slow.receive(2048)
            clock.advance(4)  # in all more than twice what a stuck one has
            for subscriber in subscribers(server):
                subscriber.check_liveness(clock(), 20, 30)
        assert len(told) < 3000
        await eventually("the stuck one to be dropped", lambda: len(subscribers(server)) == 1)
        slow.enlarge_receive_buffer()
        while told[-1].get("id") != 2:
            assert await slow.receive(65536)
        texts = [
            one["params"]["update"]["content"]["text"]
            for one in told
            if one.get("params", {}).get("update", {}).get("sessionUpdate") == "agent_message_chunk"
        ]
        assert texts == [f"{n}:{'x' * 100}" for n in range(6_000)]
        assert await stuck.until_closed() in (None, 4003)


def draining(server: LocalServer) -> int:
    return sum(one.output.is_backpressured for one in subscribers(server))


async def is_idle(client: Client, session: str, turns: int) -> bool:
    state = await client.state(session)
    return bool(state["turn_count"] == turns and state["state"] == "idle")


async def test_slow_replay_continues_with_live_entries(client: Client, connect: Connect) -> None:
    session, head = await long_log(client)
    slow = await connect(client, session, after=0)
    await slow.receive(20_000)
    await client.turn(session, "while it replays")
    last = (await client.state(session))["head"]
    assert last > head
    slow.enlarge_receive_buffer()
    await slow.until("turn_end", turn_index=2)
    assert slow.seqs == list(range(1, last + 1))


async def test_accepted_precedes_its_turn_in_a_slow_replay(
    client: Client, connect: Connect
) -> None:
    session, head = await long_log(client)
    slow = await connect(client, session, after=0)
    await slow.receive(20_000)
    await slow.send("prompt", prompt="hello", id="c2")
    await eventually("the turn to end", lambda: is_idle(client, session, 2))
    assert slow.last < head  # it is over before its reader has come so far
    slow.enlarge_receive_buffer()
    await slow.until("turn_end", turn_index=2)
    kinds = [frame["type"] for frame in slow.frames if frame.get("turn_index") == 2]
    assert kinds[:2] == ["accepted", "turn_start"]
    assert slow.seqs == list(range(1, slow.seqs[-1] + 1))


async def test_slow_client_can_cancel(client: Client, connect: Connect) -> None:
    session, _ = await long_log(client)
    slow = await connect(client, session, after=0)
    await slow.receive(20_000)
    quick = await client.connect(session)
    await quick.send("prompt", prompt=script({"hang": True}))
    await quick.until("turn_start")
    await slow.send("cancel")
    assert (await quick.until("turn_end"))["stop_reason"] == "cancelled"


async def test_slow_client_gets_the_last_entry_of_a_closed_session(
    server: LocalServer, client: Client, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.services.sockets, "close_timeout", 0.1)
    session, head = await long_log(client)
    await client.delete(f"/sessions/{session}")
    slow = await connect(client, session, after=0)
    while slow.last < head - 1500:
        assert await slow.receive(65536)
    # The rest is on its way, in the buffers; taking it lasts longer than a close may.
    assert await slow.until_closed(4096, pause=0.005) == 4508
    assert [frame["type"] for frame in slow.frames[-2:]] == ["session_closed", "bye"]
    assert slow.seqs == list(range(1, head + 2))


async def test_pings_of_a_client_that_does_not_read_are_limited(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(max_commands_per_sec=100_000)
    client = await server.client()
    session, _ = await long_log(client)
    stuck = await connect(client, session, after=0)
    # Its answers would take 20 MB: at some point no more of it is read.
    payload = "x" * 60_000
    sending = asyncio.create_task(flood(stuck, 350, payload))
    done, _ = await asyncio.wait({sending}, timeout=1)
    assert not done
    stuck.enlarge_receive_buffer()
    while not sending.done():
        assert await stuck.receive(65536)
    await sending
    await stuck.until("pong", id=payload)


async def flood(raw: RawSocket, times: int, payload: str) -> None:
    for _ in range(times):
        await raw.send("ping", id=payload)


async def test_liveness_of_many_sockets_is_checked_in_groups(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    iteration = 0
    checks: Counter[int] = Counter()
    check_liveness = WebSocketConnection.check_liveness

    def count(connection: WebSocketConnection, *times: float) -> None:
        checks[iteration] += 1
        check_liveness(connection, *times)

    async def count_iterations() -> None:
        nonlocal iteration
        while checks.total() < 50:
            iteration += 1
            await asyncio.sleep(0)

    server = await serve(heartbeat_secs=0.05)
    server.services.sockets.checks_at_once = 2
    client = await server.client()
    session = await client.create()
    for _ in range(5):
        await client.connect(session)
    monkeypatch.setattr(WebSocketConnection, "check_liveness", count)
    async with Deadline("ten rounds"):
        await count_iterations()
    assert max(checks.values()) == 2


# Stalled.


async def test_stalled_client_is_dropped_and_others_are_unaffected(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(heartbeat_secs=0.1, stall_timeout_secs=1)
    client = await server.client()
    session = await client.create()
    stuck, other = await connect(client, session), await connect(client, session)
    began = time.monotonic()
    endless = {"repeat": {"times": 100_000, "steps": [BIG, {"sleep": 100}]}}
    await other.send("prompt", prompt=script(endless))
    reading = asyncio.create_task(other.until("turn_end"))
    await until_freed(server, stuck)
    assert time.monotonic() - began >= 1
    await eventually("its place to be free", lambda: len(server.services.sockets) == 1)
    assert (await client.state(session))["sockets"] == 1
    await client.post(f"/sessions/{session}/cancel")
    end = await reading
    assert other.seqs == list(range(other.seqs[0], end["seq"] + 1))


async def test_stalled_client_is_dropped_although_little_is_sent(
    serve: Serve, connect: Connect
) -> None:
    # Everything fits in the kernel's buffers, so nothing waits in the server.
    server = await serve(heartbeat_secs=0.1, stall_timeout_secs=0.4)
    client = await server.client()
    session = await client.create()
    stuck = await connect(client, session)
    await client.turn(session, script({"chunk": 60_000}))
    trickle = {"repeat": {"times": 100_000, "steps": [{"sleep": 50}, {"say": "."}]}}
    quick = await client.connect(session)
    await quick.send("prompt", prompt=script(trickle))
    async with Deadline("the stuck socket to be dropped"):
        await until_freed(server, stuck)


async def test_pings_of_a_stalled_client_do_not_keep_it(serve: Serve, connect: Connect) -> None:
    server = await serve(heartbeat_secs=0.1, stall_timeout_secs=0.4)
    client = await server.client()
    session, _ = await long_log(client)
    stuck = await connect(client, session, after=0)

    async def keep_pinging() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await stuck.send_frame(PING, b"I am alive")
                await asyncio.sleep(0.05)

    pinging = asyncio.create_task(keep_pinging())
    async with Deadline("the stuck socket to be dropped"):
        await until_freed(server, stuck)
    pinging.cancel()
    await asyncio.gather(pinging, return_exceptions=True)


async def test_revoked_token_drops_a_stalled_client(server: LocalServer, connect: Connect) -> None:
    client = await server.client("stuck")
    session, _ = await long_log(client)
    stuck = await connect(client, session, after=0)
    async with Deadline("the stuck socket to be dropped", 25):
        assert (await server.admin().delete("/admin/tokens/stuck"))[0] == 200
        await until_freed(server, stuck)


# Silent.


async def test_client_without_pongs_is_closed_with_4004(serve: Serve, connect: Connect) -> None:
    server = await serve(heartbeat_secs=0.05, stall_timeout_secs=0.1)
    server.services.sockets.close_timeout = 0.2
    client = await server.client()
    session = await client.create()
    silent = await connect(client, session)
    assert await silent.until_closed() == 4004
    assert silent.pings
    assert silent.frames[-1] == {**silent.frames[-1], "type": "bye", "code": 4004}
    await until_freed(server, silent)
    await eventually("its place to be free", lambda: not subscribers(server))
    assert (await client.state(session))["sockets"] == 0


async def test_silent_client_with_pongs_stays_connected(
    server: LocalServer, client: Client, connect: Connect, clock: Clock
) -> None:
    quiet = await connect(client, await client.create())
    (subscriber,) = subscribers(server)
    for round_number in range(1, 21):
        clock.advance(20)
        subscriber.check_liveness(clock(), 20, 30)
        while quiet.pings < round_number:
            assert await quiet.receive(4096)
        await quiet.send_frame(PONG)
        await eventually("the pong to be heard", lambda: subscriber.liveness.last_heard == clock())
    assert {frame["type"] for frame in quiet.frames if "seq" not in frame} == {"ready", "heartbeat"}
    assert subscribers(server) == [subscriber]


# Disconnected.


async def test_vanished_client_leaves_nothing_and_logs_no_error(
    server: LocalServer,
    client: Client,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session, head = await long_log(client)
    quick = await client.connect(session)
    await quick.send("prompt", prompt=script({"say": "a"}, {"hang": True}))
    await quick.until_text("a")
    for taken in (0, 1, 5_000, 100_000, 500_000):
        gone = await connect(client, session, after=0)
        while taken > 0:
            await gone.receive(min(taken, 5_000))
            taken -= 5_000
        gone.abort()
    idle = await connect(client, session)
    idle.abort()
    await eventually("them to be gone", lambda: len(server.services.sockets) == 1)
    await quick.send("cancel")
    end = await quick.until("turn_end")
    assert end["stop_reason"] == "cancelled"
    assert end["seq"] > head
    assert [
        r.getMessage() for r in caplog.records if r.name.startswith("server.ws.session_socket")
    ] == []
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


async def test_half_closed_connection_is_closed(
    server: LocalServer, client: Client, connect: Connect
) -> None:
    session = await client.create()
    raw = await connect(client, session)
    raw.connection.shutdown(socket.SHUT_WR)
    await raw.until_closed()
    await until_freed(server, raw)
    await eventually("its place to be free", lambda: not subscribers(server))
    assert (await client.state(session))["sockets"] == 0


async def test_client_that_never_answers_the_close_is_dropped(
    server: LocalServer, client: Client, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.services.sockets, "close_timeout", 0.2)
    session = await client.create()
    raw = await connect(client, session)
    await client.delete(f"/sessions/{session}")
    assert await raw.until_closed() == 4508
    await until_freed(server, raw)


async def test_close_of_the_client_is_answered(client: Client, connect: Connect) -> None:
    raw = await connect(client, await client.create())
    await raw.send_frame(CLOSE, struct.pack("!H", 1000))
    assert await raw.until_closed() == 1000


# Many.


async def test_too_many_frames_close_with_4005(serve: Serve) -> None:
    server = await serve(max_commands_per_sec=2)  # and 20 at once
    client = await server.client()
    session = await client.create()
    patient, hasty = await client.connect(session), await client.connect(session)
    for number in range(20):
        await patient.send("ping", id=number)
        await patient.until("pong", id=number)
    for number in range(40):
        with contextlib.suppress(ConnectionError):
            await hasty.send("ping", id=number)
    assert await hasty.until_closed() == 4005
    assert hasty.frames[-1]["type"] == "bye"
    assert hasty.frames[-1]["retry_after_ms"] > 0
    answered = [frame for frame in hasty.frames if frame["type"] == "pong"]
    assert 20 <= len(answered) < 40
