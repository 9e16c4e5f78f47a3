"""The sweeper: idle sessions are closed, old closed sessions and expired uploads are deleted."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from server import safe_files
from server.auth.first_tokens import FIRST_APP
from server.codec import dumps
from server.errors import DatabaseError, Error
from server.sessions.event_log import LogReader
from server.sessions.log_pages import Batch
from server.sessions.session import Session
from server.sessions.session_agent import SessionAgent
from server.storage.database import Database
from server.storage.queries import Queries

from ..conftest import Serve
from ..support.engine import only_sqlite, stored_rows
from ..support.harness import (
    TIMEOUT_SECS,
    Client,
    Clock,
    Deadline,
    LocalServer,
    blocking,
    eventually,
    local_server,
    script,
)
from ..support.runs import upload

IDLE = 3600
HARD = 86400


CLOCK = Clock()


@pytest.fixture
def clock() -> Clock:
    return CLOCK


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    async with local_server(tmp_path_factory.mktemp("swept") / "data", clock=CLOCK) as server:
        blocking.deactivate()
        yield server


async def sweep(server: LocalServer) -> None:
    await server.services.sessions.sweeper.sweep()
    await server.services.files.sweep()


def rows(server: LocalServer, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return stored_rows(server.services.settings.data_dir, sql, *parameters)


def audit(server: LocalServer, session: str) -> list[tuple[str, dict[str, Any]]]:
    sql = "SELECT event, detail FROM session_events WHERE session_id = ? ORDER BY id"
    return [(event, json.loads(detail)) for event, detail in rows(server, sql, session)]


def events(server: LocalServer, session: str) -> list[str]:
    return [event for event, _ in audit(server, session)]


def traces(server: LocalServer, session: str) -> list[str]:
    """Files and folders below the data folder that carry the session's name."""
    folder = server.services.settings.data_dir
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{session}*"))


