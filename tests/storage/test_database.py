"""The database: its schema, and what a write and a read promise."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.storage import database as store
from server.storage import schema
from server.storage.database import Database, DatabaseError
from server.storage.schema import LogRow, SchemaError, SessionRow, TokenRow, TurnRow

from ..support.harness import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clawdforge.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with opened(path) as database:
        yield database


@contextlib.asynccontextmanager
async def opened(path: Path, **options: str) -> AsyncIterator[Database]:
    database = await Database.open(path, **options)
    try:
        yield database
    finally:
        await database.close()


def session_row(n: int, *, app: str = "app", at: float = 1000.0) -> SessionRow:
    return SessionRow(
        n=n,
        id=f"session-{n}",
        app_name=app,
        agent="mock",
        model=None,
        system=None,
        meta="{}",
        permission="ask",
        cwd="/",
        created_at=at,
        last_turn_at=None,
        turn_count=0,
        has_context=0,
        closed_at=None,
        close_reason=None,
    )


def turn_row(session: int, index: int, client_id: str | None = None) -> TurnRow:
    return TurnRow(session, index, client_id, b"[]", None, None, None, None, None, None)


def token_row(name: str) -> TokenRow:
    return TokenRow(name, name.encode(), "[]", 1.0)


def ask(path: Path, sql: str) -> list[tuple[object, ...]]:
    """What another program sees in the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


# The file.


async def test_the_file_is_for_its_owner_alone(database: Database, path: Path) -> None:
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    async with opened(path) as database:
        await database.write([store.insert_session(session_row(1))])
    async with opened(path) as database:
        assert await database.session("session-1") == session_row(1)


async def test_it_is_in_wal_mode_and_syncs_as_set(path: Path) -> None:
    for sync, number in (("normal", 1), ("full", 2)):
        async with opened(path, sync=sync) as database:
            (row,) = await database._writer.execute_fetchall("PRAGMA synchronous")
            assert tuple(row) == (number,)
    assert ask(path, "PRAGMA journal_mode") == [("wal",)]


async def test_the_wal_is_written_back_beside_the_writer(database: Database, path: Path) -> None:
    size = path.stat().st_size
    for first in range(1, 61):
        await database.write(store.insert_log([LogRow(1, first, first, b"x" * 200_000)]))
    assert path.stat().st_size == size  # SQLite by itself would have begun at 4 MB
    await database.checkpoint()
    assert path.stat().st_size > 60 * 200_000


async def test_no_commit_has_to_begin_the_wal_anew_behind_a_checkpoint(
    database: Database, path: Path
) -> None:
    def salts() -> bytes:
        return path.with_name(f"{path.name}-wal").read_bytes()[16:24]

    await database.write([store.insert_session(session_row(1))])
    before = salts()
    await database.checkpoint()
    begun = salts()
    assert begun != before
    await database.write([store.insert_session(session_row(2))])
    assert salts() == begun


async def test_a_wal_that_gets_long_is_written_back_at_once_and_begun_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAL_PAGES", 500)
    async with opened(path) as database:
        for first in range(1, 101):
            await database.write(store.insert_log([LogRow(1, first, first, b"x" * 200_000)]))
        assert path.with_name(f"{path.name}-wal").stat().st_size < 4_000_000
        assert path.stat().st_size > 16_000_000


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path) as database:
        await database.write([store.insert_session(session_row(1))])
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


async def test_a_migration_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path):
        pass
    (version,) = ask(path, "PRAGMA user_version")[0]
    broken = (*schema.MIGRATIONS, "CREATE TABLE extra (a); CREATE TABLE sessions (b)")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        with pytest.raises(DatabaseError):
            await Database.open(path)
    assert ask(path, "PRAGMA user_version") == [(version,)]
    assert ask(path, "SELECT name FROM sqlite_master WHERE name = 'extra'") == []


