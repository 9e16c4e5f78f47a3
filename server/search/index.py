"""The database of the full-text index."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..codec import dumps, loads
from ..errors import DatabaseError, Error, ErrorCode
from ..storage.database import Database
from ..storage.drivers.sqlite_files import SIDECARS
from ..storage.schema import SchemaError, Statement
from .documents import Document
from .text import joined, match_expression, scope_of, separated

SNIPPET_WORDS = 32
QUERY_SECS = 5
IDS_PER_MILLISECOND = 1 << 20
INDEX_MIGRATIONS = (
    """
    CREATE TABLE indexed (
        session INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL,
        seq INTEGER NOT NULL
    );
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        turn_index INTEGER NOT NULL,
        seq INTEGER NOT NULL
    );
    CREATE INDEX documents_by_session ON documents (session);
    CREATE VIRTUAL TABLE texts USING fts5 (
        scope, said, prefix = '2 3', tokenize = 'unicode61 remove_diacritics 2'
    );
    """,
    # The texts of subagents were parts of the agent's: everything is indexed again.
    """
    DROP TABLE texts;
    DROP TABLE documents;
    DELETE FROM indexed;
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        turn_index INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        subagent TEXT
    );
    CREATE INDEX documents_by_session ON documents (session);
    CREATE VIRTUAL TABLE texts USING fts5 (
        scope, said, prefix = '2 3', tokenize = 'unicode61 remove_diacritics 2'
    );
    """,
)


class Hit(msgspec.Struct):
    """A text that matches a query.

    Attributes:
        subagent: the subagent that said it; None for a prompt or a message of the agent itself.
    """

    session_id: str
    turn_index: int
    seq: int
    snippet: str
    subagent: dict[str, str] | None


class Indexed(msgspec.Struct):
    """The position up to which a session is indexed."""

    session_id: str
    seq: int


class SearchIndex:
    """The full-text index: documents of sessions, newest first.

    The id of a document is its time, so that the newest documents have the greatest ids.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path) -> SearchIndex:
        """Open the index, and make it again if it cannot be used.

        Raises:
            DatabaseError: it cannot be made, for example because SQLite has no FTS5.
            OSError: a file cannot be created.
        """
        try:
            return cls(await Database.open(path, migrations=INDEX_MIGRATIONS))
        except (DatabaseError, SchemaError):
            for suffix in ("", *SIDECARS):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).unlink()
            return cls(await Database.open(path, migrations=INDEX_MIGRATIONS))

    async def close(self) -> None:
        await self._database.close()

    async def progress(self) -> dict[int, Indexed]:
        """The indexed positions of all sessions, by the sessions' numbers."""
        rows = await self._database.fetch("SELECT session, session_id, seq FROM indexed")
        return {row[0]: Indexed(row[1], row[2]) for row in rows}

    async def progress_of(self, session: int) -> Indexed | None:
        """The indexed position of one session; None if nothing of it is indexed."""
        # A statement of its own: SQLite would read all rows for a condition that may be absent.
        rows = await self._database.fetch(
            "SELECT session_id, seq FROM indexed WHERE session = ?", session
        )
        return Indexed(*rows[0]) if rows else None

    async def add(
        self,
        app_name: str,
        session: int,
        session_id: str,
        documents: Sequence[Document],
        *,
        seq: int,
    ) -> None:
        """Add documents of a session, which is then indexed up to *seq*."""
        statements: list[Statement] = [
            (
                "INSERT OR REPLACE INTO indexed (session, session_id, seq) VALUES (?, ?, ?)",
                (session, session_id, seq),
            )
        ]
        for document in documents:
            first_id = document.ts * IDS_PER_MILLISECOND
            statements.append(
                (
                    "INSERT INTO documents (id, session, turn_index, seq, subagent) VALUES"
                    " ((SELECT coalesce(max(id) + 1, ?) FROM documents WHERE id >= ? AND id < ?),"
                    " ?, ?, ?, ?)",
                    (
                        first_id,
                        first_id,
                        first_id + IDS_PER_MILLISECOND,
                        session,
                        document.turn_index,
                        document.seq,
                        None if document.subagent is None else dumps(document.subagent).decode(),
                    ),
                )
            )
            statements.append(
                (
                    "INSERT INTO texts (rowid, scope, said) VALUES (last_insert_rowid(), ?, ?)",
                    (scope_of(app_name), separated(document.text)),
                )
            )
        await self._database.write(statements)

    async def forget(self, session: int) -> None:
        """Delete everything of a session."""
        await self._database.write(
            [
                (
                    "DELETE FROM texts WHERE rowid IN (SELECT id FROM documents WHERE session = ?)",
                    (session,),
                ),
                ("DELETE FROM documents WHERE session = ?", (session,)),
                ("DELETE FROM indexed WHERE session = ?", (session,)),
            ]
        )

    async def find(self, app_name: str, query: str, limit: int) -> list[Hit]:
        """At most *limit* documents of an app with all words of *query*, the newest first.

        Raises:
            Error: ``rate_limited``; the query takes too long.
        """
        expression = match_expression(app_name, query)
        if expression is None:
            return []
        try:
            async with asyncio.timeout(QUERY_SECS):
                rows = await self._fetch_hits(expression, limit)
        except TimeoutError:
            await self._database.interrupt()
            message = "the search takes too long: use rarer words"
            raise Error(ErrorCode.RATE_LIMITED, message) from None
        return [
            Hit(row[0], row[1], row[2], joined(row[3]), None if row[4] is None else loads(row[4]))
            for row in rows
        ]

    async def _fetch_hits(self, expression: str, limit: int) -> list[tuple[Any, ...]]:
        return await self._database.fetch(
            "SELECT indexed.session_id, documents.turn_index, documents.seq,"
            " snippet(texts, 1, '', '', '…', ?), documents.subagent"
            " FROM texts CROSS JOIN documents ON documents.id = texts.rowid"
            " CROSS JOIN indexed ON indexed.session = documents.session"
            " WHERE texts MATCH ? ORDER BY texts.rowid DESC LIMIT ?",
            SNIPPET_WORDS,
            expression,
            limit,
        )
