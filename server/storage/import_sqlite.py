"""The copy of a data folder's SQLite database into an empty database in PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .database import Database
from .drivers.postgres import PostgresDriver
from .drivers.sqlite_files import check_file, readonly_uri, sqlite_errors
from .schema import MIGRATIONS, SchemaError

_NOT_COPIED = {("log", "n")}
"""Columns whose values PostgreSQL assigns itself."""
_CONVERTED = {"bigint": int, "double precision": float}


async def copy_into(path: Path, database: Database) -> int:
    """Copy the SQLite database at *path* into an empty database, all or nothing.

    Returns:
        The number of rows.

    Raises:
        SchemaError: the database at *path* cannot be used, or the other one is not empty.
        DatabaseError: one of them cannot be read or written; nothing was copied.
        OSError: *path* is a link.
    """
    version = check_file(path, len(MIGRATIONS))
    if version != len(MIGRATIONS):
        raise SchemaError(f"{path} has schema {version}: start the server once without a cluster")
    driver = database.driver
    assert isinstance(driver, PostgresDriver)
    [(used,)] = await driver.fetch(
        "SELECT EXISTS (SELECT 1 FROM sessions UNION ALL"
        " SELECT 1 FROM log UNION ALL SELECT 1 FROM runs) OR EXISTS (SELECT 1 FROM tokens)",
        (),
    )
    if used:
        raise SchemaError("the database of the cluster is not empty")
    types = {
        (table, column): kind
        for table, column, kind in await driver.fetch(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = current_schema()",
            (),
        )
    }
    with (
        sqlite_errors(),
        contextlib.closing(sqlite3.connect(readonly_uri(path), uri=True)) as source,
    ):
        source.execute("BEGIN")
        names = source.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        tables = []
        for (table,) in names.fetchall():
            columns = [
                row[1]
                for row in source.execute(f"PRAGMA table_info({table})")
                if (table, row[1]) not in _NOT_COPIED
            ]
            kinds = [types[table, column] for column in columns]
            tables.append((table, columns, _converted_rows(source, table, columns, kinds)))
        count = await driver.copy_in(tables)
    await driver.change(
        "SELECT setval('session_numbers', (SELECT max(n) FROM (SELECT 1 AS n UNION ALL"
        " SELECT max(n) FROM sessions UNION ALL SELECT max(owner) FROM log_segments) AS numbers))"
    )
    return count


def _converted_rows(
    source: sqlite3.Connection, table: str, columns: Sequence[str], kinds: Sequence[str]
) -> Iterator[list[Any]]:
    order = " ORDER BY rowid" if table in ("log", "steers") else ""
    condition = " WHERE name <> 'wal'" if table == "server" else ""
    cursor = source.execute(f"SELECT {', '.join(columns)} FROM {table}{condition}{order}")
    for row in cursor:
        yield [_converted(value, kind) for value, kind in zip(row, kinds, strict=True)]


def _converted(value: Any, kind: str) -> Any:
    """The value as PostgreSQL's column needs it: SQLite's columns take any type."""
    if value is None:
        return None
    if kind == "bytea":
        return value.encode() if isinstance(value, str) else bytes(value)
    if kind == "text":
        return value.decode() if isinstance(value, bytes) else str(value)
    return _CONVERTED[kind](value)