async def test_an_older_schema_is_brought_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as database:
        await database.write([store.insert_session(session_row(1))])
    monkeypatch.setattr(
        schema,
        "MIGRATIONS",
        (*schema.MIGRATIONS, "CREATE TABLE extra (a); INSERT INTO extra VALUES (7)"),
    )
    for _ in range(2):  # the second time there is nothing to do
        async with opened(path) as database:
            assert await database.session("session-1") == session_row(1)
    assert ask(path, "SELECT a FROM extra") == [(7,)]


# Writing.


async def test_a_write_is_carried_out_whole(database: Database) -> None:
    await database.write([store.insert_token(token_row("a")), store.insert_token(token_row("b"))])
    assert [row.name for row in await database.tokens()] == ["a", "b"]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_write_that_fails_is_not_carried_out_at_all(
    database: Database, position: int
) -> None:
    await database.write([store.insert_token(token_row("taken"))])
    statements = [store.insert_token(token_row("a")), store.insert_token(token_row("b"))]
    statements.insert(position, store.insert_token(token_row("taken")))
    with pytest.raises(DatabaseError):
        await database.write(statements)
    assert [row.name for row in await database.tokens()] == ["taken"]
    await database.write(statements[:position] + statements[position + 1 :])
    assert [row.name for row in await database.tokens()] == ["a", "b", "taken"]


async def test_a_failed_lone_statement_leaves_the_next_one_working(database: Database) -> None:
    await database.write([store.insert_token(token_row("a"))])
    with pytest.raises(DatabaseError):
        await database.write([store.insert_token(token_row("a"))])
    await database.write([store.insert_token(token_row("b"))])
    assert len(await database.tokens()) == 2


async def test_no_statements_are_no_write(database: Database) -> None:
    await database.write([])


async def test_a_write_is_seen_by_others_once_it_is_done(database: Database, path: Path) -> None:
    await database.write([store.insert_token(token_row("a")), store.insert_token(token_row("b"))])
    assert ask(path, "SELECT count(*) FROM tokens") == [(2,)]


async def test_reading_goes_on_while_a_transaction_is_open(database: Database, path: Path) -> None:
    await database.write([store.insert_token(token_row("a"))])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM tokens")
        assert len(await database.tokens()) == 1
        other.execute("ROLLBACK")


async def test_a_client_id_is_taken_once_in_a_session(database: Database) -> None:
    await database.write([store.insert_turn(turn_row(1, 1, "c1"))])
    await database.write([store.insert_turn(turn_row(2, 1, "c1"))])
    await database.write([store.insert_turn(turn_row(1, 2)), store.insert_turn(turn_row(1, 3))])
    with pytest.raises(DatabaseError):
        await database.write([store.insert_turn(turn_row(1, 4, "c1"))])
    found = await database.turn_by_client_id(1, "c1")
    assert found is not None
    assert found.turn_index == 1


# The log.


def log_row(first: int, last: int, *, session: int = 1, size: int = 0) -> LogRow:
    body = b"\n".join(b'{"seq":%d}' % seq + b" " * size for seq in range(first, last + 1))
    return LogRow(session, first, last, body)


async def test_any_number_of_log_rows_is_written_at_once(database: Database) -> None:
    rows = [log_row(seq, seq) for seq in range(1, 1001)]
    await database.write(store.insert_log(rows))
    assert await database.head(1) == 1000
    assert await database.read_log(1, 0, 1 << 20) == rows


async def test_a_log_page_begins_with_the_row_that_has_the_next_entry(database: Database) -> None:
    rows = [log_row(1, 3), log_row(4, 4), log_row(5, 9)]
    await database.write(store.insert_log([*rows, log_row(1, 50, session=2)]))
    assert await database.read_log(1, 0, 1 << 20) == rows
    assert await database.read_log(1, 2, 1 << 20) == rows
    assert await database.read_log(1, 3, 1 << 20) == rows[1:]
    assert await database.read_log(1, 6, 1 << 20) == rows[2:]
    assert await database.read_log(1, 9, 1 << 20) == []
    assert await database.read_log(3, 0, 1 << 20) == []


async def test_a_log_page_ends_where_it_is_full(database: Database) -> None:
    rows = [log_row(seq, seq, size=990) for seq in range(1, 8)]
    await database.write(store.insert_log(rows))
    assert await database.read_log(1, 0, 2500) == rows[:3]
    assert await database.read_log(1, 3, 2500) == rows[3:6]
    assert await database.read_log(1, 6, 2500) == rows[6:]


