"""The import of a database that clawdforge 0.2 created.

Version 0.2 stored tokens, runs, sessions and their audit events. The names of its tables are known,
the names of its columns are not, so each column is found by the names that it may have. A database
that cannot be read is refused and not changed. The old file is kept.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DatabaseError
from . import statements
from .database import Database
from .drivers.sqlite_files import copy_database, readonly_uri
from .rows import RunRow
from .schema import SchemaError, SessionRow, Statement, TokenRow

logger = logging.getLogger(__name__)

TOKENS = ("app_tokens", "tokens", "apps")
HASHES = ("token_hash", "hash", "token_sha256", "sha256")
PLAIN = ("token", "api_token", "secret", "api_key")
PASSWORD_HASH = re.compile(r"\$|pbkdf2|scrypt|argon2|bcrypt", re.IGNORECASE)
"""The beginnings of password hashes. They are salted, so a token cannot be looked up by one."""
MAX_NAMED_TABLES = 20
NAMES = ("app_name", "app", "name")
TIMES = ("created_at", "at", "ts", "started_at")
DETAILS = ("detail", "details", "payload", "meta")

Row = Mapping[str, Any]


def statements_of(path: Path) -> list[Statement] | None:
    """The statements that write an old database's content into a new one.

    Returns:
        None if the file is missing, empty, or a database of this version.

    Raises:
        SchemaError: another program created it, or its content is not understood.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return None
    try:
        with contextlib.closing(sqlite3.connect(readonly_uri(path), uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            kinds = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = {str(name) for (name,) in connection.execute(kinds)}
            if version or not tables:
                return None
            if "runs" not in tables or not tables & set(TOKENS):
                raise SchemaError(_not_ours(path, tables))
            return list(_statements(connection, tables))
    except sqlite3.DatabaseError as error:
        raise SchemaError(f"{path} cannot be read: {error}") from None


def _statements(connection: sqlite3.Connection, tables: set[str]) -> Iterator[Statement]:
    tokens = next(name for name in TOKENS if name in tables)
    number = iter(range(1, 1 << 62))
    converters: list[tuple[str, Callable[[Row], Statement | None]]] = [
        (tokens, _token_row),
        ("runs", lambda row: _run_row(row, next(number))),
        ("sessions", lambda row: _session_row(row, next(number))),
        ("session_events", _audit_event),
    ]
    for table, convert in converters:
        if table not in tables:
            continue
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid"):
            statement = convert(dict(row))
            if statement is not None:
                yield statement


def _not_ours(path: Path, tables: set[str]) -> str:
    """The message for a file that is not a database of version 0.2."""
    names = sorted(tables)
    listed = ", ".join(names[:MAX_NAMED_TABLES])
    if len(names) > MAX_NAMED_TABLES:
        listed += f" and {len(names) - MAX_NAMED_TABLES} more"
    return (
        f"{path} is not a database of clawdforge 0.2: it must have a table runs and one of"
        f" {', '.join(TOKENS)}; it has {listed}. Rename the tables, or move the file away"
    )


def _token_row(row: Row) -> Statement | None:
    if row.get("revoked_at") or row.get("revoked"):
        return None
    digest = _digest_of(row)
    name = _string(_first_value(row, "name", "app_name", "app"))
    return statements.insert_token(
        TokenRow(name, digest, _cidrs(row), _unix_seconds(_first_value(row, *TIMES)))
    )


def _digest_of(row: Row) -> bytes:
    """The SHA-256 of a token, which is stored as a SHA-256 or in plain text.

    Raises:
        SchemaError: it is stored in another form.
    """
    kept = _first_value(row, *HASHES)
    if isinstance(kept, bytes) and len(kept) == 32:
        return kept
    if isinstance(kept, str):
        digits = re.fullmatch(r"(?:sha256[:$])?([0-9a-fA-F]{64})", kept.strip())
        if digits is not None:
            return bytes.fromhex(digits[1])
    plain = _first_value(row, *PLAIN) if kept is None else kept
    # In a column for hashes only a text that begins like a token is a token.
    is_token = isinstance(plain, str) and (kept is None or plain.startswith("cf_"))
    if is_token and plain.strip() and not PASSWORD_HASH.match(plain):
        return hashlib.sha256(plain.strip().encode()).digest()
    columns = ", ".join(sorted(map(str, row)))
    app_name = _string(_first_value(row, "name", "app_name", "app"))
    raise SchemaError(
        f"a token of app {app_name!r} is stored neither in"
        f" plain text ({', '.join(PLAIN)}) nor as SHA-256 ({', '.join(HASHES)}); its columns are"
        f" {columns}. Such tokens cannot be imported: move the file away, start the server, and"
        " create new tokens"
    )


def _cidrs(row: Row) -> str:
    value = _first_value(row, "ip_cidrs", "cidrs", "allow_cidrs")
    text = value if isinstance(value, str) else ""
    try:
        listed = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
    except ValueError:
        raise SchemaError(f"the networks of a token cannot be read: {text!r}") from None
    return json.dumps([str(item).strip() for item in listed if str(item).strip()])


def _run_row(row: Row, number: int) -> Statement:
    error = _first_value(row, "error", "err")
    return statements.insert_run(
        RunRow(
            id=f"v0.2-{_first_value(row, 'id', 'run_id') or number}",
            app_name=_string(_first_value(row, *NAMES)),
            agent="claude",
            model=_optional_text(_first_value(row, "model")),
            prompt_bytes=_whole_number(
                _first_value(row, "prompt_chars", "prompt_len", "prompt_bytes")
            ),
            started_at=_unix_seconds(_first_value(row, *TIMES)),
            result_bytes=_whole_number(
                _first_value(row, "response_chars", "result_chars", "response_len")
            ),
            duration_ms=_whole_number(_first_value(row, "duration_ms")),
            stop_reason=_string(_first_value(row, "stop_reason"))
            or ("error" if error else "end_turn"),
            error="agent_failed" if error else None,
        )
    )


def _session_row(row: Row, number: int) -> Statement:
    """A closed session, because this server's acpx does not have its conversation."""
    closed = _first_value(row, "closed_at")
    used = _first_value(row, "last_turn_at", "last_used_at", "updated_at")
    meta = _first_value(row, "meta", "metadata", "meta_json")
    return statements.insert_session(
        SessionRow(
            n=number,
            id=_string(_first_value(row, "session_id", "id")),
            app_name=_string(_first_value(row, "app_name", "app", "name")),
            agent=_string(_first_value(row, "agent")) or "claude",
            model=_optional_text(_first_value(row, "model")),
            system=None,
            meta=_json_object(meta),
            permission="approve-all",
            cwd=_string(_first_value(row, "cwd", "workdir")),
            created_at=_unix_seconds(_first_value(row, *TIMES)),
            last_turn_at=None if used is None else _unix_seconds(used),
            turn_count=_whole_number(_first_value(row, "turn_count", "turns")),
            has_context=0,
            closed_at=time.time() if closed is None else _unix_seconds(closed),
            close_reason="admin" if closed is None else "client",
        )
    )


def _audit_event(row: Row) -> Statement:
    return statements.insert_audit_event(
        _string(_first_value(row, "session_id")),
        _string(_first_value(row, "app_name", "app")),
        _string(_first_value(row, "event", "kind")),
        _unix_seconds(_first_value(row, "at", "ts", "created_at")),
        _json_object(_first_value(row, *DETAILS)),
    )


def _first_value(row: Row, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _string(value: Any) -> str:
    return "" if value is None else str(value)


def _optional_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _whole_number(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _json_object(value: Any) -> str:
    """JSON of an object, made from any value."""
    try:
        parsed = json.loads(value) if isinstance(value, str) and value else {}
    except ValueError:
        parsed = {"text": value}
    return json.dumps(parsed if isinstance(parsed, dict) else {"value": parsed})


def _unix_seconds(value: Any) -> float:
    """Unix seconds of a number or an ISO time. A time without a zone is UTC."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    try:
        moment = datetime.datetime.fromisoformat(_string(value))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


async def upgrade(path: Path) -> Path | None:
    """Replace an old database at *path* by a new one with its content.

    Returns:
        The new path of the old database; None if there was nothing to import.

    Raises:
        SchemaError: another program created it, or its content is not understood. It is unchanged.
    """
    transaction = statements_of(path)
    if transaction is None:
        return None
    new, backup = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.v0.2")
    while backup.exists() or backup.is_symlink():
        backup = backup.with_name(f"{backup.name}-")
    for leftover in (new, new.with_name(f"{new.name}-wal"), new.with_name(f"{new.name}-shm")):
        leftover.unlink(missing_ok=True)
    database = await Database.open(new)
    try:
        await database.write(transaction)
    except DatabaseError as error:
        raise SchemaError(f"{path} cannot be upgraded: {error}") from None
    finally:
        await database.close()
    copy_database(path, backup)  # including the content of its WAL
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    new.replace(path)
    backup.chmod(0o600)  # it may contain tokens in plain text
    logger.warning("imported the database of version 0.2; the old file is %s", backup)
    return backup
