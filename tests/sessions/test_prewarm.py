"""Prewarmed agents: their sessions, their eviction and their isolation between apps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from server.sessions.announcement import Announcement
from server.storage.writer import DatabaseWriter

from ..conftest import Serve, Spawn
from ..support.engine import only_sqlite
from ..support.harness import (
    MOCKS,
    Client,
    Clock,
    Json,
    LocalServer,
    eventually,
    is_running,
    mock_agent,
    script,
    texts_of,
)

REPORT = script({"report": True})
HISTORY = script({"history": True})


def prewarmed(server: LocalServer) -> list[Any]:
    """The prewarmed agents that have no session yet."""
    return [one for one in server.services.sessions.prewarmer.agents if one.is_ready]


async def until_prewarmed(server: LocalServer, count: int) -> None:
    await eventually(f"{count} prewarmed agents", lambda: len(prewarmed(server)) == count)


async def report(client: Client, session: str) -> Json:
    """The session's agent's report about itself."""
    status, reply = await client.turn(session, REPORT)
    assert status == 200, reply
    found: Json = json.loads(texts_of(reply["events"]))
    return found


async def history(client: Client, session: str) -> list[str]:
    status, reply = await client.turn(session, HISTORY)
    assert status == 200, reply
    said: list[str] = json.loads(texts_of(reply["events"]))
    return said[:-1]


@only_sqlite
async def test_new_session_takes_over_a_prewarmed_agent(serve: Serve, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    server = await serve(
        prewarmed_agents=2, agents={"mock": mock_agent("--modes", f"--pid-file={pids}")}
    )
    mine, theirs = await server.client("mine"), await server.client("theirs")
    await until_prewarmed(server, 2)
    started = pids.read_text().split()
    assert server.services.sessions.figures.count_agents() == {"prewarmed": 2, "hibernated": 0}

    first = await mine.create()
    state = await mine.state(first)
    assert state["agent_state"] == "prewarmed"
    assert state["modes"]["currentModeId"] == "ask"  # it has reported its settings
    assert Path(state["cwd"]).name == first
    told = await report(mine, first)
    assert str(told["pid"]) in started
    assert told["cwd"] == told["session"]["cwd"] == state["cwd"]
    entries = await mine.events(first)
    assert [e["context"] for e in entries if e["type"] == "turn_start"] == ["new"]
    assert [e["seq"] for e in entries] == list(range(1, len(entries) + 1))
    assert (await mine.state(first))["agent_state"] == "live"

    # Another app's agent has another process and folder, and knows nothing of the first.
    await mine.turn(first, "a secret")
    await mine.delete(f"/sessions/{first}")
    second = await theirs.create()
    assert (await theirs.get(f"/sessions/{first}"))[0] == 404
    other = await report(theirs, second)
    assert other["pid"] != told["pid"]
    assert other["cwd"] != told["cwd"]
    assert str(other["pid"]) in started
    assert await history(theirs, second) == [REPORT]
    await until_prewarmed(server, 2)
    assert len(pids.read_text().split()) == 4


@pytest.mark.slow
async def test_session_with_other_options_gets_no_prewarmed_agent(
    serve: Serve, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    server = await serve(prewarmed_agents=1, workspace_roots=(root.resolve(),))
    client = await server.client()
    await until_prewarmed(server, 1)
    (agent,) = prewarmed(server)
    for options in ({"system": "Be brief."}, {"cwd": str(root)}):
        session = await client.create("mock", **options)
        assert (await client.state(session))["agent_state"] in ("waking", "live")
    assert (await client.turn(await client.create("mock-modes"), "hello"))[0] == 200
    assert prewarmed(server) == [agent]
    assert await client.create("mock", permission="ask", meta={"n": 1}) == agent.id


@only_sqlite
async def test_evicted_prewarmed_agent_leaves_nothing(
    serve: Serve,
) -> None:
    clock = Clock()
    server = await serve(prewarmed_agents=1, max_live_agents=2, clock=clock)
    client = await server.client()
    await until_prewarmed(server, 1)
    (agent,) = prewarmed(server)
    sessions = [await client.create("mock-modes") for _ in range(2)]
    for session in sessions:
        status, _ = await client.turn(session, f"hello {session}")
        assert status == 200
    states = [(await client.state(session))["agent_state"] for session in sessions]
    assert states == ["live", "live"]
    data = server.services.settings.data_dir
    await eventually("its folder to go", lambda: not Path(agent.spec.cwd).exists())
    await eventually("its record", lambda: not list((data / "acpx/sessions").glob(f"{agent.id}*")))
    assert not prewarmed(server)

    # An agent that was not used since the last sweep hibernates, for the next session.
    clock.advance(server.services.settings.sweep_interval_secs + 1)
    await server.services.sessions.sweeper.sweep()
    await until_prewarmed(server, 1)
    states = sorted([(await client.state(session))["agent_state"] for session in sessions])
    assert states == ["hibernated", "live"]
    asleep = [s for s in sessions if (await client.state(s))["agent_state"] == "hibernated"]
    assert await history(client, asleep[0]) == [f"hello {asleep[0]}"]


@only_sqlite
async def test_session_with_a_prewarmed_agent_is_evictable_for_a_waiting_prompt(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(prewarmed_agents=1, max_live_agents=1)
    client = await server.client()
    await until_prewarmed(server, 1)
    socket = await client.connect(await client.create("mock-modes"))
    commit, taken, go_on = DatabaseWriter.commit, asyncio.Event(), asyncio.Event()

    async def commit_slowly(writer: DatabaseWriter, statements: Any) -> None:
        if statements[0][0].startswith("INSERT INTO sessions"):
            taken.set()
            await go_on.wait()
        await commit(writer, statements)

    monkeypatch.setattr(DatabaseWriter, "commit", commit_slowly)
    creating = asyncio.create_task(client.create())
    await taken.wait()
    await socket.send("prompt", prompt="room for me?")
    assert (await socket.until("accepted"))["queued"] is True
    go_on.set()
    await creating
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"


@pytest.mark.slow
async def test_ended_prewarmed_agent_is_replaced_by_the_next_sweep(
    serve: Serve, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    server = await serve(prewarmed_agents=1, agents={"mock": mock_agent(f"--pid-file={pids}")})
    client = await server.client()
    await until_prewarmed(server, 1)
    os.kill(int(pids.read_text()), signal.SIGKILL)
    await until_prewarmed(server, 0)
    await server.services.sessions.sweeper.sweep()
    await until_prewarmed(server, 1)
    assert (await client.turn(await client.create(), "hello"))[0] == 200
    assert len(pids.read_text().split()) >= 2


@pytest.mark.slow
async def test_prewarmed_agent_that_does_not_start_affects_no_session(serve: Serve) -> None:
    server = await serve(prewarmed_agents=3, agents=MOCKS, default_agent="mock-dies")
    client = await server.client()
    await eventually("it to be given up", lambda: not len(server.services.sessions.prewarmer))
    assert (await client.turn(await client.create("mock"), "hello"))[0] == 200


@pytest.mark.slow
@only_sqlite
async def test_prewarmed_agents_of_a_killed_server_leave_nothing(
    spawn: Spawn, tmp_path: Path
) -> None:
    data, pids = tmp_path / "data", tmp_path / "pids"
    agent = mock_agent(f"--pid-file={pids}")
    settings = {"AGENTS": json.dumps({"mock": list(agent.argv)}), "PREWARMED_AGENTS": "1"}

    def folders() -> set[str]:
        return {path.name for path in (data / "workspaces").glob("*")}

    def records() -> set[str]:
        return {path.stem for path in (data / "acpx" / "sessions").glob("*-*-*.json")}

    server = await spawn(**settings)
    await eventually("its record", records)
    left = folders()
    await server.kill()
    (pid,) = map(int, pids.read_text().split())
    await eventually("its agent to end", lambda: not is_running(pid))
    await spawn(**settings | {"PREWARMED_AGENTS": "0"})
    await eventually("its folder and its record to go", lambda: not folders() and not records())
    assert len(left) == 1


@only_sqlite
async def test_prewarmed_agents_get_the_capabilities_of_the_newest_sessions(serve: Serve) -> None:
    settings: Any = {
        "prewarmed_agents": 1,
        "default_agent": "mock",
        "agents": {"mock": mock_agent("--modes")},
    }
    server = await serve(**settings)
    client = await server.client()
    await until_ready(server, ())
    page: Json = {"elicitation": "ask", "client_capabilities": ["subagents", "plan"]}
    state: Json = {}
    for body, is_prewarmed in ((page, False), ({**page, "model": "mock-large"}, True)):
        state = await created(client, body)
        # A session never takes over an agent with another announcement.
        assert (state["agent_state"] == "prewarmed") is is_prewarmed
        assert await announced(client, state["session_id"]) == {"elicitation", "plan", "subagents"}
        await until_ready(server, ("form", "url"), ("plan", "subagents"))
    assert (await client.state(state["session_id"]))["models"]["currentModelId"] == "mock-large"
    await server.stop()
    server = await serve(**settings)
    client = Client(server.url, client.token, client.http)
    await until_ready(server, ("form", "url"), ("plan", "subagents"))  # it knows the sessions
    state = await created(client, {"elicitation": "off"})
    assert state["agent_state"] != "prewarmed"
    assert await announced(client, state["session_id"]) == set()
    await until_ready(server, ())


async def created(client: Client, body: Json) -> Json:
    status, state = await client.post("/sessions", body)
    assert status == 200, state
    return state


async def announced(client: Client, session: str) -> set[str]:
    """The capabilities of the session's clients that the agent knows."""
    capabilities: Json = (await report(client, session))["initialize"]["clientCapabilities"]
    return {"elicitation", "plan", "subagents"} & capabilities.keys()


async def until_ready(
    server: LocalServer, elicitation: tuple[str, ...], further: tuple[str, ...] = ()
) -> None:
    """Wait for a prewarmed agent that knows such clients."""
    wanted = Announcement(elicitation, further)
    await eventually(
        f"a prewarmed agent for {wanted}",
        lambda: any(one.is_ready and one.announced == wanted for one in prewarmed(server)),
    )
