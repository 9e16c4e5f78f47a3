"""Hibernation: few sessions have a running agent, and all keep their conversation."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from server.agents.host.process import HostProcess
from server.sessions.settings import SetMode
from server.storage.queries import Queries
from server.storage.schema import TurnRow

from ..conftest import Serve
from ..support import acp_client
from ..support.harness import (
    MOCKS,
    Client,
    Clock,
    Json,
    LocalServer,
    busy_socket,
    eventually,
    mock_agent,
    script,
    texts_of,
)
from ..support.processes import processes_of

HISTORY = script({"history": True})


async def history(client: Client, session: str) -> list[str]:
    """The earlier prompts that the session's agent remembers."""
    status, reply = await client.turn(session, HISTORY)
    assert status == 200, reply
    remembered: list[str] = json.loads(texts_of(reply["events"]))
    return remembered[:-1]


async def agent_states(client: Client) -> list[str]:
    _, reply = await client.get("/sessions")
    return sorted(session["agent_state"] for session in reply["sessions"])


async def context_of_last_turn(client: Client, session: str) -> str:
    starts = [e for e in await client.events(session) if e["type"] == "turn_start"]
    return str(starts[-1]["context"])


async def test_longest_idle_agent_is_evicted(serve: Serve) -> None:
    server = await serve(max_live_agents=2)
    client = await server.client()
    sessions = [await client.create() for _ in range(3)]
    for session in sessions:
        await client.turn(session, f"hello {session}")
    assert await agent_states(client) == ["hibernated", "live", "live"]
    assert (await client.state(sessions[0]))["agent_state"] == "hibernated"
    assert await history(client, sessions[0]) == [f"hello {sessions[0]}"]
    assert await context_of_last_turn(client, sessions[0]) == "kept"


async def test_prompt_is_queued_while_all_agents_are_busy(share: Serve) -> None:
    server = await share(max_live_agents=1)
    client = await server.client()
    busy, other = await client.create(), await client.create()
    first = await busy_socket(client, busy)
    second = await client.connect(other)
    await second.send("prompt", prompt="me too")
    assert (await second.until("accepted"))["queued"] is True
    await first.send("cancel")
    await first.until("turn_end")
    assert (await second.until("turn_end"))["stop_reason"] == "end_turn"


async def test_agent_that_waits_for_a_permission_does_not_hibernate(share: Serve) -> None:
    server = await share(max_live_agents=1)
    client = await server.client()
    asking = await client.create(permission="ask")
    socket = await client.connect(asking)
    await socket.send("prompt", prompt=script({"permission": True}))
    request = await socket.until("permission_request")
    other = await client.connect(await client.create())
    await other.send("prompt", prompt="room for me?")
    assert (await other.until("accepted"))["queued"] is True
    state = await client.state(asking)
    assert [p["request_id"] for p in state["pending_permissions"]] == [request["request_id"]]
    await socket.send("permission", request_id=request["request_id"], option_id="allow_once")
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"
    await other.until("turn_end")


async def test_agent_with_a_request_after_turn_end_does_not_hibernate(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock, agent_idle_secs=60)
    client = await server.client()
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    await socket.turn(script({"late": [{"permission": True}]}))
    request = await socket.until("permission_request")
    clock.advance(61)
    await server.services.sessions.sweeper.sweep()
    assert (await client.state(session))["agent_state"] == "live"
    await socket.send("permission", request_id=request["request_id"], option_id="allow_once")
    await socket.until_text("allow_once")
    await server.services.sessions.sweeper.sweep()
    assert (await client.state(session))["agent_state"] == "hibernated"


async def test_agent_is_evicted_once_its_late_request_is_resolved(
    share: Serve,
) -> None:
    server = await share(max_live_agents=1)
    client = await server.client()
    asking = await client.connect(await client.create(permission="ask"))
    await asking.turn(script({"late": [{"permission": True}]}))
    request = await asking.until("permission_request")
    other = await client.connect(await client.create())
    await other.send("prompt", prompt="room for me?")
    assert (await other.until("accepted"))["queued"] is True
    await asking.send("permission", request_id=request["request_id"], option_id="allow_once")
    assert (await other.until("turn_end"))["stop_reason"] == "end_turn"


async def test_idle_agents_hibernate_and_resume_with_their_context(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock, agent_idle_secs=60)
    client = await server.client()
    session = await client.create()
    await client.turn(session, "remember me")
    clock.advance(59)
    await server.services.sessions.sweeper.sweep()
    assert await agent_states(client) == ["live"]
    clock.advance(2)
    await server.services.sessions.sweeper.sweep()
    assert await agent_states(client) == ["hibernated"]
    assert await history(client, session) == ["remember me"]
    assert await context_of_last_turn(client, session) == "kept"


