"""Restart after `kill -9`: nothing that a client has received is lost or changed."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from ..conftest import Serve, Spawn, spawning
from ..support.acp_client import connect
from ..support.engine import only_sqlite
from ..support.harness import Client, Json, Socket, http_session, new_client, script, texts_of
from ..support.runs import upload

HISTORY = script({"history": True})

Scenario = AsyncGenerator[None, Client]
"""Prepares sessions until its ``yield``, which returns a client of the restarted server."""

scenarios: dict[str, Callable[[Client], Scenario]] = {}


def across_a_kill(scenario: Callable[[Client], Scenario]) -> Callable[[Client], Scenario]:
    """Add a scenario. All share a server that is killed and the server that follows it."""
    scenarios[scenario.__name__] = scenario
    return scenario


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prepared(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[dict[str, Scenario], Client]]:
    """The prepared scenarios, and a client of the restarted server."""
    folder = tmp_path_factory.mktemp("restart")
    async with http_session() as http, spawning(folder) as spawn:
        server = await spawn()
        client = await new_client(server.url, http)
        begun = {name: scenario(client) for name, scenario in scenarios.items()}
        for scenario in begun.values():
            await anext(scenario)
        await server.kill()
        yield begun, await at((await spawn()).url, client)
        for scenario in begun.values():
            await scenario.aclose()


async def at(url: str, client: Client) -> Client:
    """Return the same client, connected to the restarted server."""
    return Client(url, client.token, client.http)


def one_end_for_each_start(entries: list[Json]) -> bool:
    starts = Counter(e["turn_index"] for e in entries if e["type"] == "turn_start")
    ends = Counter(e["turn_index"] for e in entries if e["type"] == "turn_end")
    return starts == ends and set(starts.values()) <= {1}


async def read_what_is_there(socket: Socket) -> None:
    """Receive what a killed server had sent."""
    with contextlib.suppress(AssertionError):
        while await socket.next() is not None:
            pass


@across_a_kill
async def steered_prompts_are_known_and_undecided_ones_end(client: Client) -> Scenario:
    session = await client.create("mock-steers")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"say": "busy"}, {"hang": True}))
    await socket.until_text("busy")
    await socket.send("prompt", prompt="accepted", steer=True, id="s1")
    await socket.until("turn_steer")
    await socket.send("prompt", prompt=json.dumps({"steer": "hang"}), steer=True, id="s2")
    await socket.send("ping")
    await socket.until("pong")
    client = yield
    entries = await client.events(session)
    assert one_end_for_each_start(entries)
    found = [(e["turn_index"], e["id"]) for e in entries if "id" in e]
    assert found == [(1, None), (1, "s1"), (2, "s2")]
    ends = [entry["error"]["code"] for entry in entries if entry["type"] == "turn_end"]
    assert ends == ["server_restarted"] * 2
    socket = await client.connect(session)
    for name, index, steered in (("s1", 1, True), ("s2", 2, False)):
        await socket.send("prompt", id=name, prompt=name, steer=True)
        again = await socket.until("accepted", id=name)
        assert (again["turn_index"], again["duplicate"]) == (index, True)
        assert again["steered"] is steered
    assert (await socket.turn("go on"))["turn_index"] == 3


@across_a_kill
async def running_and_queued_turns_end_as_server_restarted(client: Client) -> Scenario:
    session = await client.create()
    await client.turn(session, "before")
    socket = await client.connect(session, after=0)
    await socket.send("prompt", id="running", prompt=script({"say": "busy"}, {"hang": True}))
    await socket.until_text("busy")
    for name in ("q1", "q2"):
        await socket.send("prompt", id=name, prompt=name)
        await socket.until("accepted", id=name)
    client = yield
    await read_what_is_there(socket)
    entries = await client.events(session)
    assert entries[: len(socket.entries)] == socket.entries
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert one_end_for_each_start(entries)
    ends = [entry for entry in entries if entry["type"] == "turn_end"]
    assert [end["turn_index"] for end in ends] == [1, 2, 3, 4]
    for end in ends[1:]:
        assert end["stop_reason"] == "error"
        assert end["error"]["code"] == "server_restarted"
        assert end["error"]["retryable"] is True
    starts = {e["turn_index"]: e["id"] for e in entries if e["type"] == "turn_start"}
    assert starts == {1: None, 2: "running", 3: "q1", 4: "q2"}
    assert (await client.state(session))["state"] == "idle"

    # Their ids are used up; to run them again, a client needs new ids.
    socket = await client.connect(session)
    for index, name in ((2, "running"), (3, "q1")):
        await socket.send("prompt", id=name, prompt=name)
        again = await socket.until("accepted", id=name)
        assert (again["turn_index"], again["duplicate"]) == (index, True)
    path, headers = f"/sessions/{session}/turn", {"Idempotency-Key": "q1"}
    status, reply = await client.post(path, {"prompt": "q1"}, headers=headers)
    assert (status, reply["code"], reply["turn_index"]) == (503, "server_restarted", 3)
    assert (await client.state(session))["turn_count"] == 4


@across_a_kill
async def next_prompt_has_the_context_and_earlier_ids_are_duplicates(client: Client) -> Scenario:
    session = await client.create("mock-modes")
    editor = await connect(client)
    await editor.call("session/resume", sessionId=session, cwd="/")
    await editor.call("session/set_mode", sessionId=session, modeId="code")
    socket = await client.connect(session)
    await socket.turn("remember this", id="c1")
    before = await client.state(session)
    assert before["modes"]["currentModeId"] == "code"
    client = yield
    state = await client.state(session)
    assert state["agent_state"] == "hibernated"
    offers = ("modes", "models", "config_options")
    assert [state[name] for name in offers] == [before[name] for name in offers]
    told = {"modes": state["modes"], "configOptions": state["config_options"]}
    editor = await connect(client)
    for method in ("session/resume", "session/load"):
        answer = await editor.call(method, sessionId=session, cwd="/", mcpServers=[])
        assert {name: answer[name] for name in told} == told
    socket = await client.connect(session)
    assert [socket.frames[0][name] for name in offers] == [state[name] for name in offers]
    await socket.send("prompt", id="c1", prompt="anything else")
    again = await socket.until("accepted")
    assert (again["turn_index"], again["duplicate"]) == (1, True)
    await socket.turn(HISTORY)
    assert json.loads(socket.text()) == ["remember this", HISTORY]
    assert socket.contexts() == ["kept"]


@across_a_kill
async def demo_agent_remembers_across_a_restart(client: Client) -> Scenario:
    session = await client.create("demo")
    await client.turn(session, "my name is Zoe")
    client = yield
    _, reply = await client.turn(session, "what is my name?")
    assert "Zoe" in texts_of(reply["events"])


@pytest.mark.slow
async def test_waiting_requests_of_agents_are_cancelled(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """One permission request during a turn, one after a turn's end, and a question."""
    server = await spawn()
    client = await new_client(server.url, http)
    asked = {}
    form = {"mode": "form", "message": "?", "requestedSchema": {}}
    for steps, kind in (
        ({"permission": True}, "permission"),
        ({"late": [{"permission": True}]}, "permission"),
        ({"elicit": form}, "elicitation"),
    ):
        session = await client.create(permission="ask", elicitation="ask")
        socket = await client.connect(session)
        await socket.send("prompt", prompt=script(steps))
        request = await socket.until(f"{kind}_request")
        asked[session] = (kind, request["request_id"], request["turn_index"])
    await server.kill()

    cancelled = {"permission": {"outcome": "cancelled"}, "elicitation": {"action": "cancel"}}
    for _ in range(2):  # the resolution is logged once
        server = await spawn()
        client = await at(server.url, client)
        for session, (kind, request_id, turn_index) in asked.items():
            entries = await client.events(session)
            [resolved] = [entry for entry in entries if entry["type"] == f"{kind}_resolved"]
            assert (resolved["request_id"], resolved["by"]) == (request_id, "cancel")
            assert (resolved["turn_index"], resolved["outcome"]) == (turn_index, cancelled[kind])
            assert (await client.state(session))[f"pending_{kind}s"] == []
            assert sum(entry["type"] == "turn_end" for entry in entries) == 1
        await server.kill()


