"""Agents that crash, hang, ignore signals or violate the protocol."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import (
    Client,
    Deadline,
    Json,
    Socket,
    descendants_of_agents,
    eventually,
    is_running,
    new_client,
    script,
)
from .conftest import Scenario

GRACE = 1.0
HANG_SECS = 2.0

Check = Callable[[Json, Socket], None]


def ends(stop_reason: str, code: str | None = None, text: str = "") -> Check:
    """A check of a turn's end, and of the agent's message."""

    def check(end: Json, socket: Socket) -> None:
        error = end["error"]["code"] if end["error"] else None
        assert (end["stop_reason"], error) == (stop_reason, code), end
        assert text in socket.text()

    return check


STUBBORN: list[Json] = [{"ignore_sigterm": True}, {"ignore_eof": True}, {"say": "stubborn"}]

# The agent's steps; whether the turn is cancelled after "go" was said; a check of the turn's end.
CASES: dict[str, tuple[list[Json], bool, Check]] = {
    "exits": ([{"say": "go"}, {"exit": 3}], False, ends("error", "agent_failed", "go")),
    "is killed": ([{"say": "go"}, {"crash": "SIGKILL"}], False, ends("error", "agent_failed")),
    "is cancelled": ([{"say": "go"}, {"hang": True}], True, ends("cancelled")),
    "ignores the cancel": (
        [{"ignore_cancel": True}, {"say": "go"}, {"hang": True}],
        True,
        ends("cancelled"),
    ),
    "ignores SIGTERM and EOF": (STUBBORN, False, ends("end_turn", text="stubborn")),
    "stops reading": (
        [{"ignore_cancel": True}, {"stop_reading": True}, {"say": "go"}, {"hang": True}],
        True,
        ends("cancelled"),
    ),
    "closes its stdout": (
        [{"say": "go"}, {"close_stdout": True}, {"hang": True}],
        False,
        lambda end, _: _failed(end),
    ),
    "leaves grandchildren": (
        [
            {"spawn": {"pid_file": "one", "setsid": True}},
            {"spawn": {"pid_file": "two", "double_fork": True, "ignore_sigterm": True}},
            {"spawn": {"pid_file": "three", "setsid": True, "hold_stdout": True}},
            {"say": "left"},
        ],
        False,
        ends("end_turn", text="left"),
    ),
    "writes garbage": (
        [{"raw": "no json at all"}, {"raw": '{"half": '}, {"raw": "[]"}, {"say": "after"}],
        False,
        ends("end_turn", text="after"),
    ),
    "writes half a line": (
        [
            {"raw": {"text": '{"jsonrpc": "2.0", "meth', "newline": False}},
            {"say": "eaten"},
            {"say": "after"},
        ],
        False,
        ends("end_turn", text="after"),
    ),
    "writes invalid UTF-8": (
        [{"bad_utf8": True}, {"raw": {"base64": "/////w=="}}, {"say": "after"}],
        False,
        ends("end_turn", text="after"),
    ),
    "answers with an error": (
        [{"error": {"code": -32603, "message": "broken"}}],
        False,
        ends("error", "agent_failed"),
    ),
    "writes 70 MB": ([{"say": "go"}, {"chunk": 70 << 20}], False, ends("error", "agent_failed")),
}


def _failed(end: Json) -> None:
    assert end["stop_reason"] == "error", end
    assert end["error"]["code"] in ("agent_failed", "agent_timeout")


async def run_case(client: Client, case: str) -> tuple[str, float]:
    """Run the case in a new session, and then an ordinary turn.

    Returns:
        The session, and the duration of the first turn in seconds.
    """
    steps, cancel, check = CASES[case]
    session = await client.create()
    socket = await client.connect(session)
    started_at = time.monotonic()
    await socket.send("prompt", prompt=script(*steps))
    if cancel:
        await socket.until_text("go")
        await socket.send("cancel")
    end = await socket.until("turn_end")
    took = time.monotonic() - started_at
    check(end, socket)
    again = await socket.turn("still there?")
    assert again["stop_reason"] == "end_turn", (case, again)
    assert "still there?" in socket.text(again["turn_index"])
    await socket.close()
    return session, took


async def run_hang(client: Client) -> tuple[str, float]:
    session = await client.create()
    started_at = time.monotonic()
    steps = script({"say": "go"}, {"hang": True})
    status, reply = await client.turn(session, steps, timeout_secs=HANG_SECS)
    assert (status, reply["code"]) == (504, "agent_timeout"), reply
    return session, time.monotonic() - started_at


async def run_failing_start(client: Client, agent: str) -> tuple[str, float]:
    session = await client.create(agent)
    started_at = time.monotonic()
    status, reply = await client.turn(session, "hello?")
    assert (status, reply["code"]) == (502, "agent_unavailable"), (agent, reply)
    return session, time.monotonic() - started_at


@pytest.mark.slow
async def test_misbehaving_agents(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The turn of a misbehaving agent ends, other sessions continue, and no process is left."""
    rounds = chaos.size(1, 5)
    server = await spawn(
        MAX_LIVE_AGENTS="64",
        DRAIN_SECS="0",
        CANCEL_GRACE_SECS=str(GRACE),
        AGENT_START_TIMEOUT_SECS="5",
    )
    client = await new_client(server.url, http)
    neighbour = await client.connect(await client.create())
    await neighbour.turn("warm")
    before = descendants_of_agents(server.pid)
    waits: list[float] = []
    finished = asyncio.Event()

    async def run_neighbour() -> None:
        while not finished.is_set():
            started_at = time.monotonic()
            end = await neighbour.turn("ping")
            assert end["stop_reason"] == "end_turn"
            waits.append(time.monotonic() - started_at)
            await asyncio.sleep(0.02)

    longest: dict[str, float] = {}

    async def record(case: str, work: Awaitable[tuple[str, float]]) -> None:
        async with Deadline(f"an agent that {case}", 40):
            session, took = await work
        longest[case] = max(took, longest.get(case, 0))
        await client.delete(f"/sessions/{session}")

    async with asyncio.TaskGroup() as all_tasks:
        all_tasks.create_task(run_neighbour())
        for _ in range(rounds):
            async with asyncio.TaskGroup() as group:
                for case in CASES:
                    group.create_task(record(case, run_case(client, case)))
                group.create_task(record("hangs", run_hang(client)))
                for agent in ("mock-dies", "mock-silent"):
                    group.create_task(record(agent, run_failing_start(client, agent)))
        finished.set()
    await eventually(
        "the processes of the agents to end",
        lambda: not descendants_of_agents(server.pid) - before,
    )
    files = (tmp_path / "data" / "workspaces").glob("*/*")
    pids = [int(path.read_text()) for path in files if path.name in ("one", "two", "three")]
    assert len(pids) >= 3 * rounds
    assert not any(map(is_running, pids))
    chaos.record(
        cases=len(longest),
        rounds=rounds,
        neighbours_turns=len(waits),
        median_ms=statistics.median(waits) * 1000,
        worst_ms=max(waits) * 1000,
        left_behind=0,
    )
    assert longest["ignores the cancel"] >= GRACE
    assert longest["hangs"] >= HANG_SECS


@pytest.mark.slow
async def test_hung_agent_occupies_one_slot(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """The deadline of a hung agent's turn frees its slot."""
    slots = chaos.size(2, 8)
    server = await spawn(
        MAX_LIVE_AGENTS=str(slots), DRAIN_SECS="0", TURN_TIMEOUT_SECS="2", CANCEL_GRACE_SECS="0.2"
    )
    client = await new_client(server.url, http)
    hung = []
    for _ in range(slots):
        socket = await client.connect(await client.create())
        await socket.send("prompt", prompt=script({"ignore_cancel": True}, {"hang": True}))
        await socket.until("turn_start")
        hung.append(socket)
    started_at = time.monotonic()
    status, _ = await client.turn(await client.create(), "me too")
    waited = time.monotonic() - started_at
    assert status == 200
    for socket in hung:
        end = await socket.until("turn_end")
        assert end["error"]["code"] == "agent_timeout"
        assert (await socket.turn("and now?"))["stop_reason"] == "end_turn"
    chaos.record(hung_agents=slots, the_next_waited_s=waited)