async def test_acpx_record_does_not_grow_with_prompts(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock, agent_idle_secs=60)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session)
    picture = {"type": "image", "mimeType": "image/png", "data": "A" * 1_000_000}
    for number in range(3):
        await socket.turn([{"type": "text", "text": f"look at {number}"}, picture])
    clock.advance(61)
    await server.services.sessions.sweeper.sweep()
    (record,) = (server.services.settings.data_dir / "acpx" / "sessions").glob("*.json")
    assert record.stat().st_size < 20_000
    said = await history(client, session)
    assert [text.partition(" ")[0] for text in said] == ["look"] * 3


async def test_context_is_lost_if_agent_cannot_load(
    share: Serve,
) -> None:
    server = await share(max_live_agents=1)
    client = await server.client()
    forgetful = await client.create("mock-no-load")
    await client.turn(forgetful, "remember me")
    await client.turn(await client.create(), "I need the only agent")
    assert await history(client, forgetful) == []
    assert await context_of_last_turn(client, forgetful) == "lost"


async def test_prompt_during_hibernation_is_run(
    serve: Serve,
) -> None:
    clock = Clock()
    server = await serve(clock=clock, agent_idle_secs=1)
    client = await server.client()
    session = await client.create()
    await client.turn(session, "first")
    clock.advance(2)
    sweeping = asyncio.create_task(server.services.sessions.sweeper.sweep())
    replies: list[tuple[int, Json]] = await asyncio.gather(
        *(client.turn(session, f"again {n}") for n in range(3))
    )
    await sweeping
    assert [status for status, _ in replies] == [200, 200, 200]
    assert (await history(client, session))[0] == "first"


