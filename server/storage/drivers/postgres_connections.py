"""Connections to PostgreSQL: how they are opened, shared and replaced, and their errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence

import asyncpg

from ...errors import DatabaseError
from .migrations import pending_scripts
from .postgres_tail import EngineTail

logger = logging.getLogger(__name__)

CONNECT_SECS = 5.0
MIGRATION_LOCK = 7_222_417
"""The key of the advisory lock of a migration."""
STATEMENTS = 1000
"""Prepared statements of a connection."""

_KEEP_ALIVE = {
    "TCP_USER_TIMEOUT": 10_000,
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 2,
}
IDLE_MS = 3000
"""The engine rolls back a transaction that is idle for longer: it could block a takeover."""

_WITHOUT_TIMEOUT = (
    "SELECT set_config('transaction_timeout', '0', false)"
    " WHERE coalesce(current_setting('transaction_timeout', true), '0') <> '0'"
)
"""PostgreSQL 17 and newer have this setting. Older versions reject it at the start."""
MIGRATION_WAIT_SECS = 60.0
"""The longest time for which a migration waits for transactions that use the tables."""
MIGRATION_LOCK_MS = 1000
"""A migration that waits for a lock for longer gives up the locks that it has, and begins again:
meanwhile the other nodes would wait, too."""

LOST_CONNECTION = (
    OSError,
    TimeoutError,
    EOFError,
    ssl.SSLError,
    asyncpg.PostgresConnectionError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,
)
"""The connection is lost, or the engine takes no connections or no writes at the moment."""
_TRANSIENT = (
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.PostgresIOError,
)


def database_error(error: Exception) -> DatabaseError:
    """Convert an error of asyncpg."""
    message = str(error) or type(error).__name__
    if isinstance(error, (asyncpg.DataError, ValueError)) and not isinstance(
        error, asyncpg.PostgresError
    ):
        return DatabaseError(f"no value for PostgreSQL: {message}", is_transient=False)
    is_transient = isinstance(error, (*LOST_CONNECTION, *_TRANSIENT))
    return DatabaseError(message, is_transient=is_transient)


async def open_connection(
    url: str,
    name: str,
    *,
    read_only: bool = False,
    is_durable: bool = True,
    node: int | None = None,
) -> asyncpg.Connection:
    """Open a connection to a server that takes writes.

    It overrides the defaults of the database. No timeout ends a commit: a commit that waits for a
    standby would then be visible, although it is reported as failed.

    Args:
        node: the number of this node, for the columns that name the node of a row.
        is_durable: whether a commit waits for the disk, and for the standby.
    """
    connection = await asyncpg.connect(
        url,
        timeout=CONNECT_SECS,
        command_timeout=None,
        statement_cache_size=STATEMENTS,
        max_cached_statement_lifetime=0,
        target_session_attrs="read-write",
        server_settings={
            "application_name": f"clawdforge {name}",
            "statement_timeout": "0",
            "lock_timeout": "0",
            "idle_in_transaction_session_timeout": str(IDLE_MS),
            "idle_session_timeout": "0",
            "default_transaction_isolation": "read committed",
            "default_transaction_read_only": "off",
            "timezone": "UTC",
            "jit": "off",
            "clawdforge.node": "" if node is None else str(node),
        },
    )
    try:
        _notice_lost_machine(connection)
        await connection.execute(_WITHOUT_TIMEOUT)
        # A stricter setting of the operator stays.
        if not is_durable:
            await connection.execute("SET synchronous_commit = off")
            return connection
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') <> 'remote_apply'"
        )
        if read_only:
            await connection.execute("SET default_transaction_read_only = on")
    except BaseException:
        connection.terminate()
        raise
    return connection


def _notice_lost_machine(connection: asyncpg.Connection) -> None:
    """End a connection whose packets are not acknowledged, instead of after a quarter of an hour.

    A statement may take any time: it is the kernel of the other machine that acknowledges.
    """
    transport: asyncio.Transport = connection._transport
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not on every system
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


class Connections:
    """Connections that several tasks use, each for one statement at a time.

    Args:
        limit: the number of open connections. Further tasks wait for one.
        tail: learns of each new connection.
    """

    def __init__(
        self, url: str, name: str, limit: int, tail: EngineTail, *, read_only: bool = False
    ) -> None:
        self._tail = tail
        self._url = url
        self._name = name
        self._read_only = read_only
        self._free: list[asyncpg.Connection] = []
        self._used: set[asyncpg.Connection] = set()
        self._permits = asyncio.Semaphore(limit)
        self._is_closed = self._is_suspended = False

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[asyncpg.Connection]:
        """Take a connection, or open one.

        Raises:
            DatabaseError: they are suspended.
        """
        async with self._permits:
            if self._is_suspended:
                raise DatabaseError("the database has not answered for long", is_transient=True)
            while self._free and self._free[-1].is_closed():
                self._free.pop()
            if self._free:
                connection = self._free.pop()
            else:
                connection = await open_connection(self._url, self._name, read_only=self._read_only)
            self._used.add(connection)
            is_whole = False
            try:
                await self._tail.note(connection)
                yield connection
                is_whole = True
            except asyncpg.PostgresError as error:
                is_whole = not isinstance(error, LOST_CONNECTION)
                raise
            finally:
                self._used.discard(connection)
                if is_whole and not (connection.is_closed() or self._is_closed):
                    self._free.append(connection)
                else:
                    connection.terminate()

    def close(self) -> None:
        """End all connections, also those that are being opened."""
        self._is_closed = True
        self.drop()

    def suspend(self, *, is_suspended: bool) -> None:
        """Let statements fail at once: on half-open connections they would wait forever."""
        self._is_suspended = is_suspended
        if is_suspended:
            self.drop()

    def drop(self) -> None:
        """End the open connections, and the statements that wait for an answer on them."""
        for connection in (*self._free, *self._used):
            connection.terminate()
        self._free.clear()


async def migrate_engine(connection: asyncpg.Connection, migrations: Sequence[str]) -> None:
    """Bring the schema up to date. One server at a time does it.

    Raises:
        SchemaError: it declares that older programs cannot use it.
        LockNotAvailableError: a transaction has used a table for too long.
    """
    deadline = time.monotonic() + MIGRATION_WAIT_SECS
    while True:
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
                await connection.execute(f"SET LOCAL lock_timeout = {MIGRATION_LOCK_MS}")
                await _migrate(connection, migrations)
            return
        except asyncpg.LockNotAvailableError:
            if time.monotonic() > deadline:
                raise
            logger.warning("a transaction uses the tables, so the migration waits for its end")
            await asyncio.sleep(MIGRATION_LOCK_MS / 1000)


async def _migrate(connection: asyncpg.Connection, migrations: Sequence[str]) -> None:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_version"
        " (one BOOLEAN PRIMARY KEY CHECK (one), version BIGINT NOT NULL,"
        " min_version BIGINT NOT NULL)"
    )
    row = await connection.fetchrow("SELECT version, min_version FROM schema_version")
    version, min_version = row if row is not None else (0, 0)
    if version > len(migrations) >= min_version:
        return  # a newer server has added columns that this one does not need
    for number, script in pending_scripts(version, migrations):
        await connection.execute(script)
        await connection.execute(
            "INSERT INTO schema_version (one, version, min_version) VALUES (true, $1, $1)"
            " ON CONFLICT (one) DO UPDATE SET version = excluded.version",
            number,
        )
