"""The database: every SQL statement that reads or writes it.

One SQLite file in WAL mode, with one connection that writes, one that reads, so
that a long replay never delays a commit, and one that writes the WAL back, which
would delay one, too. The only place that imports aiosqlite.

Writes are described by :data:`Statement` values, made by the functions at the
end of this module and carried out by :meth:`Database.write`, all of one call in
one transaction. Who writes when is the business of ``log.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sqlite3
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

from . import schema
from .schema import FileRow, LogRow, RunRow, SchemaError, SessionRow, TokenRow, TurnRow

Statement = tuple[str, Sequence[Any]]
"""SQL and its parameters."""

DatabaseError = sqlite3.Error
"""What a failed read or write raises: a full disk, a locked file."""

BUSY_TIMEOUT_MS = 2000
WAL_PAGES = 16_384
"""At so many (64 MiB) the writer itself writes the WAL back: what is written without a pause
leaves no moment in which it could begin anew."""


def may_pass(error: DatabaseError) -> bool:
    """Whether the same write may succeed later, as after a full disk or a lock.

    What the database has understood and refuses (a duplicate, say) it refuses for ever.
    """
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
    return type(error) is sqlite3.DatabaseError  # a damaged file: it may be put right


def _columns(row_type: type[Any]) -> str:
    return ", ".join(field.name for field in dataclasses.fields(row_type))


_SESSION = f"SELECT {_columns(SessionRow)} FROM sessions "
_TURN = f"SELECT {_columns(TurnRow)} FROM turns "


class _SqliteConnection(aiosqlite.Connection):
    """A connection whose transactions are one trip to its thread and back.

    A trip costs more than a statement does, and a turn's start and end take several.
    """

    async def write(self, statements: Sequence[Statement]) -> None:
        """Carry out *statements*, all or none of them."""
        await self._execute(self._write, statements)  # type: ignore[no-untyped-call]

    def _write(self, statements: Sequence[Statement]) -> None:
        connection = self._conn
        try:
            self._write_all(connection, statements)
        except (MemoryError, OSError) as error:
            raise sqlite3.OperationalError(f"not written: {error!r}") from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise sqlite3.DataError(f"no value for SQLite: {error}") from error

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
    async def open(cls, path: Path, *, sync: str = "normal") -> Database:
        """Open or create the database at *path* and bring its schema up to date.

        Raises:
            SchemaError: a newer clawdforge made it.
        """
        refuse_links(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        async with contextlib.AsyncExitStack() as undo:

            async def connect() -> _SqliteConnection:
                connection = await _connect(path)
                undo.push_async_callback(connection.close)
                return connection

            writer = await connect()
            await writer.execute_fetchall("PRAGMA journal_mode = WAL")
            await writer.execute_fetchall(f"PRAGMA synchronous = {sync.upper()}")
            await writer.execute_fetchall(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            for script in schema.migrations(await _version(writer)):
                await writer.executescript(script)
            reader, checkpointer = await connect(), await connect()
            await _version(checkpointer)  # SQLite opens its files when they are first needed: now
            opened = cls(writer, reader, checkpointer)
            undo.pop_all()
        return opened

    @classmethod
    async def look(cls, path: Path) -> Database:
        """Open the database at *path* to read it only, also beside the server that writes it.

        Raises:
            SchemaError: another version of clawdforge made it.
        """
        reader = await _connect(read_only(path), uri=True)
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
        """Write what was committed back from the WAL, beside the writer, and begin it anew.

        Raises:
            StoreError: it could not all be written back; the WAL has it still.
        """
        await self._checkpointer.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
        # The first commit behind it begins the WAL anew, and waits for the disk: not a prompt's.
        await self.write([set_server_value("wal", b"")])

    async def write(self, statements: Sequence[Statement]) -> None:
        """Carry out *statements*, all or none of them.

        Raises:
            StoreError: none was carried out; :func:`may_pass` says whether that may change.
        """
        if statements:
            await self._writer.write(statements)

    async def _fetch(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._reader.execute_fetchall(sql, parameters)]

    async def session(self, session_id: str) -> SessionRow | None:
        rows = await self._fetch(_SESSION + "WHERE id = ?", session_id)
        return SessionRow(*rows[0]) if rows else None

    async def has_session(self, app_name: str, session_id: str) -> bool:
        return bool(
            await self._fetch(
                "SELECT 1 FROM sessions WHERE id = ? AND app_name = ?", session_id, app_name
            )
        )

    async def sessions_of(self, app_name: str, *, include_closed: bool) -> list[SessionRow]:
        """An app's sessions, the newest first."""
        where = "WHERE app_name = ?" + ("" if include_closed else " AND closed_at IS NULL")
        rows = await self._fetch(_SESSION + where + " ORDER BY n DESC", app_name)
        return [SessionRow(*row) for row in rows]

    async def all_sessions(self, *, include_closed: bool) -> list[SessionRow]:
        """Every app's sessions, the newest first."""
        where = "" if include_closed else "WHERE closed_at IS NULL "
        rows = await self._fetch(f"{_SESSION}{where}ORDER BY n DESC")
        return [SessionRow(*row) for row in rows]

    async def session_page(
        self,
        app_name: str,
        *,
        before: int | None,
        limit: int,
        cwd: str | None,
        include_closed: bool = False,
    ) -> list[SessionRow]:
        """At most *limit* of an app's sessions, the newest first.

        Args:
            before: only those with smaller numbers.
            cwd: only those in that folder, and those whose client named it.
        """
        where = "WHERE app_name = ?" + ("" if include_closed else " AND closed_at IS NULL")
        values: list[Any] = [app_name]
        if before is not None:
            where += " AND n < ?"
            values.append(before)
        if cwd is not None:
            where += " AND ? IN (cwd, client_cwd)"
            values.append(cwd)
        rows = await self._fetch(_SESSION + where + " ORDER BY n DESC LIMIT ?", *values, limit)
        return [SessionRow(*row) for row in rows]

    async def open_counts(self) -> dict[str, int]:
        """How many sessions each app has open."""
        rows = await self._fetch(
            "SELECT app_name, count(*) FROM sessions WHERE closed_at IS NULL GROUP BY app_name"
        )
        return dict(rows)

    async def last_session_number(self) -> int:
        rows = await self._fetch("SELECT coalesce(max(n), 0) FROM sessions")
        return int(rows[0][0])

    async def idle_sessions(self, before: float) -> list[str]:
        """Ids of open sessions whose last turn, or creation, was before that time."""
        rows = await self._fetch(
            "SELECT id FROM sessions"
            " WHERE closed_at IS NULL AND coalesce(last_turn_at, created_at) <= ?",
            before,
        )
        return [row[0] for row in rows]

    async def sessions_closed(self, before: float) -> list[SessionRow]:
        rows = await self._fetch(
            _SESSION + "WHERE closed_at IS NOT NULL AND closed_at <= ?",
            before,
        )
        return [SessionRow(*row) for row in rows]

    async def sessions_to_recover(self) -> list[SessionRow]:
        """Those with a turn that has not ended, or a permission request that has no outcome."""
        rows = await self._fetch(
            _SESSION + "WHERE n IN (SELECT session FROM turns WHERE last_seq IS NULL"
            " UNION SELECT session FROM asked)"
        )
        return [SessionRow(*row) for row in rows]

    async def turn(self, session: int, turn_index: int) -> TurnRow | None:
        rows = await self._fetch(
            _TURN + "WHERE session = ? AND turn_index = ?", session, turn_index
        )
        return TurnRow(*rows[0]) if rows else None

    async def turn_by_client_id(self, session: int, client_id: str) -> TurnRow | None:
        rows = await self._fetch(_TURN + "WHERE session = ? AND client_id = ?", session, client_id)
        return TurnRow(*rows[0]) if rows else None

    async def asked(self, session: int) -> list[tuple[str, int]]:
        """Permission requests that have no outcome: each id, and the index of its turn."""
        rows = await self._fetch(
            "SELECT request_id, turn_index FROM asked WHERE session = ?", session
        )
        return [(row[0], row[1]) for row in rows]

    async def unfinished_turns(self, session: int) -> list[TurnRow]:
        rows = await self._fetch(
            _TURN + "WHERE session = ? AND last_seq IS NULL ORDER BY turn_index", session
        )
        return [TurnRow(*row) for row in rows]

    async def last_turn_index(self, session: int) -> int:
        rows = await self._fetch(
            "SELECT coalesce(max(turn_index), 0) FROM turns WHERE session = ?", session
        )
        return int(rows[0][0])

    async def head(self, session: int) -> int:
        """The newest stored position of a session's log."""
        rows = await self._fetch(
            "SELECT coalesce(max(last_seq), 0) FROM log WHERE session = ?", session
        )
        return int(rows[0][0])

    async def read_log(self, session: int, after: int, size: int) -> list[LogRow]:
        """The next rows that hold entries after that position, in order.

        As many as it takes to reach *size* bytes (one at least, where there is
        one), so that a page costs the same memory whatever the entries' size.
        """
        rows = await self._fetch(
            "SELECT session, first_seq, last_seq, body FROM log JOIN ("
            "   SELECT n, sum(length(body)) OVER (ORDER BY last_seq) - length(body) AS before"
            "   FROM log WHERE session = ? AND last_seq > ? ORDER BY last_seq LIMIT 1024"
            ") USING (n) WHERE before < ? ORDER BY last_seq",
            session,
            after,
            size,
        )
        return [LogRow(*row) for row in rows]

    async def server_value(self, name: str) -> bytes | None:
        """Something that the server keeps for itself."""
        rows = await self._fetch("SELECT value FROM server WHERE name = ?", name)
        return rows[0][0] if rows else None

    async def tokens(self) -> list[TokenRow]:
        rows = await self._fetch(f"SELECT {_columns(TokenRow)} FROM tokens ORDER BY name")
        return [TokenRow(*row) for row in rows]

    async def files(self, hashes: Iterable[bytes]) -> list[FileRow]:
        """The uploads with those hashes, in their order; unknown ones are left out."""
        found: list[FileRow] = []
        for digest in hashes:
            rows = await self._fetch(
                f"SELECT {_columns(FileRow)} FROM files WHERE hash = ?", digest
            )
            found.extend(FileRow(*row) for row in rows)
        return found

    async def all_files(self) -> list[FileRow]:
        """Every upload that is there."""
        rows = await self._fetch(f"SELECT {_columns(FileRow)} FROM files")
        return [FileRow(*row) for row in rows]

    async def unfinished_runs(self) -> list[str]:
        """Ids of the runs that have no end yet."""
        rows = await self._fetch("SELECT id FROM runs WHERE stop_reason IS NULL")
        return [row[0] for row in rows]

    async def prewarmed(self) -> list[str]:
        """Ids of agents that were prewarmed and never had an owner."""
        return [row[0] for row in await self._fetch("SELECT id FROM prewarmed")]

    async def files_expired(self, before: float) -> list[FileRow]:
        rows = await self._fetch(
            f"SELECT {_columns(FileRow)} FROM files WHERE expires_at <= ?", before
        )
        return [FileRow(*row) for row in rows]


