"""The session's log: durable before visible, in order, read by position; on a real SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Error
from server.metrics import Metrics
from server.sessions import event_log
from server.sessions.event_log import Batch, DatabaseWriter, SessionLog
from server.storage import database as store
from server.storage.database import Database, DatabaseError, Statement
from server.storage.schema import LogRow, TokenRow

from ..support.harness import Deadline


class MoodyStore(Database):
    """A real store whose writes a test can hold up, or have fail."""

    async def write(self, statements: Sequence[Statement]) -> None:
        self.tries += 1
        self.at_work.set()
        await self.free.wait()
        if self.broken:
            raise sqlite3.OperationalError("database or disk is full")
        await super().write(statements)
        self.done.append(list(statements))

    def make_moody(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.at_work = asyncio.Event()
        self.broken = False
        self.tries = 0
        self.done: list[list[Statement]] = []

    def hold(self) -> None:
        self.free.clear()
        self.at_work.clear()

    async def until_tried(self, times: int) -> None:
        while self.tries < times:
            self.at_work.clear()
            await self.at_work.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[MoodyStore]:
    opened = await MoodyStore.open(path)
    assert isinstance(opened, MoodyStore)
    opened.make_moody()
    yield opened
    await opened.close()


@pytest.fixture
async def writer(database: MoodyStore) -> AsyncIterator[DatabaseWriter]:
    writer = DatabaseWriter(database, Metrics())
    writer.start()
    yield writer
    database.broken = False
    database.free.set()
    await writer.stop()


@pytest.fixture
def log(writer: DatabaseWriter) -> SessionLog:
    return SessionLog(writer, 1, 0)


def add(log: SessionLog, count: int = 1, size: int = 0) -> None:
    for _ in range(count):
        log.append("event", 1, b'"event":{"n":%d,"x":"%b"}' % (log.last + 1, b"x" * size))


def seqs(batches: Sequence[Batch]) -> list[int]:
    return [json.loads(line)["seq"] for batch in batches for line in batch.lines()]


async def read_all(log: SessionLog, after: int = 0) -> list[int]:
    found: list[int] = []
    while batches := await log.read(after):
        found += seqs(batches)
        after = batches[-1].last
    return found


def stored(path: Path) -> list[int]:
    """The positions that another program finds in the file, and a restarted server would."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT body FROM log ORDER BY n").fetchall()
    return [json.loads(line)["seq"] for (body,) in rows for line in body.split(b"\n")]


# Durable before visible.


async def test_an_entry_is_not_visible_before_it_is_durable(
    log: SessionLog, database: MoodyStore
) -> None:
    woken = asyncio.Event()
    log.watch(woken.set)
    database.hold()
    add(log, 3)
    await database.at_work.wait()
    assert (log.head, log.last) == (0, 3)
    assert log.recent(0) == []
    assert await log.read(0) == []
    assert not woken.is_set()
    database.free.set()
    await log.reach(3)
    assert woken.is_set()
    assert seqs(log.recent(0) or []) == [1, 2, 3]


async def test_whoever_is_woken_finds_the_entries_in_the_file(log: SessionLog, path: Path) -> None:
    found: list[list[int]] = []
    log.watch(lambda: found.append(stored(path)))
    add(log, 2)
    await log.reach(2)
    add(log)
    await log.reach(3)
    assert found == [[1, 2], [1, 2, 3]]


async def test_what_gathers_while_one_commit_runs_goes_into_the_next(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore
) -> None:
    other = SessionLog(writer, 2, 0)
    database.hold()
    add(log)
    await database.at_work.wait()
    for _ in range(100):
        add(log)
        add(other)
    writer.add([store.audit("s", "app", "turn", 1.0, "{}")])
    commit = asyncio.create_task(writer.commit([token("a")]))
    await asyncio.sleep(0)
    database.free.set()
    await commit
    await writer.flush()
    assert len(database.done) == 2
    assert (log.head, other.head) == (101, 100)
    assert await read_all(log) == list(range(1, 102))
    assert await read_all(other) == list(range(1, 101))


