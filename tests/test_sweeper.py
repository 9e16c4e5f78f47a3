"""What grows old: idle sessions are closed, closed ones deleted, uploads too."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.auth import FIRST_APP

from .conftest import Serve
from .harness import Client, Clock, LocalServer, eventually, script

IDLE = 3600
HARD = 86400


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server(serve: Serve, clock: Clock) -> LocalServer:
    return await serve(clock=clock)


async def sweep(server: LocalServer) -> None:
    await server.services.sessions.sweep()
    await server.services.files.sweep()


def rows(server: LocalServer, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    path = server.services.settings.data_dir / "clawdforge.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(sql, parameters).fetchall()


def audit(server: LocalServer, session: str) -> list[tuple[str, dict[str, Any]]]:
    sql = "SELECT event, detail FROM session_events WHERE session_id = ? ORDER BY id"
    return [(event, json.loads(detail)) for event, detail in rows(server, sql, session)]


def events(server: LocalServer, session: str) -> list[str]:
    return [event for event, _ in audit(server, session)]


def traces(server: LocalServer, session: str) -> list[str]:
    """Files and folders below the data folder that carry the session's name."""
    folder = server.services.settings.data_dir
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{session}*"))


# Idle sessions.


async def test_an_idle_session_is_closed_with_its_sockets(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session = await client.create()
    sockets = [await client.connect(session) for _ in range(2)]
    clock.advance(IDLE)
    await sweep(server)
    for socket in sockets:
        assert await socket.until_closed() == 4508
        assert (socket.entries[-1]["type"], socket.entries[-1]["reason"]) == (
            *("session_closed", "idle"),
        )
    state = await client.state(session)
    assert (state["state"], state["close_reason"]) == ("closed", "idle")
    assert state["closed_at"] == int(clock.now)
    assert (await client.turn(session, "hello"))[0] == 410


async def test_an_idle_close_leaves_its_row_in_the_audit(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    clock.advance(IDLE)
    await sweep(server)
    assert events(server, session) == ["create", "turn", "sweep_close"]
    (app,) = [row for row in server.services.tokens.rows() if row.name != FIRST_APP]
    sql = "SELECT app_name, at FROM session_events WHERE event = 'sweep_close'"
    assert rows(server, sql) == [(app.name, clock.now)]


async def test_a_session_that_is_not_yet_idle_is_left_alone(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session = await client.create()
    clock.advance(IDLE - 1)
    await sweep(server)
    assert (await client.state(session))["state"] == "idle"
    assert (await client.turn(session, "hello"))[0] == 200


async def test_the_time_counts_from_the_last_turn(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session, quiet = await client.create(), await client.create()
    clock.advance(IDLE - 1)
    await client.turn(session, "hello")
    clock.advance(IDLE - 1)
    await sweep(server)
    assert (await client.state(session))["state"] == "idle"
    assert (await client.state(quiet))["state"] == "closed"
    clock.advance(1)
    await sweep(server)
    assert (await client.state(session))["state"] == "closed"


async def test_a_running_turn_protects_its_session(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"gate": "go"}))
    await socket.until("turn_start")
    clock.advance(10 * IDLE)
    await sweep(server)
    assert (await client.state(session))["state"] == "running"
    (Path((await client.state(session))["cwd"]) / "go").touch()
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"
    await sweep(server)  # it counts from the turn's end
    assert (await client.state(session))["state"] == "idle"


async def test_a_queued_turn_protects_its_session(serve: Serve, clock: Clock) -> None:
    server = await serve(clock=clock, max_live_agents=1)
    client = await server.client()
    busy, waiting = await client.create(), await client.create()
    first = await client.connect(busy)
    await first.send("prompt", prompt=script({"gate": "go"}))
    await first.until("turn_start")  # it has the only agent
    second = await client.connect(waiting)
    await second.send("prompt", prompt="hello")
    assert (await second.until("accepted"))["queued"] is True
    clock.advance(10 * IDLE)
    await sweep(server)
    (Path((await client.state(busy))["cwd"]) / "go").touch()
    assert (await second.until("turn_end"))["stop_reason"] == "end_turn"


async def test_sessions_age_while_the_server_is_down(serve: Serve, clock: Clock) -> None:
    server = await serve(clock=clock)
    client = await server.client()
    session = await client.create()
    await server.stop()
    clock.advance(IDLE)
    again = await serve(clock=clock)
    client = Client(again.url, client.token, client.http)
    await sweep(again)
    assert (await client.state(session))["close_reason"] == "idle"
    assert again.services.sessions.open_count == 0


async def test_an_idle_close_makes_room_in_the_pool(serve: Serve, clock: Clock) -> None:
    server = await serve(clock=clock, max_sessions=1)
    client = await server.client()
    await client.create()
    clock.advance(IDLE)
    await sweep(server)
    await client.create()
    assert (await client.post("/sessions", {"agent": "mock"}))[0] == 503


# Closed sessions.


async def test_a_long_closed_session_is_deleted_with_all_it_left(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session, kept = await client.create(), await client.create()
    for one in (session, kept):
        await client.turn(one, script({"touch": "made-by-the-agent"}))
    await client.delete(f"/sessions/{session}")
    assert f"acpx/sessions/{session}.json" in traces(server, session)
    assert f"workspaces/{session}" in traces(server, session)
    (number,) = rows(server, "SELECT n FROM sessions WHERE id = ?", session)[0]
    clock.advance(HARD)
    await sweep(server)
    assert traces(server, session) == []
    for table, column in (("sessions", "n"), ("turns", "session"), ("log", "session")):
        assert rows(server, f"SELECT 1 FROM {table} WHERE {column} = ?", number) == []
    for path in ("", "/events"):
        assert (await client.get(f"/sessions/{session}{path}"))[0] == 404
    assert (await client.get("/sessions?include_closed=true"))[1]["count"] == 1
    assert (await client.state(kept))["close_reason"] == "idle"
    assert Path((await client.state(kept))["cwd"], "made-by-the-agent").exists()


async def test_the_audit_outlives_the_session_and_is_complete(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    await client.turn(session, script({"exit": 1}))
    await client.delete(f"/sessions/{session}")
    clock.advance(HARD)
    await sweep(server)
    told = audit(server, session)
    assert [event for event, _ in told] == ["create", "turn", "turn", "close", "hard_delete"]
    details = [detail for _, detail in told]
    assert details[0]["agent"] == "mock"
    assert (details[1]["turn_index"], details[1]["stop_reason"]) == (1, "end_turn")
    assert (details[2]["turn_index"], details[2]["error"]) == (2, "agent_failed")
    assert details[3]["reason"] == "client"
    assert details[4]["turn_count"] == 2


async def test_an_idle_session_is_deleted_a_day_after_its_close(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session = await client.create()
    clock.advance(IDLE)
    await sweep(server)
    clock.advance(HARD - 1)
    await sweep(server)
    assert (await client.state(session))["state"] == "closed"
    clock.advance(1)
    await sweep(server)
    assert (await client.get(f"/sessions/{session}"))[0] == 404
    assert events(server, session) == ["create", "sweep_close", "hard_delete"]


async def test_another_sweep_does_nothing(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    closed, deleted = await client.create(), await client.create()
    await client.delete(f"/sessions/{deleted}")
    clock.advance(HARD)
    await sweep(server)
    before = rows(server, "SELECT * FROM session_events"), traces(server, closed)
    for _ in range(2):
        await sweep(server)
    assert (rows(server, "SELECT * FROM session_events"), traces(server, closed)) == before
    assert events(server, closed) == ["create", "sweep_close"]
    assert events(server, deleted) == ["create", "close", "hard_delete"]


async def test_a_folder_of_the_users_own_is_never_deleted(
    serve: Serve, clock: Clock, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    server = await serve(clock=clock, workspace_roots=(root,))
    client = await server.client()
    session = await client.create(cwd=str(root))
    await client.turn(session, script({"touch": "precious"}))
    await client.delete(f"/sessions/{session}")
    clock.advance(HARD)
    await sweep(server)
    assert (await client.get(f"/sessions/{session}"))[0] == 404
    assert (root / "precious").exists()


async def test_a_link_in_a_workspace_is_deleted_and_not_what_it_points_to(
    server: LocalServer, client: Client, clock: Clock, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    session = await client.create()
    workspace = Path((await client.state(session))["cwd"])
    (workspace / "link").symlink_to(precious)
    (workspace / "locked").mkdir(mode=0o000)
    await client.delete(f"/sessions/{session}")
    clock.advance(HARD)
    await sweep(server)
    assert traces(server, session) == []
    assert (precious / "file").exists()


# Uploads.


async def test_expired_uploads_are_deleted(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b"data"), filename="x.txt")
    form.add_field("ttl_secs", "60")
    assert (await client.call("POST", "/files", data=form))[0] == 200
    uploads = server.services.settings.data_dir / "uploads"

    def left() -> tuple[int, int]:
        return len(list(uploads.iterdir())), len(rows(server, "SELECT * FROM files"))

    clock.advance(59)
    await sweep(server)
    assert left() == (1, 1)
    clock.advance(1)
    await sweep(server)
    assert left() == (0, 0)


# By itself.


async def test_the_sweeper_runs_by_itself(serve: Serve, clock: Clock) -> None:
    server = await serve(clock=clock, sweep_interval_secs=0.02)
    client = await server.client()
    session = await client.create()
    clock.advance(IDLE)

    async def closed() -> bool:
        return bool((await client.state(session))["state"] == "closed")

    await eventually("the sweeper to close the session", closed)


async def test_a_sweep_that_fails_does_not_stop_the_sweeper(
    serve: Serve, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(clock=clock, sweep_interval_secs=0.02)
    store = server.services.sessions.store
    works = store.idle_sessions
    failed = asyncio.Event()

    async def fails_once(before: float) -> list[str]:
        if failed.is_set():
            return await works(before)
        failed.set()
        raise RuntimeError("the disk hiccuped")

    monkeypatch.setattr(store, "idle_sessions", fails_once)
    client = await server.client()
    session = await client.create()
    await asyncio.wait_for(failed.wait(), 5)
    clock.advance(IDLE)

    async def closed() -> bool:
        return bool((await client.state(session))["state"] == "closed")

    await eventually("the sweeper to close the session", closed)
    assert "the sweeper failed" in caplog.text
