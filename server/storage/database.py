"""The SQLite database: its connections and its file.

The file is in WAL mode and has three connections: a writer, a reader and a checkpointer, so that
neither a long read nor a checkpoint delays a commit. No other module imports aiosqlite.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

from ..errors import DatabaseError
from . import schema, statements
from .schema import SchemaError, Statement
from .segments import head_lines

SIDECARS = ("-wal", "-shm", "-journal")
"""The endings of the names of SQLite's other files."""
BUSY_TIMEOUT_MS = 2000
WAL_PAGES = 16_384
"""The size of the WAL (64 MiB) above which a commit checkpoints it. Without this limit the WAL
would grow under continuous writes, because the checkpointer could never restart it."""


def _is_transient(error: sqlite3.Error) -> bool:
    """Whether the same operation may succeed later, as after a full disk or a lock.

    A statement that the database rejects, a duplicate for example, is rejected every time.
    """
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
    return type(error) is sqlite3.DatabaseError  # a damaged file, which may be repaired


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    """Raise :class:`DatabaseError` for the errors of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseError(str(error), is_transient=_is_transient(error)) from error


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


class Database:
    """The open database."""

    def __init__(
        self, writer: _SqliteConnection, reader: _SqliteConnection, checkpointer: _SqliteConnection
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._checkpointer = checkpointer

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        sync: str = "normal",
        wal_pages: int = WAL_PAGES,
        migrations: Sequence[str] = schema.MIGRATIONS,
    ) -> Database:
        """Open or create the database at *path* and bring its schema up to date.

        Args:
            sync: SQLite's ``synchronous``, ``normal`` or ``full``.
            wal_pages: the size of the WAL above which a commit checkpoints it.
            migrations: the scripts that make the schema, one for each version.

        Raises:
            SchemaError: a newer version of clawdforge created it.
            DatabaseError: it cannot be opened.
            OSError: a file cannot be created, or is a link.
        """
        check_regular_files(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        async with contextlib.AsyncExitStack() as undo:
            undo.enter_context(_database_errors())

            async def connect() -> _SqliteConnection:
                connection = await _connect(path)
                undo.push_async_callback(connection.close)
                return connection

            writer = await connect()
            await writer.execute_fetchall("PRAGMA journal_mode = WAL")
            await writer.execute_fetchall(f"PRAGMA synchronous = {sync.upper()}")
            await writer.execute_fetchall(f"PRAGMA wal_autocheckpoint = {wal_pages}")
            for script in schema.migrations(await _version(writer), migrations):
                await writer.executescript(script)
            reader, checkpointer = await connect(), await connect()
            await _version(checkpointer)  # SQLite opens the file at the first use
            opened = cls(writer, reader, checkpointer)
            undo.pop_all()
        return opened

    @classmethod
    async def open_readonly(cls, path: Path) -> Database:
        """Open the database at *path* for reading, also while a server writes it.

        Raises:
            SchemaError: another version of clawdforge created it.
            DatabaseError: it cannot be opened.
            OSError: it is a link.
        """
        with _database_errors():
            reader = await _connect(readonly_uri(path), uri=True)
            try:
                schema.check(await _version(reader))
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
        with _database_errors():
            await self._checkpointer.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
        # The next commit restarts the WAL and waits for the disk. A prompt's commit should not.
        await self.write([statements.set_server_value("wal", b"")])

    async def write(self, transaction: Sequence[Statement]) -> None:
        """Execute statements in one transaction.

        Raises:
            DatabaseError: none was executed.
        """
        if transaction:
            with _database_errors():
                await self._writer.write(transaction)

    async def interrupt(self) -> None:
        """Stop the query that is being executed."""
        await self._reader.interrupt()

    async def fetch(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query.

        Raises:
            DatabaseError: the database cannot be read.
        """
        with _database_errors():
            return [tuple(row) for row in await self._reader.execute_fetchall(sql, parameters)]


def casefold(value: object) -> str | None:
    """A text in the form in which texts are compared; None for other values. Also known to SQL."""
    return unicodedata.normalize("NFKC", value).casefold() if isinstance(value, str) else None


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


def readonly_uri(path: Path) -> str:
    """The URI that opens a database for reading only.

    Raises:
        OSError: the database, or its WAL, is a link.
    """
    check_regular_files(path)
    return f"file:{quote(str(path))}?mode=ro"


async def _version(connection: aiosqlite.Connection) -> int:
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    return int(rows[0][0])


def check_regular_files(path: Path) -> None:
    """Check that the database, its WAL and its journal are regular files, as far as they exist.

    Agents can write in their folder.

    Raises:
        OSError: one is a link or of another type.
    """
    for suffix in ("", *SIDECARS):
        file = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(file.lstat().st_mode):
                raise OSError(errno.ELOOP, "is a link or no file, and is not opened", str(file))


def copy_database(source: Path, target: Path) -> None:
    """Copy a consistent snapshot of the database into a new file, also while a server writes it.

    Raises:
        DatabaseError: it cannot be read or written.
        OSError: *target* exists.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        _database_errors(),
        contextlib.closing(sqlite3.connect(readonly_uri(source), uri=True)) as original,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # a single file without a WAL
    target.chmod(0o600)


def check_file(path: Path) -> int:
    """Check the integrity of the database at *path*.

    Returns:
        The version of its schema.

    Raises:
        SchemaError: it is damaged, or another program or a newer version created it.
        DatabaseError: it is not a database, or cannot be read.
        OSError: it is a link.
    """
    with (
        _database_errors(),
        contextlib.closing(sqlite3.connect(readonly_uri(path), uri=True)) as connection,
    ):
        [(found,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    if found != "ok":
        raise SchemaError(f"it is damaged: {found}")
    known = len(schema.MIGRATIONS)
    if not 0 < version <= known:
        raise SchemaError(f"it has schema {version}, and this program knows 1 to {known}")
    return int(version)
