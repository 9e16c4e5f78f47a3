"""The PostgreSQL driver. No other module imports asyncpg.

The writer has a connection of its own, whose group commits are fenced: each locks the row of this
node in ``nodes`` and leaves a mark in ``marks``. If the answer to a commit is lost, the mark shows
whether it was carried out. The driver knows no other tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import asyncpg

from ...errors import DatabaseError
from .base import FencedError, Statement
from .postgres_connections import (
    LOST_CONNECTION,
    Connections,
    database_error,
    migrate_engine,
    open_connection,
)
from .postgres_listener import connect_listener
from .postgres_tail import EngineTail, is_marked
from .translation import EngineStatement, engine_statements, from_engine, numbered, to_engine

logger = logging.getLogger(__name__)

READERS = 4
"""Connections for queries, and as many for :meth:`PostgresDriver.change`."""
PATIENCE_SECS = 5.0
RECONNECT_SECS = 0.1
_FENCE = (
    "WITH f AS MATERIALIZED"
    " (SELECT n FROM nodes WHERE n = ?1 AND state <> 'gone' FOR SHARE)"
    # Without a row, n is null, which is an error: nothing of the commit is executed.
    " INSERT INTO marks (n, k) SELECT (SELECT n FROM f), CAST(?2 AS BIGINT)"
)


_IDENTITIES = (
    "SELECT table_name, column_name FROM information_schema.columns"
    " WHERE table_schema = current_schema() AND identity_generation = 'BY DEFAULT'"
)


class PostgresDriver:
    """The open database.

    Attributes:
        node: the number of this node, whose row every write locks; None for commands without one.
        last_mark: the number of the last commit of the node.
        patience_secs: the time for which a read or a new commit waits for the engine.
        unknown: commits whose answer was lost.
        tail: notices a failover that has lost commits.
    """

    engine: Literal["postgresql"] = "postgresql"

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._writer: asyncpg.Connection | None = None
        self.tail = EngineTail()
        self._readers = Connections(url, f"{name} reader", READERS, self.tail, read_only=True)
        self._others = Connections(url, name, READERS, self.tail)
        self._pulse: asyncpg.Connection | None = None
        self._pulse_lock = asyncio.Lock()
        self.last_mark = 0
        self.patience_secs = PATIENCE_SECS
        self._is_closed = self._is_abandoned = False
        self._lost_since: float | None = None
        self.node: int | None = None
        self.unknown = 0

    @classmethod
    async def open(cls, url: str, *, name: str, migrations: Sequence[str]) -> PostgresDriver:
        """Connect to the database at *url* and bring its schema up to date.

        Args:
            name: of the connections, which PostgreSQL shows to its operator.
            migrations: the scripts that make the schema, one for each version.

        Raises:
            SchemaError: a newer, incompatible version of clawdforge created it.
            DatabaseError: it cannot be reached, or refuses the connection.
        """
        driver = cls(url, name)
        try:
            driver._writer = await open_connection(url, f"{name} writer")
            await migrate_engine(driver._writer, migrations)
        except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
            await driver.close()
            raise database_error(error) from error
        except BaseException:
            await driver.close()
            raise
        return driver

    async def close(self) -> None:
        """Close all connections. A commit in progress is not cancelled in the engine."""
        self._is_closed = True
        self.abandon()
        if self._pulse is not None:
            self._pulse.terminate()
        for connections in (self._readers, self._others):
            connections.close()

    def suspend(self, *, is_suspended: bool) -> None:
        """Let everything fail but beats and the commit in progress: nothing has been answered."""
        for connections in (self._readers, self._others):
            connections.suspend(is_suspended=is_suspended)

    def abandon(self) -> None:
        """End the connection of the commit in progress, whose outcome then stays unknown."""
        self._is_abandoned = True
        if self._writer is not None:
            self._writer.terminate()

    def become(self, node: int) -> None:
        """Fence all writes from now on by the row of a node. There is no commit in progress."""
        self.node = node
        self.tail.acknowledged = 0
        if self._writer is not None:
            self._writer.terminate()  # the next one has the number of the node

    async def checkpoint(self) -> None:
        """Do nothing: PostgreSQL checkpoints by itself."""

    async def interrupt(self) -> None:
        """Do nothing: only the full-text index interrupts queries, and it is a file."""

    # Reading.

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return await self._fetch(self._readers, sql, parameters, repeats=True)

    async def change(
        self, sql: str, parameters: Sequence[Any] = (), *, repeats: bool = False
    ) -> list[tuple[Any, ...]]:
        """Execute one statement at once, outside of the group commits, and return its rows.

        It is not fenced, unless its SQL checks the node itself.

        Args:
            repeats: whether it may be executed again if its answer is lost.

        Raises:
            DatabaseError: it failed, or its answer was lost.
        """
        return await self._fetch(self._others, sql, parameters, repeats=repeats)

    async def pulse(
        self, sql: str, parameters: Sequence[Any], *, timeout: float
    ) -> list[tuple[Any, ...]]:
        """Execute one statement on a connection that nothing else uses, and return its rows.

        It does not wait for the disk. If it raises, the statement may still be executed.

        Args:
            timeout: seconds, after which the connection is closed.

        Raises:
            DatabaseError: it failed, or took too long.
        """
        try:
            if self._is_closed:
                raise _closed_error()
            async with self._pulse_lock, asyncio.timeout(timeout):
                if self._pulse is None or self._pulse.is_closed():
                    self._pulse = await open_connection(
                        self._url, f"{self._name} lease", is_durable=False
                    )
                await self.tail.note(self._pulse)
                rows = await self._pulse.fetch(numbered(sql)[0], *to_engine(parameters))
        except (*LOST_CONNECTION, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if self._pulse is not None:
                self._pulse.terminate()
            raise database_error(error) from error
        return [from_engine(row) for row in rows]

    async def _fetch(
        self,
        connections: Connections,
        sql: str,
        parameters: Sequence[Any],
        *,
        repeats: bool,
        shows_commits: bool = False,
    ) -> list[tuple[Any, ...]]:
        text, _ = numbered(sql)
        values = to_engine(parameters)
        deadline = time.monotonic() + self.patience_secs
        while True:
            is_sent = False
            if self._is_closed:
                raise _closed_error()
            try:
                async with connections.use() as connection:
                    if shows_commits and self.tail.is_doubtful:
                        raise DatabaseError("the database has failed over", is_transient=True)
                    is_sent = True
                    return [from_engine(row) for row in await connection.fetch(text, *values)]
            except LOST_CONNECTION as error:
                is_late = time.monotonic() > deadline
                if is_late or (is_sent and not repeats):
                    raise database_error(error) from error
            except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
                raise database_error(error) from error
            await asyncio.sleep(RECONNECT_SECS)

    # Writing.

    async def write(self, transaction: Sequence[Statement]) -> None:
        """Execute statements in one transaction.

        After a lost answer it looks for the mark of the transaction, and sends the transaction
        again if there is no mark. So it returns or raises only if the outcome is known.

        Raises:
            DatabaseError: none was executed.
            FencedError: none was executed, and never will be: another node has taken over.
        """
        fence: Statement | None = None
        if self.node is not None:
            self.last_mark += 1
            fence = (_FENCE, (self.node, self.last_mark))
        todo = engine_statements(transaction, fence)
        is_sent = is_repeated = False
        while True:
            connection = await self._writing(is_sent=is_sent)
            try:
                await self.tail.check(connection, self.node)
                if is_sent and fence is not None and await is_marked(connection, *fence[1]):
                    break
                is_repeated, is_sent = is_sent, True
                await _execute(connection, todo)
            except LOST_CONNECTION as error:
                connection.terminate()
                if fence is None:
                    raise database_error(error) from error
                self.unknown += 1
                logger.warning("the outcome of a commit is unknown; checking its mark: %s", error)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
                # A repeated commit may violate another key before that of its mark.
                if is_repeated and fence is not None and await self._was_marked(fence):
                    break
                if isinstance(error, asyncpg.NotNullViolationError) and _is_fence(error):
                    raise FencedError from error
                raise database_error(error) from error
            else:
                break
        self.tail.acknowledged = self.last_mark

    async def check_tail(self) -> None:
        """Check after a failover that the engine has the last commit of this node.

        Raises:
            LostTailError: it does not.
            DatabaseError: the engine is out of reach.
        """
        if not self.tail.is_doubtful:
            return
        try:
            async with self._others.use() as connection:
                await self.tail.check(connection, self.node)
        except (*LOST_CONNECTION, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise database_error(error) from error

    async def _was_marked(self, fence: Statement) -> bool:
        while True:
            connection = await self._writing(is_sent=True)
            try:
                return await is_marked(connection, *fence[1])
            except LOST_CONNECTION:
                connection.terminate()

    async def _writing(self, *, is_sent: bool) -> asyncpg.Connection:
        """The connection for writes.

        Args:
            is_sent: whether a commit was sent whose outcome is unknown. Then it waits forever.

        Raises:
            DatabaseError: the engine is out of reach.
        """
        while True:
            if self._is_abandoned:
                raise _closed_error()
            if self._writer is not None and not self._writer.is_closed():
                self._lost_since = None
                return self._writer
            try:
                name = f"{self._name} writer"
                self._writer = await open_connection(self._url, name, node=self.node)
            except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
                self._lost_since = self._lost_since or time.monotonic()
                is_late = time.monotonic() - self._lost_since > self.patience_secs
                if not is_sent and is_late:
                    raise database_error(error) from error
                await asyncio.sleep(RECONNECT_SECS)

    async def copy_in(
        self, tables: Sequence[tuple[str, Sequence[str], Iterable[Sequence[Any]]]]
    ) -> int:
        """Copy rows into tables, all or none, and let their sequences continue after them.

        Args:
            tables: the name of each, its columns, and its rows.

        Returns:
            The number of rows.

        Raises:
            DatabaseError: nothing was copied.
        """
        count = 0
        try:
            connection = await self._writing(is_sent=False)
            async with connection.transaction():
                for table, columns, rows in tables:
                    status = await connection.copy_records_to_table(
                        table, records=map(to_engine, rows), columns=list(columns)
                    )
                    count += int(status.split()[-1])
                for table, column in await connection.fetch(_IDENTITIES):
                    await connection.execute(
                        "SELECT setval(pg_get_serial_sequence($1, $2),"
                        f" (SELECT coalesce(max({column}), 0) + 1 FROM {table}), false)",
                        table,
                        column,
                    )
        except (*LOST_CONNECTION, asyncpg.PostgresError, ValueError) as error:
            raise database_error(error) from error
        return count

    # Notifications.

    async def listen(
        self,
        channels: Sequence[str],
        callback: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> asyncpg.Connection:
        """Open a connection for notifications; see :func:`connect_listener`.

        Raises:
            DatabaseError: the engine is out of reach.
        """
        name = f"{self._name} listener"
        return await connect_listener(self._url, name, self.tail, channels, callback, on_end)

    async def notify(
        self, channel: str, payloads: Sequence[str], *, shows_commits: bool = False
    ) -> None:
        """Send notifications. They may be lost.

        Args:
            shows_commits: whether they contain what this node has committed. After a failover they
                are not sent before the engine is known to have the last commit.

        Raises:
            DatabaseError: they were not sent, or the answer was lost.
        """
        sql = "SELECT pg_notify(?1, t.payload) FROM unnest(?2::text[]) AS t (payload)"
        values = (channel, list(payloads))
        await self._fetch(self._others, sql, values, repeats=True, shows_commits=shows_commits)


def _closed_error() -> DatabaseError:
    return DatabaseError("the database is closed", is_transient=True)


async def _execute(connection: asyncpg.Connection, todo: Sequence[EngineStatement]) -> None:
    if len(todo) == 1 and len(todo[0].rows) == 1:
        await connection.execute(todo[0].sql, *todo[0].rows[0])
        return
    await connection.execute("BEGIN")
    try:
        for step in todo:
            if len(step.rows) == 1:
                await connection.execute(step.sql, *step.rows[0])
            else:
                await connection.executemany(step.sql, step.rows)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError):
        if not connection.is_closed():
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


def _is_fence(error: asyncpg.NotNullViolationError) -> bool:
    return (error.table_name, error.column_name) == ("marks", "n")
