"""The SQLite driver: its connections and its file.

The file is in WAL mode and has three connections: a writer, a reader and a checkpointer, so that
neither a long read nor a checkpoint delays a commit. No other module imports aiosqlite.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import aiosqlite

from ...errors import DatabaseError
from .base import Statement
from .functions import casefold, head_lines
from .migrations import check_version, pending_scripts
from .sqlite_files import check_regular_files, readonly_uri, sqlite_errors

BUSY_TIMEOUT_MS = 2000
WAL_PAGES = 16_384
"""The size of the WAL (64 MiB) above which a commit checkpoints it. Without this limit the WAL
would grow under continuous writes, because the checkpointer could never restart it."""


class _SqliteConnection(aiosqlite.Connection):
    """A connection that executes a transaction in one call to its thread.

    A call costs more than a statement, and the start of a turn has several statements.
    """

    async def write(self, statements: Sequence[Statement]) -> None:
        """Execute *statements* in one transaction."""
        await self._execute(self._write, statements)  # type: ignore[no-untyped-call]

    def _write(self, statements: Sequence[Statement]) -> None:
        """Execute *statements*, in the connection's thread."""
        connection = self._conn
        try:
            self._write_all(connection, statements)
        except (MemoryError, OSError) as error:
            raise DatabaseError(f"not written: {error!r}", is_transient=True) from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise DatabaseError(f"no value for SQLite: {error}", is_transient=False) from error

    @staticmethod
    def _write_all(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
        if len(statements) == 1:
            connection.execute(*statements[0])
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(*statement)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


class SqliteDriver:
    """The open file."""

    engine: Literal["sqlite"] = "sqlite"

    def __init__(
        self, writer: _SqliteConnection, reader: _SqliteConnection, checkpointer: _SqliteConnection
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._checkpointer = checkpointer

    @classmethod
    async def open(
        cls, path: Path, *, sync: str, wal_pages: int, migrations: Sequence[str]
    ) -> SqliteDriver:
        """Open or create the file. See :meth:`Database.open`."""
        check_regular_files(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        async with contextlib.AsyncExitStack() as undo:
            undo.enter_context(sqlite_errors())

            async def connect() -> _SqliteConnection:
                connection = await _connect(path)
                undo.push_async_callback(connection.close)
                return connection

            writer = await connect()
            await writer.execute_fetchall("PRAGMA journal_mode = WAL")
            await writer.execute_fetchall(f"PRAGMA synchronous = {sync.upper()}")
            await writer.execute_fetchall(f"PRAGMA wal_autocheckpoint = {wal_pages}")
            for number, script in pending_scripts(await _version(writer), migrations):
                await writer.executescript(
                    f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
                )
            reader, checkpointer = await connect(), await connect()
            await _version(checkpointer)  # SQLite opens the file at the first use
            opened = cls(writer, reader, checkpointer)
            undo.pop_all()
        return opened

    @classmethod
    async def open_readonly(cls, path: Path, version: int) -> SqliteDriver:
        """Open the file for reading. See :meth:`Database.open_readonly`."""
        with sqlite_errors():
            reader = await _connect(readonly_uri(path), uri=True)
            try:
                check_version(await _version(reader), version)
            except BaseException:
                await reader.close()
                raise
        return cls(reader, reader, reader)

    async def close(self) -> None:
        for connection in {self._checkpointer, self._reader, self._writer}:
            await connection.close()

    async def checkpoint(self) -> None:
        """Copy what was committed from the WAL to the database file, and restart the WAL.

        Raises:
            DatabaseError: it could not be copied; the WAL keeps it.
        """
        with sqlite_errors():
            await self._checkpointer.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")

    async def write(self, transaction: Sequence[Statement]) -> None:
        with sqlite_errors():
            await self._writer.write(transaction)

    def abandon(self) -> None:
        """Do nothing: a transaction of a file is short."""

    async def interrupt(self) -> None:
        await self._reader.interrupt()

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with sqlite_errors():
            return [tuple(row) for row in await self._reader.execute_fetchall(sql, parameters)]

    async def fetch_as_writer(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query on the writer's connection, which has settings of its own."""
        with sqlite_errors():
            return [tuple(row) for row in await self._writer.execute_fetchall(sql)]


async def _connect(path: Path | str, *, uri: bool = False) -> _SqliteConnection:
    connection = _SqliteConnection(
        # isolation_level None: a single statement is a transaction of its own, and the sqlite3
        # module begins none by itself.
        lambda: sqlite3.connect(path, isolation_level=None, uri=uri),
        iter_chunk_size=64,
    )
    await connection
    await connection.create_function("casefold", 1, casefold, deterministic=True)
    await connection.create_function("head_lines", 2, head_lines, deterministic=True)
    await connection.execute_fetchall(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


async def _version(connection: aiosqlite.Connection) -> int:
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    return int(rows[0][0])
