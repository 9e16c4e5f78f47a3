"""The database file, its schema, its transactions and its checkpoints."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.errors import DatabaseError
from server.storage import schema, statements
from server.storage.database import Database
from server.storage.drivers.sqlite import SqliteDriver
from server.storage.queries import Queries
from server.storage.schema import SchemaError

from ..support.rows import ask, insert_token, log_row, session_row, turn_row
from ..support.waiting import eventually


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Database]:
    database = await Database.open(path, **options)
    try:
        yield database
    finally:
        await database.close()


# The file.


async def test_database_files_are_private(database_file: Database, path: Path) -> None:
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_written_rows_survive_a_restart(path: Path) -> None:
    async with opened(path) as database:
        await database.write([statements.insert_session(session_row(1))])
    async with opened(path) as database:
        assert await Queries(database).session("session-1") == session_row(1)


async def test_database_is_in_wal_mode_with_the_chosen_synchronous_level(path: Path) -> None:
    for sync, number in (("normal", 1), ("full", 2)):
        async with opened(path, sync=sync) as database:
            assert isinstance(database.driver, SqliteDriver)
            assert await database.driver.fetch_as_writer("PRAGMA synchronous") == [(number,)]
    assert ask(path, "PRAGMA journal_mode") == [("wal",)]


async def test_commits_leave_the_wal_to_checkpoints(database_file: Database, path: Path) -> None:
    size = path.stat().st_size
    for first in range(1, 61):
        await database_file.write(statements.insert_log([log_row(first, first, size=200_000)]))
    assert path.stat().st_size == size  # SQLite by itself would have begun at 4 MB
    await database_file.checkpoint()
    assert path.stat().st_size > 60 * 200_000


async def test_checkpoint_restarts_the_wal_before_the_next_commit(
    database_file: Database, path: Path
) -> None:
    def salts() -> bytes:
        return path.with_name(f"{path.name}-wal").read_bytes()[16:24]

    await database_file.write([statements.insert_session(session_row(1))])
    before = salts()
    await database_file.checkpoint()
    begun = salts()
    assert begun != before
    await database_file.write([statements.insert_session(session_row(2))])
    assert salts() == begun


async def test_commit_checkpoints_a_large_wal(
    path: Path,
) -> None:
    async with opened(path, wal_pages=500) as database:
        for first in range(1, 101):
            await database.write(statements.insert_log([log_row(first, first, size=200_000)]))
        assert path.with_name(f"{path.name}-wal").stat().st_size < 4_000_000
        assert path.stat().st_size > 16_000_000


async def test_newer_schema_is_refused_and_unchanged(path: Path) -> None:
    async with opened(path) as database:
        await database.write([statements.insert_session(session_row(1))])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 999")
    threads = set(threading.enumerate())
    with pytest.raises(SchemaError, match="999") as caught:
        await Database.open(path)
    assert "\n" not in str(caught.value)
    # No connection is left, whose thread would hang the exit.
    await eventually("the thread to end", lambda: set(threading.enumerate()) <= threads)
    assert ask(path, "PRAGMA user_version") == [(999,)]
    assert ask(path, "SELECT id FROM sessions") == [("session-1",)]


async def test_failed_migration_changes_nothing(
    path: Path,
) -> None:
    async with opened(path):
        pass
    (version,) = ask(path, "PRAGMA user_version")[0]
    broken = (*schema.MIGRATIONS, "CREATE TABLE extra (a); CREATE TABLE sessions (b)")
    with pytest.raises(DatabaseError):
        await Database.open(path, migrations=broken)
    assert ask(path, "PRAGMA user_version") == [(version,)]
    assert ask(path, "SELECT name FROM sqlite_master WHERE name = 'extra'") == []


async def test_older_schema_is_migrated_once(
    path: Path,
) -> None:
    async with opened(path) as database:
        await database.write([statements.insert_session(session_row(1))])
    newer = (*schema.MIGRATIONS, "CREATE TABLE extra (a); INSERT INTO extra VALUES (7)")
    for _ in range(2):  # the second time there is nothing to do
        async with opened(path, migrations=newer) as database:
            assert await Queries(database).session("session-1") == session_row(1)
    assert ask(path, "SELECT a FROM extra") == [(7,)]


# Writing.


async def test_write_executes_all_statements(database: Database) -> None:
    await database.write([insert_token("a"), insert_token("b")])
    assert [row.name for row in await Queries(database).tokens()] == ["a", "b"]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_failed_write_executes_no_statement(database: Database, position: int) -> None:
    await database.write([insert_token("taken")])
    transaction = [insert_token("a"), insert_token("b")]
    transaction.insert(position, insert_token("taken"))
    with pytest.raises(DatabaseError):
        await database.write(transaction)
    assert [row.name for row in await Queries(database).tokens()] == ["taken"]
    await database.write(transaction[:position] + transaction[position + 1 :])
    assert [row.name for row in await Queries(database).tokens()] == ["a", "b", "taken"]


async def test_write_succeeds_after_a_failed_single_statement(database: Database) -> None:
    await database.write([insert_token("a")])
    with pytest.raises(DatabaseError):
        await database.write([insert_token("a")])
    await database.write([insert_token("b")])
    assert len(await Queries(database).tokens()) == 2


async def test_write_without_statements_is_accepted(database: Database) -> None:
    await database.write([])


async def test_write_is_visible_to_other_connections(database_file: Database, path: Path) -> None:
    await database_file.write([insert_token("a"), insert_token("b")])
    assert ask(path, "SELECT count(*) FROM tokens") == [(2,)]


async def test_read_does_not_wait_for_an_open_transaction(
    database_file: Database, path: Path
) -> None:
    await database_file.write([insert_token("a")])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM tokens")
        assert len(await Queries(database_file).tokens()) == 1
        other.execute("ROLLBACK")


async def test_client_id_is_unique_in_a_session(database: Database) -> None:
    await database.write([statements.insert_turn(turn_row(1, 1, "c1"))])
    await database.write([statements.insert_turn(turn_row(2, 1, "c1"))])
    await database.write(
        [statements.insert_turn(turn_row(1, 2)), statements.insert_turn(turn_row(1, 3))]
    )
    with pytest.raises(DatabaseError):
        await database.write([statements.insert_turn(turn_row(1, 4, "c1"))])
    found, is_steered = await Queries(database).turn_by_client_id(1, "c1")
    assert found is not None
    assert (found.turn_index, is_steered) == (1, False)
