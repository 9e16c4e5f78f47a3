"""Every long-lived task survives an unexpected exception, or the server stops."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from pathlib import Path

import pytest

from server.config import Settings
from server.errors import DatabaseError, Error
from server.serving import serve as serve_forever
from server.sessions.event_log import RingBudget
from server.storage.database import Database
from server.storage.queries import Queries
from server.tasks import CriticalTaskError, Loop, Supervisor, Tasks

from .conftest import Serve
from .support.harness import ADMIN, MOCKS, Client, Deadline, busy_socket, eventually

CRITICAL = "log-writer"
OF_THE_SERVER = {
    *("acpx-host", "acpx-host-watch", "handover-accept"),
    *(
        "accept-connections",
        "disk",
        "health",
        "heartbeat",
        "metrics",
        "stalled-connections",
        "search-index",
        "sweeper",
        "checkpoints",
        "webhooks",
    ),
}
OF_AN_AGENT = {"agent-stderr"}


class BreakableSupervisor(Supervisor):
    """A supervisor whose tasks a test can fail at any await."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: defaultdict[str, int] = defaultdict(int)
        self._breaks: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    async def execute(self, name: str, loop: Loop) -> None:
        self.starts[name] += 1
        breaking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._breaks[name].add(breaking)
        work = asyncio.ensure_future(loop())
        try:
            await asyncio.wait({work, breaking}, return_when=asyncio.FIRST_COMPLETED)
            if breaking.done():
                raise RuntimeError("injected by a test")
            work.result()
        finally:
            self._breaks[name].discard(breaking)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def break_task(self, name: str) -> None:
        for breaking in self._breaks[name]:
            breaking.set_result(None)

    async def break_and_wait(self, name: str) -> None:
        """Fail the task, and wait until it was restarted."""
        starts = self.starts[name]
        self.break_task(name)
        await eventually(f"{name} to be restarted", lambda: self.starts[name] > starts)


async def ready(client: Client) -> int:
    return (await client.get("/readyz"))[0]


async def test_server_works_after_failure_of_any_task(serve: Serve) -> None:
    supervisor = BreakableSupervisor()
    server = await serve(supervisor=supervisor)
    client = await server.client()
    session = await client.create()
    assert (await client.turn(session, "hello"))[0] == 200
    assert supervisor.running == OF_THE_SERVER | OF_AN_AGENT | {CRITICAL}
    for name in sorted(supervisor.running - {CRITICAL}):
        await supervisor.break_and_wait(name)
        status, reply = await client.turn(session, f"after the failure of {name}")
        assert (name, status, reply["stop_reason"]) == (name, 200, "end_turn")
        assert await ready(client) == 200


async def test_failure_of_log_writer_refuses_requests_and_fails_commits(
    serve: Serve,
) -> None:
    supervisor = BreakableSupervisor()
    server = await serve(supervisor=supervisor)
    client = await server.client()
    session = await client.create()
    await busy_socket(client, session)
    writer = server.services.sessions.writer
    waiting = asyncio.create_task(writer.commit([("SELECT 1", ())]))
    await asyncio.sleep(0)
    supervisor.break_task(CRITICAL)
    async with Deadline("the failure"):
        await supervisor.wait_for_failure()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], Error)
        with pytest.raises(Error):
            await writer.commit([("SELECT 1", ())])
        await writer.flush()
    assert await ready(client) == 503
    for status, _ in (await client.post("/sessions", {}), await client.turn(session, "more")):
        assert status in (500, 503)
    await client.close_sockets()
    async with Deadline("the server to stop"):
        await server.stop()


async def test_process_exits_if_critical_task_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = BreakableSupervisor()
    settings = Settings(
        data_dir=tmp_path / "data", port=0, admin_token=ADMIN, agents=MOCKS, default_agent="mock"
    )
    serving = asyncio.create_task(serve_forever(settings, os.environ, supervisor))
    await eventually("the server to start", lambda: "accept-connections" in supervisor.running)
    supervisor.break_task(CRITICAL)
    async with Deadline("the server to end"):
        with pytest.raises(CriticalTaskError, match=CRITICAL):
            await serving


async def test_unexpected_failure_of_write_ends_writer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()
    client = await server.client()

    async def fail(*_: object) -> None:
        raise RuntimeError("injected by a test")

    monkeypatch.setattr(Database, "write", fail)
    status, _ = await client.post("/sessions", {})
    assert status == 500
    assert await ready(client) == 503


async def test_failing_watcher_of_log_does_not_affect_turns(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()

    def fail() -> None:
        raise RuntimeError("injected by a test")

    (await server.services.sessions.get(session, "app")).log.subscribe(fail)
    assert (await client.turn(session, "hello"))[0] == 200


async def test_readers_use_database_if_ring_fails(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()
    client = await server.client()
    socket = await client.connect(await client.create())

    def fail(*_: object) -> None:
        raise RuntimeError("injected by a test")

    with monkeypatch.context() as patch:
        patch.setattr(RingBudget, "note", fail)
        await socket.turn("hello")
    await socket.turn("again")
    seqs = [entry["seq"] for entry in socket.entries]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_sweeper_survives_failed_read_at_start(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, reads = asyncio.Event(), 0

    async def fail_once(*_: object) -> list[str]:
        nonlocal reads
        reads += 1
        if reads == 1:
            raise DatabaseError("disk I/O error", is_transient=True)
        swept.set()
        return []

    monkeypatch.setattr(Queries, "prewarmed", fail_once)
    await serve(sweep_interval_secs=0.01)
    async with Deadline("the sweeper to continue"):
        await swept.wait()


async def test_task_ends_if_its_owner_finishes_and_survives_other_cancels() -> None:
    supervisor, owner = Supervisor(), Tasks()
    begun = asyncio.Semaphore(0)
    awaited: list[asyncio.Future[None]] = []

    async def loop() -> None:
        awaited.append(asyncio.get_running_loop().create_future())
        begun.release()
        await awaited[-1]

    task = supervisor.spawn(owner, "it", loop)
    await begun.acquire()
    awaited[-1].cancel()
    await begun.acquire()
    assert supervisor.running == {"it"}
    await owner.finish(0)
    assert task.done()
    assert not supervisor.running


async def test_restart_after_a_transient_failure_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = [DatabaseError("unable to open database file", is_transient=True), KeyError("x")]
    done = asyncio.Event()

    async def fail_twice() -> None:
        if failures:
            raise failures.pop(0)
        done.set()

    tasks = Tasks()
    Supervisor().spawn(tasks, "index", fail_twice)
    await done.wait()
    transient, defect = [record for record in caplog.records if "index" in record.message]
    assert (transient.exc_info, bool(defect.exc_info)) == (None, True)
    await tasks.finish(0)
