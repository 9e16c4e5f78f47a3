"""The writer: group commit, and what it does while the database takes no writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.errors import DatabaseError, Error
from server.metrics import Metrics
from server.storage.checkpoints import CheckpointPolicy
from server.storage.database import Database
from server.storage.queries import Queries
from server.storage.schema import LogRow, Statement
from server.storage.writer import DatabaseWriter, WriterLimits

from ..support.rows import insert_token, log_row
from ..support.slow_database import SlowDatabase, slow_database
from ..support.waiting import Deadline

RETRY_AT_ONCE = (0.001,)


class Buffer:
    """A log that notes which entries were published."""

    def __init__(self, writer: DatabaseWriter) -> None:
        self._writer = writer
        self._pending: list[LogRow] = []
        self._next = 1
        self._moved = asyncio.Event()
        self.published: list[int] = []

    def append(self, size: int = 0) -> None:
        self._pending.append(log_row(self._next, self._next, size=size))
        self._next += 1
        self._writer.gather(self, size)

    def take_pending(self) -> list[LogRow]:
        pending, self._pending = self._pending, []
        return pending

    def publish(self, rows: Sequence[LogRow]) -> None:
        self.published += [row.last_seq for row in rows]
        self._moved.set()

    async def reach(self, position: int) -> None:
        while position not in self.published:
            self._moved.clear()
            await self._moved.wait()


@pytest.fixture
async def database(source: Path | str) -> AsyncIterator[SlowDatabase]:
    async with slow_database(source) as opened:
        yield opened


StartWriter = Callable[..., DatabaseWriter]


@pytest.fixture
async def start_writer(database: SlowDatabase) -> AsyncIterator[StartWriter]:
    """Starts a writer with limits of its own; it is stopped after the test."""
    async with contextlib.AsyncExitStack() as stack:

        def start(**options: Any) -> DatabaseWriter:
            writer = DatabaseWriter(database, Metrics(), **options)
            writer.start()
            stack.push_async_callback(writer.stop)
            return writer

        yield start
        database.is_full = False
        database.release()


@pytest.fixture
async def writer(start_writer: StartWriter) -> DatabaseWriter:
    return start_writer(limits=WriterLimits(retry_secs=RETRY_AT_ONCE))


@pytest.fixture
async def log(writer: DatabaseWriter) -> Buffer:
    return Buffer(writer)


async def token_names(database: Database) -> list[str]:
    return [row.name for row in await Queries(database).tokens()]


async def stored(database: Database) -> list[int]:
    return [row.last_seq for row in await Queries(database).read_log(1, 0, 1 << 20)]


async def test_commit_is_refused_while_the_disk_is_full(
    writer: DatabaseWriter, database: SlowDatabase
) -> None:
    database.is_full = True
    with pytest.raises(Error) as caught:
        await writer.commit([insert_token("a")])
    assert (caught.value.code, caught.value.retryable) == ("internal", True)
    assert "disk" not in caught.value.message
    database.is_full = False
    await writer.commit([insert_token("b")])
    assert await token_names(database) == ["b"]


async def test_entries_are_retried_until_they_are_stored(
    log: Buffer, writer: DatabaseWriter, database: SlowDatabase
) -> None:
    database.is_full = True
    for _ in range(3):
        log.append()
    writer.add([insert_token("with-them")])
    await database.until_tried(3)
    for _ in range(2):
        log.append()
    assert log.published == []
    database.is_full = False
    await log.reach(5)
    assert await stored(database) == log.published == [1, 2, 3, 4, 5]
    assert await token_names(database) == ["with-them"]


async def test_commit_is_refused_while_entries_are_retried(
    log: Buffer, writer: DatabaseWriter, database: SlowDatabase
) -> None:
    database.is_full = True
    log.append()
    for name in ("a", "b"):
        with pytest.raises(Error):
            await writer.commit([insert_token(name)])
    database.is_full = False
    await writer.commit([insert_token("c")])
    await log.reach(1)
    assert await token_names(database) == ["c"]


async def test_refused_commit_stores_none_of_its_statements(
    writer: DatabaseWriter, database: SlowDatabase
) -> None:
    await writer.commit([insert_token("taken")])
    with pytest.raises(Error):
        await writer.commit([insert_token("a"), insert_token("taken")])
    assert await token_names(database) == ["taken"]


async def test_rejected_statement_blocks_no_other_write(
    log: Buffer, writer: DatabaseWriter, database: SlowDatabase
) -> None:
    await writer.commit([insert_token("taken")])
    log.append()
    writer.add([insert_token("taken"), insert_token("with-the-entry")])
    fine, twice = await asyncio.gather(
        writer.commit([insert_token("mine")]),
        writer.commit([insert_token("taken")]),
        return_exceptions=True,
    )
    await log.reach(1)
    assert fine is None
    assert isinstance(twice, Error)
    log.append()
    await log.reach(2)
    assert await stored(database) == [1, 2]
    assert await token_names(database) == ["mine", "taken", "with-the-entry"]


async def test_entries_written_individually_are_published_if_later_writes_fail(
    log: Buffer, writer: DatabaseWriter, database: SlowDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writer.commit([insert_token("taken")])
    write = database.write

    async def write_and_break(transaction: Sequence[Statement]) -> None:
        try:
            await write(transaction)
        finally:
            database.is_full = list(transaction) == [insert_token("taken")]  # the last one, alone

    monkeypatch.setattr(database, "write", write_and_break)
    log.append()
    writer.add([insert_token("taken")])
    await log.reach(1)
    assert writer.backlog == 0
    assert await stored(database) == [1]


@pytest.mark.parametrize("value", ["half a pair: \ud83d", 1 << 70])
async def test_commit_of_a_value_that_sqlite_does_not_support_is_refused(
    writer: DatabaseWriter, value: Any
) -> None:
    with pytest.raises(Error):
        await writer.commit([("INSERT INTO server (name, value) VALUES ('x', ?)", [value])])
    await writer.commit([insert_token("after it")])


async def test_cancelled_waiter_affects_no_other_commit(
    writer: DatabaseWriter, database: SlowDatabase
) -> None:
    database.hold()
    cancelled = asyncio.create_task(writer.commit([insert_token("a")]))
    await database.until_tried()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    database.release()
    await writer.commit([insert_token("b")])
    assert await token_names(database) == ["a", "b"]


def has_capacity(writer: DatabaseWriter) -> bool:
    return writer.has_capacity


async def held_log(writer: DatabaseWriter, database: SlowDatabase) -> Buffer:
    """A log whose first entry the database does not store until it is released."""
    log = Buffer(writer)
    database.hold()
    log.append()
    await database.until_tried()
    return log


async def test_backlog_over_the_limit_leaves_no_capacity_until_it_is_stored(
    start_writer: StartWriter, database: SlowDatabase
) -> None:
    writer = start_writer(limits=WriterLimits(backlog_bytes=10_000))
    log = await held_log(writer, database)
    log.append(size=9_000)
    assert has_capacity(writer)
    log.append(size=2_000)
    assert not has_capacity(writer)
    waiting = asyncio.create_task(writer.wait_for_capacity())
    await asyncio.sleep(0)
    assert not waiting.done()
    database.release()
    async with Deadline("capacity"):
        await waiting
    assert has_capacity(writer)
    await log.reach(3)


async def test_large_entry_leaves_no_capacity_until_it_is_stored(
    start_writer: StartWriter, database: SlowDatabase
) -> None:
    writer = start_writer(limits=WriterLimits(large_bytes=1000))
    log = await held_log(writer, database)
    log.append(size=2000)
    assert not has_capacity(writer)
    database.release()
    async with Deadline("capacity"):
        await writer.wait_for_capacity()
    assert await stored(database) == [1, 2]


async def test_entries_that_cannot_be_stored_count_as_backlog(
    start_writer: StartWriter, database: SlowDatabase
) -> None:
    writer = start_writer(limits=WriterLimits(10_000, retry_secs=RETRY_AT_ONCE))
    log = Buffer(writer)
    database.is_full = True
    log.append(size=6_000)
    await database.until_tried(2)
    assert has_capacity(writer)
    log.append(size=6_000)
    assert not has_capacity(writer)
    database.is_full = False
    async with Deadline("capacity"):
        await writer.wait_for_capacity()
    await log.reach(2)
    assert await stored(database) == [1, 2]


@pytest.mark.parametrize(
    "policy",
    [
        CheckpointPolicy(quiet_secs=0, latest_secs=1000),
        CheckpointPolicy(quiet_secs=1000, size=0, latest_secs=1000),
        CheckpointPolicy(quiet_secs=1000, latest_secs=0),
    ],
    ids=["quiet", "size", "latest"],
)
async def test_checkpoint_follows_commits_when_one_condition_holds(
    start_writer: StartWriter,
    database: SlowDatabase,
    monkeypatch: pytest.MonkeyPatch,
    policy: CheckpointPolicy,
) -> None:
    writer = start_writer(checkpoints=policy)
    log = Buffer(writer)
    done = asyncio.Semaphore(0)
    checkpoint, fails = database.checkpoint, True

    async def checkpoint_and_count() -> None:
        nonlocal fails
        await checkpoint()
        done.release()
        if fails:
            fails = False
            raise DatabaseError("database or disk is full", is_transient=True)

    monkeypatch.setattr(database, "checkpoint", checkpoint_and_count)
    task = asyncio.create_task(writer.checkpointer.run())
    try:
        for _ in range(2):
            log.append()
            async with Deadline("a checkpoint"):
                await done.acquire()
        for _ in range(3):
            await checkpoint()
        assert done.locked()  # no commit, no checkpoint
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_failure_of_the_writer_refuses_commits_and_notifies_the_logs(
    start_writer: StartWriter, database: SlowDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = start_writer()
    log = Buffer(writer)

    async def fail(transaction: Sequence[Statement]) -> None:
        raise RuntimeError("injected by a test")

    monkeypatch.setattr(database, "write", fail)
    log.append()
    with pytest.raises(Error):
        await writer.commit([insert_token("a")])
    assert writer.is_over
    assert log.published == []
    with pytest.raises(Error):
        await writer.commit([insert_token("b")])
    await writer.flush()