async def test_duplicate_prompt_leaves_agent_evictable(
    share: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await share(max_live_agents=1)
    client = await server.client()
    idle = await client.create()
    path, once = f"/sessions/{idle}/turn", {"headers": {"Idempotency-Key": "once"}}
    assert (await client.post(path, {"prompt": "hello"}, **once))[0] == 200
    socket = await client.connect(await client.create())
    looks, looking, go_on = Queries.turn_by_client_id, asyncio.Event(), asyncio.Event()

    async def look_slowly(
        queries: Queries, session: int, client_id: str
    ) -> tuple[TurnRow | None, bool]:
        looking.set()
        await go_on.wait()
        return await looks(queries, session, client_id)

    monkeypatch.setattr(Queries, "turn_by_client_id", look_slowly)
    body = {"prompt": "hello", "files": ["gone meanwhile"]}
    asking = asyncio.create_task(client.post(path, body, **once))
    await looking.wait()
    await socket.send("prompt", prompt="room for me?")
    assert (await socket.until("accepted"))["queued"] is True
    go_on.set()
    status, reply = await asking
    assert (status, reply["turn_index"]) == (200, 1)
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"


async def test_agent_that_dies_in_a_turn_releases_its_slot(share: Serve) -> None:
    server = await share()
    client = await server.client()
    _, reply = await client.turn(await client.create(), script({"exit": 1}))
    assert reply["code"] == "agent_failed"
    await eventually("the slot to be released", lambda: not len(server.services.sessions.slots))


async def test_setting_and_prompt_of_one_session_need_one_slot(share: Serve) -> None:
    server = await share(max_live_agents=1)
    client = await server.client()
    busy = await busy_socket(client, await client.create())
    socket = await client.connect(await client.create("mock-modes"))
    await socket.send("set_mode", mode="code")
    await socket.send("prompt", prompt="both of us wait")
    assert (await socket.until("accepted"))["queued"] is True
    await busy.send("cancel")
    await busy.until("turn_end")
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"


async def test_setting_that_waits_for_a_slot_does_not_start_agent_of_a_closed_session(
    share: Serve,
) -> None:
    server = await share(max_live_agents=1)
    client = await server.client()
    busy = await busy_socket(client, await client.create())
    session = await client.create("mock-modes")
    socket = await client.connect(session)
    await socket.send("set_mode", mode="code")
    await socket.send("ping", id="read")
    await socket.until("pong")
    await client.delete(f"/sessions/{session}")
    await busy.send("cancel")
    await busy.until("turn_end")
    assert (await client.turn(await client.create(), "is a slot free?"))[0] == 200
    assert (await client.state(session))["agent_state"] == "hibernated"


async def abandon_setting(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, session_id: str, op: str
) -> None:
    """Request another mode, and cancel the request once acpx has received *op* for it."""
    session = await server.services.sessions.get(session_id, "app")
    send, sent = HostProcess.send, asyncio.Event()

    def note(host: HostProcess, asked: str, **fields: Any) -> asyncio.Future[Any]:
        if asked == op and fields["key"] == session_id:
            sent.set()
        return send(host, asked, **fields)

    monkeypatch.setattr(HostProcess, "send", note)
    setting = asyncio.create_task(session.request_change(SetMode(mode="code")).wait())
    await sent.wait()
    setting.cancel()
    await asyncio.wait({setting})
    assert setting.cancelled()


async def test_agent_that_starts_for_an_abandoned_setting_keeps_its_slot(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(max_live_agents=1)
    client = await server.client()
    other = await client.create()
    await client.turn(other, "I have the only agent")
    session = await client.create("mock-modes")
    await abandon_setting(server, monkeypatch, session, "open")
    assert len(server.services.sessions.slots) == 1
    await client.until_live(session)
    assert (await client.turn(other, "I need it again"))[0] == 200
    assert len(processes_of("mock_agent.py")) == 1
    assert (await client.state(session))["agent_state"] == "hibernated"


async def test_agent_that_resumes_for_an_abandoned_setting_holds_a_slot_while_it_runs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    server = await serve(clock=clock, agent_idle_secs=1)
    client = await server.client()
    session = await client.create("mock-modes")
    await client.turn(session, "hello")
    clock.advance(2)
    await server.services.sessions.sweeper.sweep()
    slots = server.services.sessions.slots
    assert len(slots) == 0
    await abandon_setting(server, monkeypatch, session, "set_mode")
    assert len(slots) == 1
    await eventually("the slot to be released", lambda: not len(slots))
    assert not processes_of("mock_agent.py")


async def test_agent_that_does_not_start_for_an_abandoned_setting_releases_its_slot(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create("mock-dies")
    slots = server.services.sessions.slots
    await eventually("the first start to fail", lambda: not len(slots))
    await abandon_setting(server, monkeypatch, session, "open")
    assert len(slots) == 1
    await eventually("the slot to be released", lambda: not len(slots))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_new_session_is_created_if_its_starting_agent_is_evicted(
    serve: Serve,
) -> None:
    agents_known = {**MOCKS, "mock-slow": mock_agent("--slow-start=60000")}
    server = await serve(max_live_agents=1, agents=agents_known)
    client = await server.client()
    acp = await acp_client.connect(client)
    options_meta = {"clawdforge": {"agent": "mock-slow"}}
    creating = await acp.request(
        "session/new", {"cwd": "/", "mcpServers": [], "_meta": options_meta}
    )
    await eventually("the agent to start", lambda: processes_of("mock_agent.py"))
    assert (await client.turn(await client.create(), "I need it now"))[0] == 200
    session = (await acp.response_to(creating))["sessionId"]
    assert (await client.state(session))["agent_state"] == "hibernated"


@pytest.mark.slow
async def test_limit_on_agents_holds_if_prompts_are_cancelled(
    serve: Serve,
) -> None:
    server = await serve(max_live_agents=2)
    client = await server.client()
    dice = random.Random(3)
    most = 0

    async def hurry() -> None:
        nonlocal most
        socket = await client.connect(await client.create())
        for number in range(6):
            await socket.send("prompt", prompt=script({"sleep": dice.randrange(20)}))
            if dice.random() < 0.5:
                await socket.send("cancel")
            await socket.until("turn_end", turn_index=number + 1)
            most = max(most, len(processes_of("mock_agent.py")))

    await asyncio.gather(*(hurry() for _ in range(5)))
    assert 0 < most <= 2


@pytest.mark.parametrize("backend", ["host", pytest.param("cli", marks=pytest.mark.slow)])
async def test_agent_is_not_started_in_a_folder_that_was_replaced_by_a_link(
    serve: Serve, tmp_path: Path, backend: str
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    cwd = root / "above" / "cwd"
    cwd.mkdir(parents=True)
    (outside / "cwd").mkdir(parents=True)
    server = await serve(workspace_roots=(root,), agent_backend=backend)
    client = await server.client()
    session = await client.create(cwd=str(cwd))
    assert (await client.turn(session, "hi"))[0] == 200
    replacements = ((cwd, outside / "cwd"), (cwd.parent, outside))
    for replaced, link in replacements[: 2 if backend == "host" else 1]:
        assert await (await server.services.sessions.get(session, "app")).agent.hibernate()
        moved = replaced.rename(tmp_path / "moved")
        replaced.symlink_to(link)
        status, reply = await client.turn(session, script({"touch": "here"}))
        assert (status, reply["code"]) == (400, "bad_request")
        assert not list(outside.rglob("here"))
        replaced.unlink()
        moved.rename(replaced)
        assert (await client.turn(session, "hi again"))[0] == 200
