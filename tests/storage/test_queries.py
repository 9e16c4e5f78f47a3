"""Queries and statements: reading what was written."""

from __future__ import annotations

import pytest

from server.storage import statements
from server.storage.database import Database
from server.storage.queries import Queries
from server.storage.schema import Statement

from ..support.rows import log_row, session_row, turn_row


@pytest.fixture
def queries(database: Database) -> Queries:
    return Queries(database)


# The log.


async def test_log_rows_beyond_the_parameters_of_one_statement_are_written(
    database: Database, queries: Queries
) -> None:
    rows = [log_row(seq, seq) for seq in range(1, 1001)]
    await database.write(statements.insert_log(rows))
    assert await queries.log_head(1) == 1000
    assert await queries.read_log(1, 0, 1 << 20) == rows


async def test_log_page_begins_with_the_row_of_the_next_entry(
    database: Database, queries: Queries
) -> None:
    rows = [log_row(1, 3), log_row(4, 4), log_row(5, 9)]
    await database.write(statements.insert_log([*rows, log_row(1, 50, session=2)]))
    assert await queries.read_log(1, 0, 1 << 20) == rows
    assert await queries.read_log(1, 2, 1 << 20) == rows
    assert await queries.read_log(1, 3, 1 << 20) == rows[1:]
    assert await queries.read_log(1, 6, 1 << 20) == rows[2:]
    assert await queries.read_log(1, 9, 1 << 20) == []
    assert await queries.read_log(3, 0, 1 << 20) == []


async def test_log_page_ends_at_its_size(database: Database, queries: Queries) -> None:
    rows = [log_row(seq, seq, size=990) for seq in range(1, 8)]
    await database.write(statements.insert_log(rows))
    assert await queries.read_log(1, 0, 2500) == rows[:3]
    assert await queries.read_log(1, 3, 2500) == rows[3:6]
    assert await queries.read_log(1, 6, 2500) == rows[6:]


async def test_row_larger_than_a_page_is_read_alone(database: Database, queries: Queries) -> None:
    rows = [log_row(1, 1, size=10_000), log_row(2, 2, size=10_000)]
    await database.write(statements.insert_log(rows))
    assert await queries.read_log(1, 0, 100) == rows[:1]
    assert await queries.read_log(1, 1, 100) == rows[1:]


# Sessions.


async def test_sessions_with_unfinished_turns_are_found(
    database: Database, queries: Queries
) -> None:
    await database.write(
        [
            *(statements.insert_session(session_row(n)) for n in (1, 2)),
            *(statements.insert_turn(turn_row(1, index)) for index in (1, 2, 3)),
            statements.insert_turn(turn_row(2, 1)),
            *statements.start_turn(1, 1, first_seq=1, at=5, sent=True),
            *end_turn(1, 1),
            *end_turn(2, 1),
        ]
    )
    assert [row.n for row in await queries.sessions_to_recover()] == [1]
    assert [row.turn_index for row in await queries.unfinished_turns(1)] == [2, 3]
    assert await queries.last_turn_index(1) == 3
    assert await queries.last_turn_index(9) == 0


def end_turn(session: int, index: int) -> list[Statement]:
    return statements.end_turn(
        session, index, last_seq=2, stop_reason="end_turn", error=None, duration_ms=1, at=6
    )


async def test_idle_time_counts_from_the_last_turn_or_the_creation(
    database: Database, queries: Queries
) -> None:
    await database.write(
        [
            *(statements.insert_session(session_row(n, at=1000)) for n in (1, 2, 3)),
            *statements.start_turn(2, 1, first_seq=1, at=2000, sent=True),
            statements.close_session(3, "client", 1500),
        ]
    )
    assert await queries.idle_sessions(1999, 1000) == []
    assert await queries.idle_sessions(2000, 1000) == ["session-1"]
    assert sorted(await queries.idle_sessions(3000, 1000)) == ["session-1", "session-2"]
    assert await queries.expired_sessions(2499, 1000) == []
    assert [row.n for row in await queries.expired_sessions(2500, 1000)] == [3]


async def test_second_close_keeps_the_first_reason(database: Database, queries: Queries) -> None:
    await database.write([statements.insert_session(session_row(1))])
    await database.write([statements.close_session(1, "client", 5)])
    await database.write([statements.close_session(1, "idle", 9)])
    row = await queries.session("session-1")
    assert row is not None
    assert (row.close_reason, row.closed_at) == ("client", 5)


async def test_delete_of_a_session_keeps_its_audit_events_only(database: Database) -> None:
    for n in (1, 2):
        await database.write(
            [
                statements.insert_session(session_row(n)),
                statements.insert_turn(turn_row(n, 1)),
                *statements.insert_log([log_row(1, 5, session=n)]),
                statements.insert_audit_event(f"session-{n}", "app", "create", 1.0, "{}"),
            ]
        )
    await database.write(statements.delete_session(1))
    assert await database.fetch("SELECT n FROM sessions") == [(2,)]
    assert await database.fetch("SELECT session FROM turns") == [(2,)]
    assert await database.fetch("SELECT session FROM log") == [(2,)]
    audit = await database.fetch(
        "SELECT session_id, app_name, event, at, detail FROM session_events"
    )
    assert audit == [
        ("session-1", "app", "create", 1.0, "{}"),
        ("session-2", "app", "create", 1.0, "{}"),
    ]


async def test_sessions_of_an_app_are_listed_newest_first(
    database: Database, queries: Queries
) -> None:
    await database.write(
        [
            statements.insert_session(session_row(1)),
            statements.insert_session(session_row(2, app="other")),
            statements.insert_session(session_row(3)),
            statements.close_session(1, "client", 5),
        ]
    )

    async def numbers(app: str, closed: bool) -> list[int]:
        return [row.n for row in await queries.sessions(app, include_closed=closed)]

    assert await numbers("app", False) == [3]
    assert await numbers("app", True) == [3, 1]
    assert await numbers("other", True) == [2]
    assert await queries.open_counts() == {"app": 1, "other": 1}
    assert await queries.last_session_number() == 3