@across_a_kill
async def closed_sessions_stay_closed_and_tokens_stay_valid(client: Client) -> Scenario:
    session = await client.create(meta={"title": "kept"})
    await client.turn(session, "hello")
    before = await client.events(session)
    await client.delete(f"/sessions/{session}")
    client = yield
    state = await client.state(session)
    assert (state["state"], state["close_reason"]) == ("closed", "client")
    assert state["meta"] == {"title": "kept"}
    assert (await client.events(session))[: len(before)] == before
    status, reply = await client.turn(session, "anyone?")
    assert (status, reply["code"]) == (410, "session_closed")


@across_a_kill
async def acp_client_gets_all_earlier_updates_again(client: Client) -> Scenario:
    acp = await connect(client)
    session = await acp.new_session()
    await acp.prompt(session, "before")
    await acp.start_prompt(session, script({"say": "busy"}, {"hang": True}))
    await acp.until_text("busy")
    client = yield
    assert await acp.next() is None
    again = await connect(client)
    await again.call("session/load", sessionId=session, cwd="/", mcpServers=[])
    assert again.text() == acp.text() == "echo: beforebusy"
    assert await again.prompt(session, HISTORY) == {"stopReason": "end_turn"}
    assert '"before"' in again.text()


@only_sqlite
async def test_data_folder_can_be_moved(serve: Serve, tmp_path: Path) -> None:
    server = await serve()
    client = await server.client()
    session, other, closed = [await client.create(agent) for agent in ("demo", "mock", "mock")]
    await client.turn(session, "my name is Zoe")
    file = await upload(client, b"notes")
    await client.delete(f"/sessions/{closed}")
    await server.stop()

    moved = (tmp_path / "data").rename(tmp_path / "elsewhere")
    server = await serve(data_dir=moved, session_hard_ttl_secs=0)
    client = await at(server.url, client)
    assert (await client.state(session))["cwd"] == str(moved / "workspaces" / session)
    _, reply = await client.turn(session, "what is my name?")
    assert "Zoe" in texts_of(reply["events"])
    starts = [entry for entry in await client.events(session) if entry["type"] == "turn_start"]
    assert [start["context"] for start in starts] == ["new", "kept"]
    _, reply = await client.turn(other, "look", files=[file])
    assert f"{moved}/files/" in texts_of(reply["events"])
    await server.services.sessions.sweeper.sweep()
    assert not (moved / "workspaces" / closed).exists()


@pytest.mark.parametrize("scenario", scenarios)
async def test_killed_server_loses_nothing(
    prepared: tuple[dict[str, Scenario], Client], scenario: str
) -> None:
    begun, client = prepared
    with pytest.raises(StopAsyncIteration):
        await begun[scenario].asend(client)