async def test_entries_and_statements_of_one_breath_are_one_transaction(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore
) -> None:
    add(log)
    statement = store.audit("s", "app", "turn", 1.0, "{}")
    writer.add([statement])
    await writer.flush()
    ((first, second),) = database.done
    assert first[0].startswith("INSERT INTO log")
    assert second == statement


async def test_entries_are_numbered_and_dated(log: SessionLog) -> None:
    before = time.time_ns() // 1_000_000
    assert [log.append("event", 4, b'"event":{}') for _ in range(3)] == [1, 2, 3]
    await log.reach(3)
    (batch,) = await log.read(0)
    entries = [json.loads(line) for line in batch.lines()]
    assert [entry["seq"] for entry in entries] == [1, 2, 3]
    assert all(
        before <= entry["ts"] <= time.time_ns() // 1_000_000 and entry["turn_index"] == 4
        for entry in entries
    )


async def test_a_log_goes_on_behind_its_stored_head(writer: DatabaseWriter) -> None:
    add(SessionLog(writer, 1, 0), 5)
    await writer.flush()
    again = SessionLog(writer, 1, await writer.store.head(1))
    assert (again.head, again.last) == (5, 5)
    assert again.append("event", 1, b'"event":{}') == 6
    await again.reach(6)
    assert await read_all(again) == [1, 2, 3, 4, 5, 6]


async def test_stop_commits_what_has_gathered(
    log: SessionLog, writer: DatabaseWriter, path: Path
) -> None:
    add(log, 10)
    await writer.stop()
    assert stored(path) == list(range(1, 11))


async def test_a_long_breath_is_cut_into_rows_of_bounded_size(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "ROW_BYTES", 1000)
    monkeypatch.setattr(event_log, "ROW_ENTRIES", 7)
    add(log, 20)  # by number
    add(log, 3, size=2000)  # each a row
    add(log, 5, size=300)  # by size
    await log.reach(28)
    rows = await log._writer.store.read_log(1, 0, 1 << 20)
    assert [(row.first_seq, row.last_seq) for row in rows[:2]] == [(1, 7), (8, 14)]
    assert all(row.last_seq - row.first_seq < 7 for row in rows)
    assert all(len(row.body) < 1000 + 2100 for row in rows)
    assert [row.first_seq for row in rows[1:]] == [row.last_seq + 1 for row in rows[:-1]]
    assert await read_all(log) == list(range(1, 29))


# Reading.


async def test_who_replays_the_same_at_once_shares_its_pages(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "PAGE_BYTES", 1)  # a page is a row
    for _ in range(3):
        add(log, 10)
        await log.reach(log.last)
    store, reads = log._writer.store, []

    async def read_log(session: int, after: int, size: int) -> list[LogRow]:
        reads.append(after)
        return await Database.read_log(store, session, after, size)

    monkeypatch.setattr(store, "read_log", read_log)
    found = await asyncio.gather(*(read_all(log) for _ in range(50)))
    assert found == [list(range(1, 31))] * 50
    assert reads == [0, 10, 20]
    assert await read_all(log, 15) == list(range(16, 31))


