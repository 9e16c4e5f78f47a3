"""The files of an SQLite database: their types, a copy, and a check."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from ...errors import DatabaseError
from .base import SchemaError

SIDECARS = ("-wal", "-shm", "-journal")
"""The endings of the names of SQLite's other files."""


def _is_transient(error: sqlite3.Error) -> bool:
    """Whether the same operation may succeed later, as after a full disk or a lock.

    A statement that the database rejects, a duplicate for example, is rejected every time.
    """
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
    return type(error) is sqlite3.DatabaseError  # a damaged file, which may be repaired


@contextlib.contextmanager
def sqlite_errors() -> Iterator[None]:
    """Raise :class:`DatabaseError` for the errors of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseError(str(error), is_transient=_is_transient(error)) from error


def readonly_uri(path: Path) -> str:
    """The URI that opens a database for reading only.

    Raises:
        OSError: the database, or its WAL, is a link.
    """
    check_regular_files(path)
    return f"file:{quote(str(path))}?mode=ro"


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
        sqlite_errors(),
        contextlib.closing(sqlite3.connect(readonly_uri(source), uri=True)) as original,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # a single file without a WAL
    target.chmod(0o600)


def check_file(path: Path, known: int) -> int:
    """Check the integrity of the database at *path*.

    Args:
        known: the newest version of the schema.

    Returns:
        The version of its schema.

    Raises:
        SchemaError: it is damaged, or another program or a newer version created it.
        DatabaseError: it is not a database, or cannot be read.
        OSError: it is a link.
    """
    with (
        sqlite_errors(),
        contextlib.closing(sqlite3.connect(readonly_uri(path), uri=True)) as connection,
    ):
        [(result,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    if result != "ok":
        raise SchemaError(f"it is damaged: {result}")
    if not 0 < version <= known:
        raise SchemaError(f"it has schema {version}, and this program knows 1 to {known}")
    return int(version)