def failures(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """The sessions whose failures were logged, and whether with a traceback."""
    errors = (record for record in caplog.records if record.levelname == "ERROR")
    return [(getattr(error, "session", ""), bool(error.exc_info)) for error in errors]


def fail_for(session: str) -> Callable[..., Awaitable[None]]:
    """A stand-in for a step of the sweeper that takes a session's id or row, or the session."""

    async def works(_: Any, one: Any, *__: Any) -> None:
        if session in (one, getattr(one, "id", None)):
            raise RuntimeError("the disk hiccuped")

    return works


async def disk_is_full(*_: Any) -> None:
    raise DatabaseError("database or disk is full", is_transient=True)


# Idle sessions.


async def test_idle_session_is_closed_with_its_sockets(
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


async def test_idle_close_is_audited(server: LocalServer, client: Client, clock: Clock) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    clock.advance(IDLE)
    await sweep(server)
    assert events(server, session) == ["create", "turn", "sweep_close"]
    (app,) = [row for row in server.services.tokens.rows() if row.name != FIRST_APP]
    sql = "SELECT app_name, at FROM session_events WHERE event = 'sweep_close' AND session_id = ?"
    assert rows(server, sql, session) == [(app.name, clock.now)]


async def test_session_that_is_not_yet_idle_stays_open(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    session = await client.create()
    clock.advance(IDLE - 1)
    await sweep(server)
    assert (await client.state(session))["state"] == "idle"
    assert (await client.turn(session, "hello"))[0] == 200


async def test_idle_time_counts_from_the_last_turn(
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


async def test_running_turn_keeps_its_session_open(
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


async def test_turn_after_the_query_keeps_its_session_open(
    server: LocalServer, client: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = await client.create(), await client.create()
    clock.advance(IDLE)
    looks = Queries.idle_sessions

    async def look(queries: Queries, *times: float) -> list[str]:
        found = await looks(queries, *times)
        assert (await client.turn(session, "hello"))[0] == 200
        return found

    monkeypatch.setattr(Queries, "idle_sessions", look)
    await sweep(server)
    assert (await client.state(session))["state"] == "idle"
    assert (await client.state(other))["state"] == "closed"


async def test_queued_turn_keeps_its_session_open(serve: Serve, clock: Clock) -> None:
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


async def test_idle_time_counts_while_the_server_is_down(serve: Serve, clock: Clock) -> None:
    server = await serve(clock=clock)
    client = await server.client()
    session = await client.create()
    await server.stop()
    clock.advance(IDLE)
    again = await serve(clock=clock)
    client = Client(again.url, client.token, client.http)
    await sweep(again)
    assert (await client.state(session))["close_reason"] == "idle"
    quotas = again.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("0 open sessions", lambda: quotas.open_sessions == 0)


async def test_idle_close_frees_a_session_of_the_limit(serve: Serve, clock: Clock) -> None:
    server = await serve(clock=clock, max_sessions=1)
    client = await server.client()
    await client.create()
    clock.advance(IDLE)
    await sweep(server)
    await client.create()
    assert (await client.post("/sessions", {"agent": "mock"}))[0] == 503


# Closed sessions.


async def test_old_closed_session_is_deleted_with_its_data(
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


async def test_audit_is_complete_after_the_session_is_deleted(
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


async def test_idle_session_is_deleted_a_day_after_its_close(
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


async def test_second_sweep_deletes_nothing(
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


async def test_folder_that_the_client_chose_is_never_deleted(
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


async def test_link_in_a_workspace_is_deleted_without_its_target(
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


async def test_folder_that_cannot_be_removed_is_logged_once(
    server: LocalServer,
    client: Client,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck, other = await client.create(), await client.create()
    for session in (stuck, other):
        await client.delete(f"/sessions/{session}")
    remove = safe_files.remove

    def remove_ours(top: Path, *names: str) -> None:
        if names[-1] == stuck:
            raise PermissionError(13, "Permission denied", str(Path(top, *names, "of-root")))
        remove(top, *names)

    monkeypatch.setattr(safe_files, "remove", remove_ours)
    clock.advance(HARD)
    await sweep(server)
    logged = failures(caplog)
    await sweep(server)
    assert traces(server, other) == []
    folders = ("files", "homes", "tmp", "workspaces")
    assert traces(server, stuck) == [f"{folder}/{stuck}" for folder in folders]
    assert (await client.get(f"/sessions/{stuck}"))[0] == 404
    assert events(server, stuck) == ["create", "close", "hard_delete"]
    assert set(logged) == {(stuck, False)}
    assert failures(caplog) == logged
    assert f"{stuck}/of-root" in caplog.text


async def test_failed_delete_is_retried_and_affects_no_other_session(
    server: LocalServer,
    client: Client,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stuck, other = await client.create(), await client.create()
    for session in (stuck, other):
        await client.delete(f"/sessions/{session}")
    clock.advance(HARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(server.services.sessions.backend), "forget", fail_for(stuck))
        await sweep(server)
    for session in (stuck, other):  # also the one that is half deleted
        assert (await client.get(f"/sessions/{session}"))[0] == 404
    assert (events(server, stuck)[-1], events(server, other)[-1]) == ("close", "hard_delete")
    assert failures(caplog) == [(stuck, True)]
    await sweep(server)
    assert events(server, stuck)[-1] == "hard_delete"


async def test_failed_close_affects_no_other_session(
    server: LocalServer,
    client: Client,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck, other, old = [await client.create() for _ in range(3)]
    await client.delete(f"/sessions/{old}")
    clock.advance(HARD)
    close = Session.close

    async def close_others(session: Session, reason: str) -> None:
        await fail_for(stuck)(None, session)
        await close(session, reason)

    monkeypatch.setattr(Session, "close", close_others)
    await sweep(server)
    monkeypatch.undo()
    assert (await client.state(stuck))["state"] == "idle"
    assert (await client.state(other))["state"] == "closed"
    assert (await client.get(f"/sessions/{old}"))[0] == 404
    assert failures(caplog) == [(stuck, True)]


async def test_sweeper_frees_space_on_a_full_disk(
    serve: Serve, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(clock=clock)
    client = await server.client()
    session = await client.create()
    await client.until_live(session)
    await upload(client, b"data", ttl_secs=60)
    clock.advance(IDLE)
    with monkeypatch.context() as patch:
        server.services.sessions.sweeper.close_timeout = 0.05
        patch.setattr(Database, "write", disk_is_full)
        await server.services.sessions.sweeper.sweep()
        with pytest.raises(Error):
            await server.services.files.sweep()
        assert not list((server.services.settings.data_dir / "uploads").iterdir())
        await eventually("its agent to end", lambda: not server.services.sessions.slots)
        assert (await client.state(session))["state"] == "closed"
        assert events(server, session) == ["create"]

    async def stored() -> bool:
        return "sweep_close" in events(server, session)

    await eventually("the close to be stored", stored)


async def test_session_stays_in_memory_until_its_log_is_stored(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.create()
    ours = server.services.sessions
    found = ours.cached[session]
    await client.turn(session, "hello")
    await found.agent.hibernate()
    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", disk_is_full)
        last = found.log.append("event", 1, b'"said":"late"')
        ours.unload_unused()
        assert session in ours.cached
    await found.log.reach(last)
    ours.unload_unused()
    assert session not in ours.cached


async def test_failed_hibernation_keeps_no_other_session_in_memory(
    serve: Serve, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(clock=clock, agent_idle_secs=60)
    client = await server.client()
    stuck, other = await client.create(), await client.create()
    for session in (stuck, other):
        await client.turn(session, "hello")
    clock.advance(60)
    hibernate = SessionAgent.hibernate

    async def hibernate_others(agent: SessionAgent, *_: float) -> bool:
        await fail_for(stuck)(None, agent)
        return await hibernate(agent)

    monkeypatch.setattr(SessionAgent, "hibernate", hibernate_others)
    await sweep(server)
    assert set(server.services.sessions.cached) == {stuck}
    assert failures(caplog) == [(stuck, True)]


@pytest.mark.parametrize("by_socket", [True, False])
async def test_session_is_not_deleted_while_it_is_read(
    server: LocalServer,
    client: Client,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    by_socket: bool,
) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    await client.delete(f"/sessions/{session}")
    head = (await client.state(session))["head"]
    clock.advance(HARD)
    read, reading, go_on = LogReader.read, asyncio.Event(), asyncio.Event()

    async def read_slowly(log: LogReader, after: int) -> list[Batch]:
        reading.set()
        await go_on.wait()
        return await read(log, after)

    async def read_all() -> int:
        if by_socket:
            socket = await client.connect(session, after=0)
            await socket.until_closed()
            return int(socket.entries[-1]["seq"])
        headers = {**client.headers(), "Accept": "text/event-stream"}
        url = f"{client.url}/sessions/{session}/events"
        async with client.http.get(url, headers=headers) as response:
            return int((await response.text()).rpartition("id: ")[2].partition("\n")[0])

    monkeypatch.setattr(LogReader, "read", read_slowly)
    reader = asyncio.create_task(read_all())
    await asyncio.wait_for(reading.wait(), TIMEOUT_SECS)
    await sweep(server)
    assert (await client.state(session))["state"] == "closed"
    go_on.set()
    assert await asyncio.wait_for(reader, TIMEOUT_SECS) == head

    async def gone() -> bool:
        await sweep(server)
        return (await client.get(f"/sessions/{session}"))[0] == 404

    await eventually("the session to be deleted in a later round", gone)


async def test_session_is_not_found_while_it_is_being_deleted(
    server: LocalServer, client: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    await client.delete(f"/sessions/{session}")
    clock.advance(HARD)
    backend = server.services.sessions.backend
    forget, going, go_on = backend.forget, asyncio.Event(), asyncio.Event()

    async def forget_slowly(key: str) -> None:
        going.set()
        await go_on.wait()
        await forget(key)

    monkeypatch.setattr(backend, "forget", forget_slowly)
    sweeping = asyncio.create_task(sweep(server))
    await asyncio.wait_for(going.wait(), TIMEOUT_SECS)
    try:
        for path in ("", "/events"):
            assert (await client.get(f"/sessions/{session}{path}"))[0] == 404
        assert (await client.get("/sessions?include_closed=true"))[1]["count"] == 0
    finally:
        go_on.set()
        await sweeping
    assert (await client.get(f"/sessions/{session}"))[0] == 404
    assert events(server, session) == ["create", "turn", "close", "hard_delete"]


def test_folder_is_removed_except_files_that_cannot_be(tmp_path: Path) -> None:
    for name in ("a/file", "b/of-root", "c/file"):
        path = tmp_path / "workspace" / name
        path.parent.mkdir(parents=True)
        path.touch()
    unlink = os.unlink

    def unlink_ours(path: str, **options: Any) -> None:
        if path == "of-root":
            raise PermissionError(13, "Permission denied", path)
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink_ours)
        with pytest.raises(PermissionError, match="workspace/b/of-root"):
            safe_files.remove(tmp_path, "workspace")
    left = [str(path.relative_to(tmp_path)) for path in (tmp_path / "workspace").rglob("*")]
    assert left == ["workspace/b", "workspace/b/of-root"]


def test_folders_without_permissions_are_removed(tmp_path: Path) -> None:
    inner = tmp_path / "workspace" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o500)
    (inner / "link").symlink_to(precious)
    for folder in (inner, inner.parent, inner.parent.parent):
        folder.chmod(0)
    works = os.open

    def open_unlocked(path: str, flags: int, *options: Any, dir_fd: int | None = None) -> int:
        # To root, who may run the tests, no folder is locked.
        if not os.stat(path, dir_fd=dir_fd).st_mode & stat.S_IRUSR:
            raise PermissionError(13, "Permission denied", path)
        return works(path, flags, *options, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_unlocked)
        safe_files.remove(tmp_path, "workspace")
    assert list(tmp_path.iterdir()) == [precious]
    assert stat.S_IMODE(precious.stat().st_mode) == 0o500


# Sessions outside the cache.


@only_sqlite
async def test_turn_of_an_uncached_session_is_counted_and_drained(
    serve: Serve, clock: Clock
) -> None:
    server = await serve(clock=clock, agent_idle_secs=60)
    client = await server.client()
    session = await client.create()
    await client.turn(session, "hello")
    ours = server.services.sessions
    held = await ours.get(session, "app")
    clock.advance(60)
    await sweep(server)
    assert session not in ours.cached
    prompt = [{"type": "text", "text": script({"hang": True})}]
    running = (await held.prompt(dumps(prompt))).turn
    queued = (await held.prompt(dumps(prompt))).turn
    await asyncio.wait_for(running.wait_started(), TIMEOUT_SECS)
    assert (ours.figures.running_turns, ours.figures.queued_turns) == (1, 1)
    await asyncio.wait_for(ours.stop(), TIMEOUT_SECS)
    for turn in (running, queued):
        assert turn.error is not None
        assert turn.error["code"] == "server_restarted"


# Uploads.


async def test_expired_uploads_are_deleted(
    server: LocalServer, client: Client, clock: Clock
) -> None:
    await upload(client, b"data", ttl_secs=60)
    uploads = server.services.settings.data_dir / "uploads"

    def left() -> tuple[int, int]:
        return len(list(uploads.iterdir())), len(rows(server, "SELECT * FROM files"))

    clock.advance(59)
    await sweep(server)
    assert left() == (1, 1)
    clock.advance(1)
    await sweep(server)
    assert left() == (0, 0)


# The loop.


async def test_sweeper_runs_periodically(serve: Serve, clock: Clock) -> None:
    server = await serve(clock=clock, sweep_interval_secs=0.02)
    client = await server.client()
    session = await client.create()
    clock.advance(IDLE)

    async def closed() -> bool:
        return bool((await client.state(session))["state"] == "closed")

    await eventually("the sweeper to close the session", closed)


async def test_failed_sweep_does_not_stop_the_sweeper(
    serve: Serve, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(clock=clock, sweep_interval_secs=0.02)
    queries = server.services.sessions.queries
    works = queries.idle_sessions
    failed = asyncio.Event()

    async def fails_once(*times: float) -> list[str]:
        if failed.is_set():
            return await works(*times)
        failed.set()
        raise RuntimeError("the disk hiccuped")

    monkeypatch.setattr(queries, "idle_sessions", fails_once)
    client = await server.client()
    session = await client.create()
    async with Deadline("the failure"):
        await failed.wait()
    clock.advance(IDLE)

    async def closed() -> bool:
        return bool((await client.state(session))["state"] == "closed")

    await eventually("the sweeper to close the session", closed)
    assert "the sweeper failed" in caplog.text


async def test_failed_sweep_does_not_stop_other_sweeps(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(sweep_interval_secs=0.02)
    ours = server.services.sessions
    swept = asyncio.Event()

    async def fail(*_: Any) -> Any:
        raise RuntimeError("the disk hiccuped")

    async def works() -> None:
        swept.set()

    monkeypatch.setattr(ours.queries, "idle_sessions", fail)
    sweeping = asyncio.create_task(ours.sweeper.run(fail, works))
    await asyncio.wait_for(swept.wait(), TIMEOUT_SECS)
    sweeping.cancel()
    assert "the sweeper failed" in caplog.text