async def _connect(path: Path | str, *, uri: bool = False) -> _SqliteConnection:
    connection = _SqliteConnection(
        # isolation_level None: a lone statement is its own transaction, and nothing
        # opens one behind our back.
        lambda: sqlite3.connect(path, isolation_level=None, uri=uri),
        iter_chunk_size=64,
    )
    await connection
    await connection.execute_fetchall(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def read_only(path: Path) -> str:
    """The address of a database that is only to be read.

    Raises:
        OSError: it is a link, or a file beside it is.
    """
    refuse_links(path)
    return f"file:{quote(str(path))}?mode=ro"


async def _version(connection: aiosqlite.Connection) -> int:
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    return int(rows[0][0])


def refuse_links(path: Path) -> None:
    """Check that the database and the files beside it are files: agents can write in that folder.

    Raises:
        OSError: one is a link or something else.
    """
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(file.lstat().st_mode):
                raise OSError(errno.ELOOP, "is a link or no file, and is not opened", str(file))


def copy_database(source: Path, target: Path) -> None:
    """Copy the database as it is at one moment into a new file, whoever writes it meanwhile.

    Raises:
        OSError: there is something at *target* already.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        contextlib.closing(sqlite3.connect(read_only(source), uri=True)) as a,
        contextlib.closing(sqlite3.connect(target)) as b,
    ):
        a.backup(b)
        b.execute("PRAGMA journal_mode = DELETE")  # one file, without a WAL beside it
    target.chmod(0o600)


def check_file(path: Path) -> int:
    """Look through the whole database at *path*.

    Returns:
        Its schema's version.

    Raises:
        SchemaError: it is damaged, none of ours, or newer than this program.
        StoreError: it is no database at all.
    """
    with contextlib.closing(sqlite3.connect(read_only(path), uri=True)) as connection:
        [(found,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    if found != "ok":
        raise SchemaError(f"it is damaged: {found}")
    known = len(schema.MIGRATIONS)
    if not 0 < version <= known:
        raise SchemaError(f"it has schema {version}, and this program knows 1 to {known}")
    return int(version)


def _insert(table: str, row: Any) -> Statement:
    names = [field.name for field in dataclasses.fields(row)]
    marks = ", ".join("?" * len(names))
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",
        [getattr(row, name) for name in names],
    )


def insert_session(row: SessionRow) -> Statement:
    return _insert("sessions", row)


def insert_turn(row: TurnRow) -> Statement:
    return _insert("turns", row)


def insert_token(row: TokenRow) -> Statement:
    return _insert("tokens", row)


def insert_file(row: FileRow) -> Statement:
    return _insert("files", row)


def insert_run(row: RunRow) -> Statement:
    return _insert("runs", row)


def end_run(
    run_id: str,
    *,
    result_bytes: int | None,
    duration_ms: int,
    stop_reason: str,
    error: str | None,
) -> Statement:
    return (
        "UPDATE runs SET result_bytes = ?, duration_ms = ?, stop_reason = ?, error = ?"
        " WHERE id = ?",
        (result_bytes, duration_ms, stop_reason, error, run_id),
    )


def end_lost_runs() -> Statement:
    """End the runs that a killed server left."""
    return (
        "UPDATE runs SET stop_reason = 'error', error = 'server_restarted'"
        " WHERE stop_reason IS NULL",
        (),
    )


def set_server_value(name: str, value: bytes) -> Statement:
    return "INSERT OR REPLACE INTO server (name, value) VALUES (?, ?)", (name, value)


def delete_token(name: str) -> Statement:
    return "DELETE FROM tokens WHERE name = ?", (name,)


def insert_prewarmed(session_id: str) -> Statement:
    return "INSERT INTO prewarmed (id) VALUES (?)", (session_id,)


def delete_prewarmed(session_id: str) -> Statement:
    return "DELETE FROM prewarmed WHERE id = ?", (session_id,)


def delete_file(digest: bytes) -> Statement:
    return "DELETE FROM files WHERE hash = ?", (digest,)


def insert_log(rows: Sequence[LogRow]) -> list[Statement]:
    """All of *rows*, in one statement as long as SQLite's 999 parameters suffice."""
    return [_insert_log(rows[start : start + 240]) for start in range(0, len(rows), 240)]


def _insert_log(rows: Sequence[LogRow]) -> Statement:
    marks = ", ".join(["(?, ?, ?, ?)"] * len(rows))
    return (
        f"INSERT INTO log (session, first_seq, last_seq, body) VALUES {marks}",
        [value for row in rows for value in (row.session, row.first_seq, row.last_seq, row.body)],
    )


def start_turn(
    session: int, turn_index: int, *, first_seq: int, at: float, sent: bool
) -> list[Statement]:
    """*sent*: the prompt reached the agent, which so has a conversation to lose."""
    return [
        (
            # Its prompt is in the log now: one copy is enough.
            "UPDATE turns SET first_seq = ?, prompt = x'' WHERE session = ? AND turn_index = ?",
            (first_seq, session, turn_index),
        ),
        (
            "UPDATE sessions SET turn_count = turn_count + 1, last_turn_at = ?,"
            " has_context = max(has_context, ?) WHERE n = ?",
            (at, int(sent), session),
        ),
    ]


def end_turn(
    session: int,
    turn_index: int,
    *,
    last_seq: int,
    stop_reason: str,
    error: bytes | None,
    duration_ms: int,
    at: float,
) -> list[Statement]:
    return [
        (
            "UPDATE turns SET last_seq = ?, stop_reason = ?, error = ?, duration_ms = ?"
            " WHERE session = ? AND turn_index = ?",
            (last_seq, stop_reason, error, duration_ms, session, turn_index),
        ),
        ("UPDATE sessions SET last_turn_at = ? WHERE n = ?", (at, session)),
    ]


def move_workspaces(folder: str) -> Statement:
    """Folders of the sessions' own are in *folder*, wherever the data folder was before."""
    return (
        "UPDATE sessions SET cwd = ?1 || id"
        " WHERE cwd LIKE '%/workspaces/' || id AND cwd != ?1 || id",
        (f"{folder}/",),
    )


def set_meta(session: int, meta: str) -> Statement:
    return "UPDATE sessions SET meta = ? WHERE n = ?", (meta, session)


def set_agent_state(session: int, state: str) -> Statement:
    return "UPDATE sessions SET agent_state = ? WHERE n = ?", (state, session)


def set_settings(session: int, model: str | None, settings: str) -> Statement:
    return "UPDATE sessions SET model = ?, settings = ? WHERE n = ?", (model, settings, session)


def close_session(session: int, reason: str, at: float) -> Statement:
    return (
        "UPDATE sessions SET closed_at = ?, close_reason = ? WHERE n = ? AND closed_at IS NULL",
        (at, reason, session),
    )


def ask(session: int, request_id: str, turn_index: int) -> Statement:
    """A permission request waits for a client."""
    return "INSERT INTO asked VALUES (?, ?, ?)", (session, request_id, turn_index)


def resolve(session: int, request_id: str) -> Statement:
    """It has its outcome."""
    return "DELETE FROM asked WHERE session = ? AND request_id = ?", (session, request_id)


def delete_session(session: int) -> list[Statement]:
    return [
        ("DELETE FROM log WHERE session = ?", (session,)),
        ("DELETE FROM turns WHERE session = ?", (session,)),
        ("DELETE FROM sessions WHERE n = ?", (session,)),
    ]


def audit(session_id: str, app_name: str, event: str, at: float, detail: str) -> Statement:
    return (
        "INSERT INTO session_events (session_id, app_name, event, at, detail)"
        " VALUES (?, ?, ?, ?, ?)",
        (session_id, app_name, event, at, detail),
    )
