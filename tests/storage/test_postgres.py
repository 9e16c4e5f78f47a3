"""PostgreSQL: its schema, the forms of statements, and fenced commits whose answers are lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from server.errors import DatabaseError
from server.storage import schema, statements
from server.storage.database import Database
from server.storage.drivers.base import FencedError, Statement
from server.storage.drivers.postgres import PostgresDriver
from server.storage.drivers.translation import engine_statements
from server.storage.postgres_schema import (
    COLUMNS_OF_CLUSTER,
    POSTGRES_MIGRATIONS,
    TABLES_OF_CLUSTER,
)
from server.storage.queries import Queries

from ..support.postgres import Postgres
from ..support.rows import insert_token, log_row, session_row, turn_row
from ..support.tcp_proxy import TcpProxy, tcp_proxy
from ..support.waiting import eventually


@pytest.fixture
async def url(postgres: Postgres) -> str:
    return postgres.new_database()


@contextlib.asynccontextmanager
async def connected(
    url: str, node: int | None = None
) -> AsyncIterator[tuple[Database, PostgresDriver]]:
    database = await Database.connect(url, name="test")
    driver = database.driver
    assert isinstance(driver, PostgresDriver)
    try:
        if node is not None:
            await driver.change(
                "INSERT INTO nodes (n, name, version, state) VALUES (?, ?, '1', 'up')",
                (node, f"node-{node}"),
            )
            driver.node = node
        yield database, driver
    finally:
        await database.close()


@pytest.fixture
async def proxy(postgres: Postgres) -> AsyncIterator[TcpProxy]:
    async with tcp_proxy(postgres.port) as opened:
        yield opened


def through(proxy: TcpProxy, url: str) -> str:
    """The URL of the same database at the proxy."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}@127.0.0.1:{proxy.port}").geturl()


# The schema.


async def test_both_engines_have_the_same_columns(url: str, tmp_path: Path) -> None:
    path = tmp_path / "clawdforge.db"
    await (await Database.open(path)).close()
    async with connected(url) as (database, _):
        rows = await database.fetch(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = current_schema()"
        )
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        expected = {
            (table, str(row[1]))
            for (table,) in tables
            for row in connection.execute(f"PRAGMA table_info({table})")
        }
    common = {(table, name) for table, name in rows if table not in TABLES_OF_CLUSTER}
    assert common - COLUMNS_OF_CLUSTER == expected


async def test_migrated_database_is_opened_again_and_by_an_older_server(url: str) -> None:
    async with connected(url) as (database, driver):
        await database.write([insert_token("a")])
        await driver.change("UPDATE schema_version SET version = version + 1")
    async with connected(url) as (database, driver):
        assert len(await Queries(database).tokens()) == 1
        await driver.change("UPDATE schema_version SET min_version = version")
    with pytest.raises(schema.SchemaError):
        await Database.connect(url, name="test")


async def test_two_servers_create_the_schema_at_once(url: str) -> None:
    opened = await asyncio.gather(*(Database.connect(url, name="test") for _ in range(3)))
    for database in opened:
        await database.close()


@pytest.mark.slow
async def test_migration_that_waits_for_a_transaction_does_not_stop_the_other_nodes(
    url: str,
) -> None:
    old = [*POSTGRES_MIGRATIONS]
    new = [*old, "ALTER TABLE sessions ADD COLUMN added BIGINT"]
    async with connected(url) as (database, _):
        reader = await asyncpg.connect(url)  # as pg_dump does, for hours
        await reader.execute("BEGIN")
        await reader.execute("SELECT count(*) FROM sessions")
        opening = asyncio.create_task(PostgresDriver.open(url, name="newer", migrations=new))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"
        for _ in range(2):
            await eventually("the migration to wait", partial(is_true, reader, waiting))
            # This statement waits for the migration, which gives up for a moment.
            assert await database.fetch("SELECT count(*) FROM sessions") == [(0,)]
        assert not opening.done()
        await reader.execute("COMMIT")
        await reader.close()
        newer = await opening
        assert await newer.fetch("SELECT added FROM sessions", ()) == []
        await newer.close()


async def is_true(connection: asyncpg.Connection, sql: str) -> bool:
    return bool(await connection.fetchval(sql))


async def test_unreachable_database_is_refused_with_a_reason() -> None:
    with pytest.raises(DatabaseError) as caught:
        await Database.connect("postgresql://x@127.0.0.1:1/x", name="test")
    assert caught.value.is_transient


# The forms of values and statements.


async def test_text_with_nul_is_stored_and_found(url: str) -> None:
    text = "a\0b\U0010ffffc"
    async with connected(url) as (database, _):
        row = turn_row(1, 1, text)
        await database.write([statements.insert_turn(row)])
        assert await Queries(database).turn_by_client_id(1, text) == (row, False)
        assert await Queries(database).session("\0") is None


def test_statements_on_different_tables_are_merged() -> None:
    turn = statements.start_turn(1, 2, first_seq=3, at=4.0, sent=True)
    fence: Statement = ("WITH f AS (SELECT ?1) INSERT INTO marks SELECT ?2", (8, 9))
    transaction = [*statements.insert_log([log_row(1, 1), log_row(2, 2)]), *turn]
    (step,) = engine_statements(transaction, fence)
    assert step.sql.endswith("f AS (SELECT $12) INSERT INTO marks SELECT $13")
    assert step.rows[0][0] == [1, 1]
    assert step.rows[0][-2:] == [8, 9]
    assert len(step.rows[0]) == 13


