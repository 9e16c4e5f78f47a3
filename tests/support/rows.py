"""Rows to write into a database, and a look at its file."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from server.storage import statements
from server.storage.schema import LogRow, SessionRow, Statement, TokenRow, TurnRow


def session_row(n: int, *, app: str = "app", at: float = 1000.0) -> SessionRow:
    return SessionRow(
        n=n,
        id=f"session-{n}",
        app_name=app,
        agent="mock",
        model=None,
        system=None,
        meta="{}",
        permission="ask",
        cwd="/",
        created_at=at,
        last_turn_at=None,
        turn_count=0,
        has_context=0,
        closed_at=None,
        close_reason=None,
    )


def turn_row(session: int, index: int, client_id: str | None = None) -> TurnRow:
    return TurnRow(session, index, client_id, b"[]", None)


def log_row(first: int, last: int, *, session: int = 1, size: int = 0) -> LogRow:
    body = b"\n".join(b'{"seq":%d}' % seq + b" " * size for seq in range(first, last + 1))
    return LogRow(session, first, last, body)


def insert_token(name: str) -> Statement:
    return statements.insert_token(TokenRow(name, name.encode(), "[]", 1.0))


def ask(path: Path, sql: str) -> list[tuple[object, ...]]:
    """The result of a query on another connection."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()
