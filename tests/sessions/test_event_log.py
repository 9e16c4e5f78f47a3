"""The log of a session, on a real SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import DatabaseError
from server.metrics import Metrics
from server.sessions.event_log import EventLogs, SessionLog
from server.sessions.log_pages import Batch, LogLimits
from server.storage import statements
from server.storage.queries import Queries
from server.storage.schema import LogRow
from server.storage.writer import DatabaseWriter

from ..support.rows import insert_token
from ..support.slow_database import SlowDatabase, slow_database


class CountingQueries(Queries):
    """Queries that note which pages are read, and fail on demand."""

    def __init__(self, database: SlowDatabase) -> None:
        super().__init__(database)
        self.pages: list[int] = []
        self.fails = False

    async def read_log(
        self, session: int, after: int, size: int, *, largest: int | None = None
    ) -> list[LogRow]:
        self.pages.append(after)
        if self.fails:
            raise DatabaseError("unable to open database file", is_transient=True)
        return await super().read_log(session, after, size, largest=largest)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SlowDatabase]:
    async with slow_database(path) as opened:
        yield opened


@pytest.fixture
async def writer(database: SlowDatabase) -> AsyncIterator[DatabaseWriter]:
    writer = DatabaseWriter(database, Metrics())
    writer.start()
    yield writer
    database.is_full = False
    database.release()
    await writer.stop()


@pytest.fixture
def queries(database: SlowDatabase) -> CountingQueries:
    return CountingQueries(database)


OpenLog = Callable[..., SessionLog]


@pytest.fixture
def open_log(writer: DatabaseWriter, queries: CountingQueries) -> OpenLog:
    """Opens a log with limits of its own."""

    def open_log(number: int = 1, head: int = 0, **limits: int) -> SessionLog:
        return EventLogs(writer, queries, LogLimits(**limits)).open(number, head)

    return open_log


@pytest.fixture
def log(open_log: OpenLog) -> SessionLog:
    return open_log()


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


async def test_entry_is_invisible_until_it_is_durable(
    log: SessionLog, database: SlowDatabase
) -> None:
    woken = asyncio.Event()
    log.subscribe(woken.set)
    database.hold()
    add(log, 3)
    await database.until_tried()
    assert (log.head, log.last) == (0, 3)
    assert log.recent(0) == []
    assert await log.read(0) == []
    assert not woken.is_set()
    database.release()
    await log.reach(3)
    assert woken.is_set()
    assert seqs(log.recent(0) or []) == [1, 2, 3]


async def test_notified_subscriber_finds_the_entries_in_the_file(
    log: SessionLog, path: Path
) -> None:
    found: list[list[int]] = []
    log.subscribe(lambda: found.append(stored(path)))
    add(log, 2)
    await log.reach(2)
    add(log)
    await log.reach(3)
    assert found == [[1, 2], [1, 2, 3]]


async def test_entries_that_arrive_during_a_commit_share_the_next(
    log: SessionLog, open_log: OpenLog, writer: DatabaseWriter, database: SlowDatabase
) -> None:
    other = open_log(2)
    database.hold()
    add(log)
    await database.until_tried()
    for _ in range(100):
        add(log)
        add(other)
    writer.add([statements.insert_audit_event("s", "app", "turn", 1.0, "{}")])
    commit = asyncio.create_task(writer.commit([insert_token("a")]))
    await asyncio.sleep(0)
    database.release()
    await commit
    await writer.flush()
    assert len(database.done) == 2
    assert (log.head, other.head) == (101, 100)
    assert await read_all(log) == list(range(1, 102))
    assert await read_all(other) == list(range(1, 101))


async def test_entries_and_statements_added_together_are_one_transaction(
    log: SessionLog, writer: DatabaseWriter, database: SlowDatabase
) -> None:
    add(log)
    statement = statements.insert_audit_event("s", "app", "turn", 1.0, "{}")
    writer.add([statement])
    await writer.flush()
    ((first, second),) = database.done
    assert first[0].startswith("INSERT INTO log")
    assert second == statement


async def test_entries_have_positions_and_times(log: SessionLog) -> None:
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


async def test_reopened_log_continues_after_its_stored_head(
    open_log: OpenLog, writer: DatabaseWriter, queries: Queries
) -> None:
    add(open_log(), 5)
    await writer.flush()
    again = open_log(head=await queries.log_head(1))
    assert (again.head, again.last) == (5, 5)
    assert again.append("event", 1, b'"event":{}') == 6
    await again.reach(6)
    assert await read_all(again) == [1, 2, 3, 4, 5, 6]


async def test_stop_commits_pending_entries(
    log: SessionLog, writer: DatabaseWriter, path: Path
) -> None:
    add(log, 10)
    await writer.stop()
    assert stored(path) == list(range(1, 11))


async def test_pending_entries_are_split_into_rows_of_limited_size(
    open_log: OpenLog, queries: Queries
) -> None:
    log = open_log(row_bytes=1000, row_entries=7)
    add(log, 20)  # by number
    add(log, 3, size=2000)  # each a row
    add(log, 5, size=300)  # by size
    await log.reach(28)
    rows = await queries.read_log(1, 0, 1 << 20)
    assert [(row.first_seq, row.last_seq) for row in rows[:2]] == [(1, 7), (8, 14)]
    assert all(row.last_seq - row.first_seq < 7 for row in rows)
    assert all(len(row.body) < 1000 + 2100 for row in rows)
    assert [row.first_seq for row in rows[1:]] == [row.last_seq + 1 for row in rows[:-1]]
    assert await read_all(log) == list(range(1, 29))


# Reading.


async def test_readers_that_replay_the_same_range_share_pages(
    open_log: OpenLog, queries: CountingQueries
) -> None:
    log = open_log(page_bytes=1)  # a page is a row
    for _ in range(3):
        add(log, 10)
        await log.reach(log.last)
    found = await asyncio.gather(*(read_all(log) for _ in range(50)))
    assert found == [list(range(1, 31))] * 50
    assert queries.pages == [0, 10, 20]
    assert await read_all(log, 15) == list(range(16, 31))


async def test_failed_page_read_is_retried(log: SessionLog, queries: CountingQueries) -> None:
    add(log, 3)
    await log.reach(3)
    queries.fails = True
    for _ in range(2):
        with pytest.raises(DatabaseError):
            await log.read(0)
    queries.fails = False
    assert await read_all(log) == [1, 2, 3]


async def test_read_continues_after_any_position(log: SessionLog) -> None:
    for count in (1, 5, 2):
        add(log, count)
        await log.reach(log.last)
    for watched in (False, True):  # from the file, then from the ring
        if watched:
            log.subscribe(lambda: None)
            add(log, 2)
            await log.reach(10)
        for after in range(log.head + 1):
            assert await read_all(log, after) == list(range(after + 1, log.head + 1))


async def test_log_without_subscribers_has_no_ring(log: SessionLog) -> None:
    add(log, 5)
    await log.reach(5)
    assert log.recent(0) is None
    assert log.recent(5) == []


async def test_ring_is_dropped_with_the_last_subscriber(log: SessionLog) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    log.subscribe(first.set)
    log.subscribe(second.set)
    add(log, 5)
    await log.reach(5)
    log.unsubscribe(first.set)
    assert seqs(log.recent(2) or []) == [3, 4, 5]
    log.unsubscribe(second.set)
    assert log.recent(2) is None
    assert await read_all(log, 2) == [3, 4, 5]


async def test_reader_before_the_ring_reads_from_the_database(log: SessionLog) -> None:
    add(log, 3)
    await log.reach(3)
    log.subscribe(lambda: None)
    add(log, 3)
    await log.reach(6)
    assert log.recent(2) is None
    assert seqs(log.recent(3) or []) == [4, 5, 6]
    assert await read_all(log, 1) == [2, 3, 4, 5, 6]


async def test_ring_is_limited_in_bytes(open_log: OpenLog) -> None:
    log = open_log(ring_bytes=10_000)
    log.subscribe(lambda: None)
    for _ in range(30):
        add(log, size=1000)
        await log.reach(log.last)
    assert log.recent(0) is None
    kept = next(found for after in range(30) if (found := log.recent(after)) is not None)
    assert seqs(kept)[-1] == 30
    assert 8000 < sum(len(batch.body) for batch in kept) <= 10_000
    assert await read_all(log) == list(range(1, 31))


async def test_ring_keeps_the_newest_batch_of_any_size(open_log: OpenLog) -> None:
    log = open_log(ring_bytes=1000)
    log.subscribe(lambda: None)
    add(log, size=50_000)
    await log.reach(1)
    assert seqs(log.recent(0) or []) == [1]
    add(log)
    await log.reach(2)
    assert log.recent(0) is None
    assert seqs(log.recent(1) or []) == [2]


async def test_ring_is_limited_in_batches(open_log: OpenLog) -> None:
    log = open_log(ring_batches=4)
    log.subscribe(lambda: None)
    for _ in range(10):
        add(log)
        await log.reach(log.last)
    assert log.recent(5) is None
    assert seqs(log.recent(6) or []) == [7, 8, 9, 10]


async def test_long_log_is_read_in_pages(open_log: OpenLog) -> None:
    log = open_log(page_bytes=10_000)
    for _ in range(40):
        add(log, size=1000)
        await log.reach(log.last)
    page = await log.read(7)
    assert seqs(page)[0] == 8
    assert 9_000 < sum(len(batch.body) for batch in page) < 12_000
    assert await read_all(log) == list(range(1, 41))


async def test_follower_sees_every_entry_once_while_entries_are_appended(log: SessionLog) -> None:
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


async def test_follow_reports_idle_periods(log: SessionLog) -> None:
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
def test_batch_after_a_position_is_its_rest(first: int, count: int, data: Any) -> None:
    last = first + count - 1
    lines = [b'{"seq":%d}' % seq for seq in range(first, last + 1)]
    batch = Batch(first, last, b"\n".join(lines))
    position = data.draw(st.integers(0, last - 1))
    rest = batch.after(position)
    assert rest.lines() == lines[max(0, position - first + 1) :]
    assert (rest.first, rest.last) == (max(first, position + 1), last)


async def test_read_of_a_deleted_log_fails(log: SessionLog, writer: DatabaseWriter) -> None:
    # Otherwise a reader would retry forever.
    add(log)
    await log.reach(1)
    await writer.commit([("DELETE FROM log", ())])
    with pytest.raises(DatabaseError):
        await log.read(0)


async def test_each_log_has_its_own_order(open_log: OpenLog, writer: DatabaseWriter) -> None:
    logs = [open_log(n) for n in range(1, 6)]
    for one, _ in itertools.product(logs, range(20)):
        add(one)
    await writer.flush()
    for one in logs:
        assert await read_all(one) == list(range(1, 21))