def test_statements_on_one_table_are_executed_in_order() -> None:
    transaction = [
        statements.insert_turn(turn_row(1, 1)),
        *statements.start_turn(1, 1, first_seq=1, at=1.0, sent=True),
        statements.insert_turn(turn_row(1, 2)),
        statements.insert_turn(turn_row(1, 3)),
    ]
    found = engine_statements(transaction, None)
    assert [len(step.rows) for step in found] == [1, 1, 2]
    assert "sessions" in found[1].sql


# The fence.


async def test_commit_of_a_node_leaves_a_mark(url: str) -> None:
    async with connected(url, 7) as (database, _):
        await database.write([insert_token("a"), insert_token("b")])
        await database.write(statements.insert_log([log_row(1, 2)]))
        assert await database.fetch("SELECT n, k FROM marks ORDER BY k") == [(7, 1), (7, 2)]


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_commit_of_a_node_that_is_gone_stores_nothing(url: str, count: int) -> None:
    async with connected(url, 7) as (database, driver):
        await driver.change("UPDATE nodes SET state = 'gone'")
        with pytest.raises(FencedError):
            await database.write(
                [
                    *statements.insert_log([log_row(1, 2)]),
                    *[insert_token(f"t{number}") for number in range(count)],
                ]
            )
        assert await Queries(database).tokens() == []
        assert await Queries(database).log_head(1) == 0


async def test_takeover_waits_for_a_commit_in_flight(url: str) -> None:
    async with connected(url, 7) as (database, driver):
        blocker = await asyncpg.connect(url)
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("INSERT INTO tokens VALUES ('a', '', '', 1)")
        commit = asyncio.create_task(
            database.write([statements.insert_session(session_row(1)), insert_token("a")])
        )

        async def until_waiting(count: int) -> None:
            sql = "SELECT count(*) FROM pg_stat_activity"
            sql += " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            while await database.fetch(sql) != [(count,)]:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.01)

        await until_waiting(1)
        taking = asyncio.create_task(driver.change("UPDATE nodes SET state = 'gone' RETURNING n"))
        await until_waiting(2)
        assert not taking.done()
        await transaction.rollback()
        await commit
        assert await taking == [(7,)]
        assert len(await Queries(database).tokens()) == 1
        await blocker.close()


# Lost answers.


async def test_commit_whose_answer_is_lost_is_stored_once(url: str, proxy: TcpProxy) -> None:
    async with connected(through(proxy, url), 7) as (database, driver):
        for number in range(20):
            await database.write([insert_token(f"before-{number}")])
            proxy.drop_answers()  # the engine executes the commit, and its answer is lost
            commit = asyncio.create_task(
                database.write(
                    [
                        *statements.insert_log([log_row(number + 1, number + 1)]),
                        insert_token(f"t{number}"),
                    ]
                )
            )
            await eventually("the commit to arrive", lambda: proxy.dropped > 0)
            proxy.restore()
            await commit
        assert driver.unknown == 20
        assert await Queries(database).log_head(1) == 20
        assert len(await Queries(database).tokens()) == 40


async def test_connections_cut_in_mid_commit_lose_and_repeat_nothing(
    url: str, proxy: TcpProxy
) -> None:
    async with connected(through(proxy, url), 7) as (database, driver):
        chance = random.Random(7)
        for seq in range(1, 151):
            if seq % 3 == 0:
                asyncio.get_running_loop().call_later(chance.uniform(0, 0.003), proxy.cut)
            await database.write(
                [*statements.insert_log([log_row(seq, seq)]), insert_token(f"t{seq}")]
            )
        rows = await Queries(database).read_log(1, 0, 1 << 20)
        assert [row.last_seq for row in rows] == list(range(1, 151))
        assert len(await Queries(database).tokens()) == 150
        assert driver.unknown > 0


async def test_rejected_statement_of_a_repeated_commit_is_reported(
    url: str, proxy: TcpProxy
) -> None:
    async with connected(through(proxy, url), 7) as (database, _):
        await database.write([insert_token("taken")])
        proxy.drop_answers()
        commit = asyncio.create_task(database.write([insert_token("taken")]))
        await eventually("the commit to arrive", lambda: proxy.dropped > 0)
        proxy.restore()
        with pytest.raises(DatabaseError) as caught:
            await commit
        assert not caught.value.is_transient
        await database.write([insert_token("next")])


async def test_commit_leaves_a_server_that_takes_no_writes_any_more(url: str) -> None:
    async with connected(url, 1) as (database, driver):
        await database.write([insert_token("a")])
        assert driver._writer is not None
        await driver._writer.execute("SET default_transaction_read_only = on")  # a switchover
        await database.write([insert_token("b")])
        assert [row.name for row in await Queries(database).tokens()] == ["a", "b"]


async def test_reads_continue_on_new_connections(url: str, proxy: TcpProxy) -> None:
    async with connected(through(proxy, url)) as (database, _):
        await database.write([insert_token("a")])
        for _ in range(10):
            assert len(await Queries(database).tokens()) == 1
            proxy.cut()


async def test_engine_restart_delays_a_commit(postgres: Postgres) -> None:
    url = postgres.new_database()
    async with connected(url, 7) as (database, driver):
        driver.patience_secs = 60
        await database.write([insert_token("a")])
        await asyncio.to_thread(postgres.stop, signal.SIGQUIT)
        commit = asyncio.create_task(database.write([insert_token("b")]))
        await asyncio.sleep(0)
        await asyncio.to_thread(postgres.start)
        await commit
        assert len(await Queries(database).tokens()) == 2