async def test_a_row_larger_than_a_page_is_a_page(database: Database) -> None:
    rows = [log_row(1, 1, size=10_000), log_row(2, 2, size=10_000)]
    await database.write(store.insert_log(rows))
    assert await database.read_log(1, 0, 100) == rows[:1]
    assert await database.read_log(1, 1, 100) == rows[1:]


# Sessions.


async def test_turns_without_an_end_are_found(database: Database) -> None:
    await database.write(
        [
            *(store.insert_session(session_row(n)) for n in (1, 2)),
            *(store.insert_turn(turn_row(1, index)) for index in (1, 2, 3)),
            store.insert_turn(turn_row(2, 1)),
            *store.start_turn(1, 1, first_seq=1, at=5, sent=True),
            *end_turn(1, 1),
            *end_turn(2, 1),
        ]
    )
    assert [row.n for row in await database.sessions_to_recover()] == [1]
    assert [row.turn_index for row in await database.unfinished_turns(1)] == [2, 3]
    assert await database.last_turn_index(1) == 3
    assert await database.last_turn_index(9) == 0


def end_turn(session: int, index: int) -> list[store.Statement]:
    return store.end_turn(
        session, index, last_seq=2, stop_reason="end_turn", error=None, duration_ms=1, at=6
    )


async def test_idle_is_counted_from_the_last_turn_or_the_creation(database: Database) -> None:
    await database.write(
        [
            *(store.insert_session(session_row(n, at=1000)) for n in (1, 2, 3)),
            *store.start_turn(2, 1, first_seq=1, at=2000, sent=True),
            store.close_session(3, "client", 1500),
        ]
    )
    assert await database.idle_sessions(999) == []
    assert await database.idle_sessions(1000) == ["session-1"]
    assert sorted(await database.idle_sessions(2000)) == ["session-1", "session-2"]
    assert await database.sessions_closed(1499) == []
    assert [row.n for row in await database.sessions_closed(1500)] == [3]


async def test_a_close_reason_stays_the_first(database: Database) -> None:
    await database.write([store.insert_session(session_row(1))])
    await database.write([store.close_session(1, "client", 5)])
    await database.write([store.close_session(1, "idle", 9)])
    row = await database.session("session-1")
    assert row is not None
    assert (row.close_reason, row.closed_at) == ("client", 5)


async def test_a_deleted_session_leaves_its_audit_and_nothing_else(
    database: Database, path: Path
) -> None:
    for n in (1, 2):
        await database.write(
            [
                store.insert_session(session_row(n)),
                store.insert_turn(turn_row(n, 1)),
                *store.insert_log([log_row(1, 5, session=n)]),
                store.audit(f"session-{n}", "app", "create", 1.0, "{}"),
            ]
        )
    await database.write(store.delete_session(1))
    assert ask(path, "SELECT n FROM sessions") == [(2,)]
    assert ask(path, "SELECT session FROM turns") == [(2,)]
    assert ask(path, "SELECT session FROM log") == [(2,)]
    audit = ask(path, "SELECT session_id, app_name, event, at, detail FROM session_events")
    assert audit == [
        ("session-1", "app", "create", 1.0, "{}"),
        ("session-2", "app", "create", 1.0, "{}"),
    ]


async def test_an_app_sees_its_own_sessions_the_newest_first(database: Database) -> None:
    await database.write(
        [
            store.insert_session(session_row(1)),
            store.insert_session(session_row(2, app="other")),
            store.insert_session(session_row(3)),
            store.close_session(1, "client", 5),
        ]
    )

    async def numbers(app: str, closed: bool) -> list[int]:
        return [row.n for row in await database.sessions_of(app, include_closed=closed)]

    assert await numbers("app", False) == [3]
    assert await numbers("app", True) == [3, 1]
    assert await numbers("other", True) == [2]
    assert await database.open_counts() == {"app": 1, "other": 1}
    assert await database.last_session_number() == 3