async def test_a_page_that_could_not_be_read_is_read_again(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(log, 3)
    await log.reach(3)

    async def fail(*_: object) -> list[LogRow]:
        raise DatabaseError("unable to open database file")

    with monkeypatch.context() as patch:
        patch.setattr(log._writer.store, "read_log", fail)
        for _ in range(2):
            with pytest.raises(DatabaseError):
                await log.read(0)
    assert await read_all(log) == [1, 2, 3]


async def test_every_position_can_be_read_behind(log: SessionLog) -> None:
    for count in (1, 5, 2):
        add(log, count)
        await log.reach(log.last)
    for watched in (False, True):  # from the file, then from the ring
        if watched:
            log.watch(lambda: None)
            add(log, 2)
            await log.reach(10)
        for after in range(log.head + 1):
            assert await read_all(log, after) == list(range(after + 1, log.head + 1))


async def test_without_a_watcher_nothing_is_kept_in_memory(log: SessionLog) -> None:
    add(log, 5)
    await log.reach(5)
    assert log.recent(0) is None
    assert log.recent(5) == []


async def test_the_ring_goes_with_the_last_watcher(log: SessionLog) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    log.watch(first.set)
    log.watch(second.set)
    add(log, 5)
    await log.reach(5)
    log.unwatch(first.set)
    assert seqs(log.recent(2) or []) == [3, 4, 5]
    log.unwatch(second.set)
    assert log.recent(2) is None
    assert await read_all(log, 2) == [3, 4, 5]


async def test_a_ring_that_begins_late_sends_the_reader_to_the_file(log: SessionLog) -> None:
    add(log, 3)
    await log.reach(3)
    log.watch(lambda: None)
    add(log, 3)
    await log.reach(6)
    assert log.recent(2) is None
    assert seqs(log.recent(3) or []) == [4, 5, 6]
    assert await read_all(log, 1) == [2, 3, 4, 5, 6]


async def test_the_ring_is_bounded_in_bytes(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RING_BYTES", 10_000)
    log.watch(lambda: None)
    for _ in range(30):
        add(log, size=1000)
        await log.reach(log.last)
    assert log.recent(0) is None
    kept = log.recent(log._ring[0].first - 1)
    assert kept is not None
    assert seqs(kept)[-1] == 30
    assert 8000 < sum(len(batch.body) for batch in kept) <= 10_000
    assert await read_all(log) == list(range(1, 31))


async def test_the_newest_batch_is_kept_whatever_its_size(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RING_BYTES", 1000)
    log.watch(lambda: None)
    add(log, size=50_000)
    await log.reach(1)
    assert seqs(log.recent(0) or []) == [1]
    add(log)
    await log.reach(2)
    assert log.recent(0) is None
    assert seqs(log.recent(1) or []) == [2]


async def test_the_ring_is_bounded_in_batches(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RING_BATCHES", 4)
    log.watch(lambda: None)
    for _ in range(10):
        add(log)
        await log.reach(log.last)
    assert log.recent(5) is None
    assert seqs(log.recent(6) or []) == [7, 8, 9, 10]


async def test_a_long_log_is_read_in_pages(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "PAGE_BYTES", 10_000)
    for _ in range(40):
        add(log, size=1000)
        await log.reach(log.last)
    page = await log.read(7)
    assert seqs(page)[0] == 8
    assert 9_000 < sum(len(batch.body) for batch in page) < 12_000
    assert await read_all(log) == list(range(1, 41))


async def test_a_reader_and_the_writer_at_once_leave_no_gap(log: SessionLog) -> None:
    async def follow(after: int) -> list[int]:
        found: list[int] = []
        async with following_of(log.follow(after, nothing)) as following:
            async for batch in following:
                found += seqs([batch])
                if batch.last == 300:
                    break
        return found

    followers = {0: asyncio.create_task(follow(0))}
    for _ in range(100):
        add(log, 3)
        await log.reach(log.last)
        if log.head % 30 == 0 and log.head < 300:  # one more comes while it goes on
            followers[log.head] = asyncio.create_task(follow(log.head))
    for after, following in followers.items():
        assert await following == list(range(after + 1, 301))


async def nothing() -> None:
    pass


def following_of(
    batches: AsyncIterator[Batch],
) -> contextlib.aclosing[AsyncGenerator[Batch, None]]:
    """A reader that stops watching when the test is through with it."""
    return contextlib.aclosing(cast("AsyncGenerator[Batch, None]", batches))


async def test_following_says_when_nothing_comes(log: SessionLog) -> None:
    idle = asyncio.Event()

    async def note() -> None:
        idle.set()

    async with following_of(log.follow(0, note, idle_secs=0.01)) as following:
        batch = asyncio.ensure_future(anext(following))
        await idle.wait()
        add(log, 2)
        assert seqs([await batch]) == [1, 2]
    assert log.recent(0) is None  # it no longer watches


# A batch.


@given(st.integers(1, 10**6), st.integers(1, 30), st.data())
def test_a_batch_behind_a_position_is_the_rest_of_it(first: int, count: int, data: Any) -> None:
    last = first + count - 1
    lines = [b'{"seq":%d}' % seq for seq in range(first, last + 1)]
    batch = Batch(first, last, b"\n".join(lines))
    position = data.draw(st.integers(0, last - 1))
    rest = batch.after(position)
    assert rest.lines() == lines[max(0, position - first + 1) :]
    assert (rest.first, rest.last) == (max(first, position + 1), last)


# A database that does not take writes.


def token(name: str) -> Statement:
    return store.insert_token(TokenRow(name, name.encode(), "[]", 1.0))


async def test_a_commit_is_refused_at_once_when_nothing_can_be_stored(
    writer: DatabaseWriter, database: MoodyStore
) -> None:
    database.broken = True
    with pytest.raises(Error) as caught:
        await writer.commit([token("a")])
    assert (caught.value.code, caught.value.retryable) == ("internal", True)
    assert "disk" not in caught.value.message
    database.broken = False
    await writer.commit([token("b")])
    assert [row.name for row in await database.tokens()] == ["b"]


async def test_entries_are_kept_until_they_can_be_stored(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RETRY_SECS", (0.001,))
    database.broken = True
    add(log, 3)
    writer.add([token("with-them")])
    await database.until_tried(3)
    add(log, 2)
    assert log.head == 0
    database.broken = False
    await log.reach(5)
    assert await read_all(log) == [1, 2, 3, 4, 5]
    assert [row.name for row in await database.tokens()] == ["with-them"]


async def test_who_waits_is_refused_while_entries_are_tried_again(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RETRY_SECS", (0.001,))
    database.broken = True
    add(log)
    for name in ("a", "b"):
        with pytest.raises(Error):
            await writer.commit([token(name)])
    database.broken = False
    await writer.commit([token("c")])
    await log.reach(1)
    assert [row.name for row in await database.tokens()] == ["c"]


async def test_a_refused_commit_leaves_no_part_of_it(
    writer: DatabaseWriter, database: MoodyStore
) -> None:
    await writer.commit([token("taken")])
    with pytest.raises(Error):
        await writer.commit([token("a"), token("taken")])
    assert [row.name for row in await database.tokens()] == ["taken"]


async def test_what_can_never_be_stored_holds_up_nothing(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore
) -> None:
    await writer.commit([token("taken")])
    add(log)
    writer.add([token("taken"), token("with-the-entry")])
    fine, twice = await asyncio.gather(
        writer.commit([token("mine")]), writer.commit([token("taken")]), return_exceptions=True
    )
    await log.reach(1)
    assert fine is None
    assert isinstance(twice, Error)
    add(log)
    await log.reach(2)
    assert await read_all(log) == [1, 2]
    assert [row.name for row in await database.tokens()] == ["mine", "taken", "with-the-entry"]


async def test_what_was_stored_one_by_one_is_seen_even_if_the_writes_behind_it_fail(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writer.commit([token("taken")])
    write = database.write

    async def write_and_break(statements: Sequence[Statement]) -> None:
        try:
            await write(statements)
        finally:
            database.broken = list(statements) == [token("taken")]  # the last, by itself

    monkeypatch.setattr(database, "write", write_and_break)
    add(log)
    writer.add([token("taken")])
    await log.reach(1)
    assert writer.backlog == 0
    assert await read_all(log) == [1]


@pytest.mark.parametrize("value", ["half a pair: \ud83d", 1 << 70])
async def test_a_value_that_sqlite_cannot_take_is_refused(
    writer: DatabaseWriter, value: Any
) -> None:
    with pytest.raises(Error):
        await writer.commit([("INSERT INTO server (name, value) VALUES ('x', ?)", [value])])
    await writer.commit([token("after it")])


async def test_a_waiter_that_is_gone_hinders_nobody(
    writer: DatabaseWriter, database: MoodyStore
) -> None:
    database.hold()
    gone = asyncio.create_task(writer.commit([token("a")]))
    await database.at_work.wait()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    database.free.set()
    await writer.commit([token("b")])
    assert [row.name for row in await database.tokens()] == ["a", "b"]


async def test_a_log_that_is_deleted_while_it_is_read_says_so(
    log: SessionLog, writer: DatabaseWriter
) -> None:
    # Else its reader would ask again and again for what is never there.
    add(log)
    await log.reach(1)
    await writer.commit([("DELETE FROM log", ())])
    with pytest.raises(DatabaseError, match="deleted"):
        await log.read(0)


async def test_a_log_that_cannot_be_read_says_so(
    log: SessionLog, writer: DatabaseWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    add(log)
    await log.reach(1)
    monkeypatch.setattr(writer.store, "read_log", fail)
    with pytest.raises(DatabaseError):
        await log.read(0)


# Pressure.


def has_room(writer: DatabaseWriter) -> bool:
    return writer.has_room


async def test_a_backlog_leaves_no_room_until_it_is_stored(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "BACKLOG_BYTES", 10_000)
    database.hold()
    add(log)
    await database.at_work.wait()
    add(log, size=9_000)
    assert has_room(writer)
    add(log, size=2_000)
    assert not has_room(writer)
    room = asyncio.create_task(writer.room())
    await asyncio.sleep(0)
    assert not room.done()
    database.free.set()
    async with Deadline("room"):
        await room
    assert has_room(writer)
    await log.reach(3)


async def test_what_cannot_be_stored_counts_as_backlog(
    log: SessionLog, writer: DatabaseWriter, database: MoodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "BACKLOG_BYTES", 10_000)
    monkeypatch.setattr(event_log, "RETRY_SECS", (0.001,))
    database.broken = True
    add(log, size=6_000)
    await database.until_tried(2)
    assert has_room(writer)
    add(log, size=6_000)
    assert not has_room(writer)
    database.broken = False
    async with Deadline("room"):
        await writer.room()
    await log.reach(2)
    assert await read_all(log) == [1, 2]


@pytest.mark.parametrize("bound", ["SECS", "BYTES", "LATEST_SECS"])
async def test_what_was_committed_is_written_back_in_a_lull_or_when_it_is_much_or_long_ago(
    writer: DatabaseWriter,
    log: SessionLog,
    database: MoodyStore,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
) -> None:
    monkeypatch.setattr(event_log, "CHECKPOINT_SECS", 1000)
    monkeypatch.setattr(event_log, "CHECKPOINT_LATEST_SECS", 1000)
    monkeypatch.setattr(event_log, f"CHECKPOINT_{bound}", 0)
    done = asyncio.Semaphore(0)
    checkpoint, fails = database.checkpoint, True

    async def checkpoint_and_tell() -> None:
        nonlocal fails
        await checkpoint()
        done.release()
        if fails:
            fails = False
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database, "checkpoint", checkpoint_and_tell)
    task = asyncio.create_task(writer.write_back())
    try:
        for _ in range(2):
            add(log)
            async with Deadline("a checkpoint"):
                await done.acquire()
        for _ in range(3):
            await checkpoint()
        assert done.locked()  # without a commit there was none meanwhile
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_logs_have_each_their_own_order(writer: DatabaseWriter) -> None:
    logs = [SessionLog(writer, n, 0) for n in range(1, 6)]
    for one, _ in itertools.product(logs, range(20)):
        add(one)
    await writer.flush()
    for one in logs:
        assert await read_all(one) == list(range(1, 21))
