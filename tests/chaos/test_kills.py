"""The server and the acpx host are killed with SIGKILL during turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import (
    Client,
    Json,
    ServerProcess,
    Socket,
    chunk_text,
    descendants,
    eventually,
    is_running,
    new_client,
    script,
)
from .conftest import Scenario

HISTORY = script({"history": True})


def at(server: ServerProcess, client: Client) -> Client:
    """The same client at the restarted server."""
    return Client(server.url, client.token, client.http)


def host_of(server: ServerProcess) -> int:
    """The pid of the server's acpx host."""
    for pid in descendants(server.pid):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if argv[0].endswith(b"node") and argv[1].endswith(b"host.mjs"):
            return pid
    raise AssertionError("the server has no host")


async def read_remaining_frames(socket: Socket) -> None:
    """Read the frames that a killed server had sent."""
    with contextlib.suppress(AssertionError):
        while await socket.next() is not None:
            pass


@pytest.mark.slow
async def test_server_is_killed(chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession) -> None:
    """After `kill -9` all delivered entries are unchanged, and each turn has one end."""
    dice = random.Random(11)
    kills = chaos.size(2, 30)
    stream = script({"burst": {"count": 1000, "text": "w", "batch": 10, "pause_ms": 1}})
    server = await spawn()
    client = await new_client(server.url, http)
    sessions = [await client.create() for _ in range(3)]
    seen: dict[str, dict[int, Json]] = {session: {} for session in sessions}
    missing = changed = 0
    starting = []
    for _ in range(kills):
        sockets = []
        for session in sessions:
            socket = await client.connect(session, after=max(seen[session], default=0))
            await socket.send("prompt", prompt=stream)
            await socket.send("prompt", prompt="queued")
            sockets.append(socket)
        wanted = dice.randrange(1, 400)
        for socket in sockets:
            while len(socket.entries) < wanted:
                assert await socket.next() is not None
        await server.kill()
        await asyncio.gather(*map(read_remaining_frames, sockets))
        started_at = time.monotonic()
        server = await spawn()
        starting.append(time.monotonic() - started_at)
        client = at(server, client)
        for session, socket in zip(sessions, sockets, strict=True):
            for entry in socket.entries:
                changed += seen[session].setdefault(entry["seq"], entry) != entry
            stored = await client.events(session)
            assert [entry["seq"] for entry in stored] == list(range(1, len(stored) + 1))
            by_seq = {entry["seq"]: entry for entry in stored}
            missing += len(seen[session].keys() - by_seq.keys())
            changed += sum(by_seq.get(seq, entry) != entry for seq, entry in seen[session].items())
            starts = Counter(e["turn_index"] for e in stored if e["type"] == "turn_start")
            ends = Counter(e["turn_index"] for e in stored if e["type"] == "turn_end")
            assert starts == ends
            assert set(starts.values()) == {1}
    kept = 0
    for session in sessions:
        _, reply = await client.turn(session, HISTORY)
        [update, _] = reply["events"]
        prompts = json.loads(update["params"]["update"]["content"]["text"])
        # The agent has surely got prompts with a response. Others may have been lost in the kill.
        entries = await client.events(session)
        answered = {entry["turn_index"] for entry in entries if chunk_text(entry)}
        heard = [
            e["prompt"][0]["text"]
            for e in entries
            if e["type"] == "turn_start" and e["turn_index"] in answered
        ]
        kept += Counter(heard) <= Counter(prompts)
    chaos.record(
        kills=kills,
        entries_seen=sum(map(len, seen.values())),
        missing=missing,
        changed=changed,
        longest_start_s=max(starting),
    )
    assert (missing, changed, kept) == (0, 0, len(sessions))


@pytest.mark.slow
async def test_host_is_killed(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """If the acpx host is killed, its turns end as retryable and all sessions continue."""
    count = chaos.size(4, 20)
    server = await spawn(MAX_LIVE_AGENTS="32", DRAIN_SECS="0")
    client = await new_client(server.url, http)
    sockets = []
    for n in range(count):
        socket = await client.connect(await client.create())
        grandchild = {"setsid": True, "pid_file": str(tmp_path / f"{n}.pid")}
        await socket.send("prompt", prompt=script({"spawn": grandchild}, {"say": "on"}))
        await socket.until("turn_end")
        sockets.append(socket)
    for socket in sockets:
        await socket.send("prompt", prompt=script({"say": "running"}, {"hang": True}))
    for socket in sockets:
        await socket.until_text("running")
    host = host_of(server)
    below = descendants(host) + [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert len(below) >= 2 * count

    started_at = time.monotonic()
    os.kill(host, signal.SIGKILL)
    ends = await asyncio.gather(*(socket.until("turn_end") for socket in sockets))
    ended = time.monotonic() - started_at
    assert {(end["error"]["code"], end["error"]["retryable"]) for end in ends} == {
        ("agent_failed", True)
    }
    await eventually("the processes of the host to end", lambda: not any(map(is_running, below)))
    cleaned_up = time.monotonic() - started_at
    again = await asyncio.gather(*(socket.turn("again") for socket in sockets))
    assert {end["stop_reason"] for end in again} == {"end_turn"}
    contexts = {s.entries[-4]["context"] for s in sockets if s.entries[-4]["type"] == "turn_start"}
    chaos.record(
        sessions=count,
        all_ended_in_s=ended,
        nothing_left_in_s=cleaned_up,
        all_ran_again_in_s=time.monotonic() - started_at,
    )
    assert contexts <= {"kept"}
    assert ended < chaos.size(10, 2)
