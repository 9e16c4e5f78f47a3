"""Sessions that are opened again, kept for a chosen time, purged, named and read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.errors import DatabaseError
from server.sessions.registry import SessionRegistry

from ..conftest import Serve, Spawn
from ..support.client import failure, new_client
from ..support.engine import stored_rows
from ..support.harness import Client, Clock, LocalServer, eventually, script
from ..support.runs import upload
from .test_sweeper import HARD, IDLE, audit, events, rows, sweep, traces


def title(text: str | None) -> str:
    """A prompt at which the agent reports its title of the session."""
    return script({"update": {"sessionUpdate": "session_info_update", "title": text}})


async def close(client: Client, session: str, query: str = "") -> dict[str, Any]:
    status, body = await client.delete(f"/sessions/{session}{query}")
    assert status == 200, body
    return body


# Reopening.


async def test_reopened_session_continues_in_its_log_with_its_context(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    await client.turn(session, "remember me")
    await close(client, session)
    head = (await client.state(session))["head"]
    status, state = await client.post(f"/sessions/{session}/reopen")
    assert (status, state["state"], state["session_id"]) == (200, "idle", session)
    assert (state["closed_at"], state["close_reason"]) == (None, None)
    socket = await client.connect(session, after=0)
    await socket.turn(script({"history": True}))
    assert [entry["seq"] for entry in socket.entries] == list(range(1, len(socket.entries) + 1))
    kinds = {entry["seq"]: entry["type"] for entry in socket.entries}
    assert (kinds[head], kinds[head + 1]) == ("session_closed", "session_reopened")
    assert socket.contexts() == ["new", "kept"]
    assert "remember me" in socket.text(2)
    assert events(server, session) == ["create", "turn", "close", "reopen", "turn"]


async def test_conversation_that_cannot_be_loaded_is_lost(client: Client) -> None:
    session = await client.create("mock-no-load")
    await client.turn(session, "remember me")
    await close(client, session)
    assert (await client.post(f"/sessions/{session}/reopen"))[0] == 200
    socket = await client.connect(session, after=0)
    await socket.turn("hello")
    assert socket.contexts() == ["new", "lost"]


async def test_open_session_is_not_reopened(client: Client) -> None:
    session = await client.create()
    failure(await client.post(f"/sessions/{session}/reopen"), 409, "conflict")
    await close(client, session)
    answers = await asyncio.gather(*(client.post(f"/sessions/{session}/reopen") for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 409, 409, 409]
    assert (await client.turn(session, "hello"))[0] == 200
    kinds = [entry["type"] for entry in await client.events(session)]
    assert kinds.count("session_reopened") == 1


async def test_closed_session_takes_no_turn_until_it_is_reopened(client: Client) -> None:
    session = await client.create()
    await close(client, session)
    assert (await client.turn(session, "hello"))[0] == 410


async def test_reopen_is_refused_at_the_session_limit(serve: Serve) -> None:
    server = await serve(max_sessions=1)
    client = await server.client()
    closed = await client.create()
    await close(client, closed)
    opened = await client.create()
    failure(await client.post(f"/sessions/{closed}/reopen"), 503, "pool_full")
    await close(client, opened)
    assert (await client.post(f"/sessions/{closed}/reopen"))[0] == 200
    quotas = server.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("1 open sessions", lambda: quotas.open_sessions == 1)
    failure(await client.post("/sessions", {}), 503, "pool_full")


async def test_reopened_session_is_idle_from_now_on(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock)
    client = await server.client()
    session = await client.create()
    clock.advance(IDLE)
    await sweep(server)
    await client.post(f"/sessions/{session}/reopen")
    clock.advance(IDLE - 1)
    await sweep(server)
    assert (await client.state(session))["state"] == "idle"
    clock.advance(1)
    await sweep(server)
    assert (await client.state(session))["close_reason"] == "idle"


@pytest.mark.slow
async def test_session_is_still_open_after_a_restart(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    await client.turn(session, "remember me")
    await close(client, session)
    await client.post(f"/sessions/{session}/reopen")
    await server.stop()
    again = await serve()
    client = Client(again.url, client.token, client.http)
    quotas = again.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("1 open sessions", lambda: quotas.open_sessions == 1)
    socket = await client.connect(session, after=0)
    await socket.turn("hello")
    assert socket.contexts() == ["new", "kept"]


@pytest.mark.parametrize("call", ["reopen", "read"])
async def test_session_of_another_app_is_missing(
    server: LocalServer, client: Client, call: str
) -> None:
    session = await client.create()
    await close(client, session)
    other = await server.client("another")
    body = {"seq": 0}
    theirs = await other.post(f"/sessions/{session}/{call}", body)
    missing = await other.post(f"/sessions/{'0' * 8}-0000-4000-8000-{'0' * 12}/{call}", body)
    failure(theirs, 404, "not_found")
    assert theirs[1]["error"] == missing[1]["error"]
    assert (await other.delete(f"/sessions/{session}?purge=true"))[0] == 404
    assert (await client.state(session))["state"] == "closed"


# Times.


async def test_session_is_closed_and_deleted_after_its_own_times(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock)
    client = await server.client()
    session = await client.create(ttl_secs=10, retention_secs=20)
    state = await client.state(session)
    assert (state["ttl_secs"], state["retention_secs"]) == (10, 20)
    clock.advance(9.5)
    await sweep(server)
    assert (await client.state(session))["state"] == "idle"
    clock.advance(0.5)
    await sweep(server)
    assert (await client.state(session))["close_reason"] == "idle"
    clock.advance(20)
    await sweep(server)
    assert (await client.get(f"/sessions/{session}"))[0] == 404


async def test_session_can_be_kept_for_ever(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock)
    client = await server.client()
    session = await client.create(ttl_secs=None, retention_secs=None)
    state = await client.state(session)
    assert (state["ttl_secs"], state["retention_secs"]) == (None, None)
    clock.advance(1000 * HARD)
    await sweep(server)
    assert (await client.state(session))["state"] == "idle"
    await close(client, session)
    clock.advance(1000 * HARD)
    await sweep(server)
    assert (await client.state(session))["state"] == "closed"
    status, state = await client.call("PATCH", f"/sessions/{session}", {"retention_secs": 1})
    assert (status, state["ttl_secs"], state["retention_secs"]) == (200, None, 1)
    await sweep(server)
    assert (await client.get(f"/sessions/{session}"))[0] == 404


async def test_times_of_the_settings_are_the_defaults(client: Client) -> None:
    session = await client.create()
    state = await client.state(session)
    assert (state["ttl_secs"], state["retention_secs"]) == (3600, 86400)


@pytest.mark.parametrize(
    "body",
    [
        {"ttl_secs": 0},
        {"ttl_secs": -1},
        {"ttl_secs": "soon"},
        {"retention_secs": -1},
        {"retention_secs": 1e12},
        {},
    ],
)
async def test_invalid_times_are_refused(client: Client, body: dict[str, Any]) -> None:
    session = await client.create()
    failure(await client.call("PATCH", f"/sessions/{session}", body), 400, "bad_request")
    if body:
        failure(await client.post("/sessions", body), 400, "bad_request")


# Purging.


async def test_purged_session_leaves_nothing_but_its_audit(
    server: LocalServer, client: Client
) -> None:
    session, other = await client.create(), await client.create()
    own, shared = await upload(client, b"own"), await upload(client, b"shared")
    await client.turn(session, script({"touch": "made"}), files=[own, shared])
    await client.turn(other, "hello", files=[shared])
    (number,) = rows(server, "SELECT n FROM sessions WHERE id = ?", session)[0]
    socket = await client.connect(session)
    body = await close(client, session, "?purge=true")
    assert body == {"ok": True, "session_id": session, "purged": True}
    assert await socket.until_closed() == 4508
    assert traces(server, session) == []
    for table in ("turns", "log", "asked", "upload_uses"):
        assert rows(server, f"SELECT 1 FROM {table} WHERE session = ?", number) == []
    for path in ("", "/events"):
        assert (await client.get(f"/sessions/{session}{path}"))[0] == 404
    assert (await client.post(f"/sessions/{session}/reopen"))[0] == 404
    assert (await client.delete(f"/sessions/{session}?purge=true"))[0] == 404
    assert (await client.turn(other, "hello", files=[own]))[0] == 400
    assert (await client.turn(other, "hello", files=[shared]))[0] == 200
    assert [event for event, _ in audit(server, session)][-2:] == ["close", "hard_delete"]


async def test_purge_ends_a_running_turn_and_its_readers(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=script({"hang": True}))
    await socket.until("turn_start")
    await close(client, session, "?purge=true")
    assert await socket.until_closed() == 4508
    assert [entry["type"] for entry in socket.entries[-2:]] == ["turn_end", "session_closed"]


async def test_closed_session_is_purged(client: Client) -> None:
    session = await client.create()
    await close(client, session)
    assert (await close(client, session, "?purge=true"))["already_closed"] is True
    assert (await client.get("/sessions?include_closed=true"))[1]["count"] == 0


STEPS = ("begun", "files", "steps")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_closed", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_interrupted_purge_is_completed_by_the_next_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, step: str, is_closed: bool
) -> None:
    """A purge that stops after any step leaves the session invisible, and is then completed."""
    server = await serve()
    client = await server.client()
    session = await client.create()
    token = await upload(client, b"own")
    await client.turn(session, "hello", files=[token])
    if is_closed:
        await close(client, session)

    async def killed(*_: Any) -> None:
        raise DatabaseError("killed here", is_transient=True)

    remover = server.services.sessions.remover
    with monkeypatch.context() as patch:
        if step == "begun":
            patch.setattr(SessionRegistry, "close", killed)  # it is not closed, either
        elif step == "files":
            remover.steps.insert(0, killed)
        else:
            remover.steps.append(killed)
        assert (await client.delete(f"/sessions/{session}?purge=true"))[0] == 500
    if step != "begun":
        assert (await client.get(f"/sessions/{session}"))[0] == 404
        assert (await client.get("/sessions?include_closed=true"))[1]["count"] == 0
    await server.stop()
    again = await serve()
    client = Client(again.url, client.token, client.http)
    assert (await client.get(f"/sessions/{session}"))[0] == 404
    assert traces(again, session) == []
    assert rows(again, "SELECT 1 FROM sessions") == []
    assert rows(again, "SELECT 1 FROM files") == []
    assert events(again, session)[-2:] == ["close", "hard_delete"]
    quotas = again.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("0 open sessions", lambda: quotas.open_sessions == 0)


@pytest.mark.slow
async def test_server_killed_during_purges_leaves_nothing_half_done(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    sessions = [await client.create("demo") for _ in range(12)]
    await asyncio.gather(*(client.turn(session, "hello") for session in sessions[:4]))
    purges = [
        asyncio.create_task(client.delete(f"/sessions/{session}?purge=true"))
        for session in sessions
    ]
    await asyncio.wait(purges, return_when=asyncio.FIRST_COMPLETED)
    await server.kill()
    await asyncio.gather(*purges, return_exceptions=True)
    again = await spawn()
    client = Client(again.url, client.token, client.http)
    database = tmp_path / "data"
    assert stored_rows(database, "SELECT id FROM sessions WHERE removed_at IS NOT NULL") == []
    left = {state["session_id"] for state in (await client.get("/sessions"))[1]["sessions"]}
    for session in sessions:
        done = stored_rows(
            database,
            f"SELECT event FROM session_events WHERE session_id = '{session}'"
            " AND event IN ('close', 'hard_delete')",
        )
        assert done == ([("close",), ("hard_delete",)] if session not in left else [])
        assert (tmp_path / "data" / "workspaces" / session).exists() is (session in left)


# Titles.


async def test_title_of_the_agent_is_used_until_the_client_sets_one(client: Client) -> None:
    session = await client.create()
    assert (await client.state(session))["title"] is None

    async def has_title(wanted: str | None) -> None:
        async def shown() -> bool:
            state = await client.state(session)
            return bool(state["title"] == wanted == state["meta"].get("title"))

        await eventually(f"the title {wanted!r}", shown)

    await client.turn(session, title(" Fixing\nthe build "))
    await has_title("Fixing the build")
    await client.turn(session, title("Fixing the tests"))
    await has_title("Fixing the tests")
    await client.call("PATCH", f"/sessions/{session}", {"meta": {"other": 1}})
    await client.turn(session, title(None))
    await has_title(None)
    await client.call("PATCH", f"/sessions/{session}", {"meta": {"title": "Mine"}})
    await client.turn(session, title("The agent's"))
    await client.turn(session, "hello")
    await has_title("Mine")
    await client.call("PATCH", f"/sessions/{session}", {"meta": {"title": None}})
    await client.turn(session, title("The agent's"))
    await has_title("The agent's")


@pytest.mark.parametrize("odd", [1, ["a"], {"a": 1}, "", " \n "])
async def test_title_of_another_type_is_ignored(client: Client, odd: Any) -> None:
    session = await client.create(meta={"title": 5})
    await client.turn(session, title(odd))
    state = await client.state(session)
    assert (state["title"], state["meta"]) == (None, {"title": 5})


# The read mark.


async def test_unread_counts_the_entries_after_the_last_mark(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    await client.turn(session, "hello")
    head = (await client.state(session))["head"]
    assert (await client.state(session))["unread"] == head
    status, body = await client.post(f"/sessions/{session}/read", {"seq": head - 1})
    assert (status, body) == (200, {"ok": True, "session_id": session, "unread": 1})
    await server.stop()
    again = await serve()
    client = Client(again.url, client.token, client.http)
    assert (await client.state(session))["unread"] == 1
    for seq in (head + 1, -1, "x", None):
        failure(await client.post(f"/sessions/{session}/read", {"seq": seq}), 400, "bad_request")
    await client.post(f"/sessions/{session}/read", {"seq": 0})  # marked as unread again
    assert (await client.state(session))["unread"] == head
