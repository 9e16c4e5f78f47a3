"""The database's tables, how older ones become them, and their rows."""

from __future__ import annotations

import dataclasses


class SchemaError(Exception):
    """The database is not one that this program can use."""


MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sessions (
        n INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        app_name TEXT NOT NULL,
        agent TEXT NOT NULL,
        model TEXT,
        system TEXT,
        meta TEXT NOT NULL,
        permission TEXT NOT NULL,
        cwd TEXT NOT NULL,
        created_at REAL NOT NULL,
        last_turn_at REAL,
        turn_count INTEGER NOT NULL DEFAULT 0,
        has_context INTEGER NOT NULL DEFAULT 0,
        closed_at REAL,
        close_reason TEXT
    );
    CREATE INDEX sessions_by_app ON sessions (app_name, closed_at);
    CREATE INDEX sessions_by_activity ON sessions (closed_at, coalesce(last_turn_at, created_at));
    CREATE TABLE turns (
        session INTEGER NOT NULL,
        turn_index INTEGER NOT NULL,
        client_id TEXT,
        prompt BLOB,
        timeout_secs REAL,
        first_seq INTEGER,
        last_seq INTEGER,
        stop_reason TEXT,
        error BLOB,
        duration_ms INTEGER,
        PRIMARY KEY (session, turn_index)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX turns_by_client_id ON turns (session, client_id)
        WHERE client_id IS NOT NULL;
    CREATE INDEX turns_unfinished ON turns (session) WHERE last_seq IS NULL;
    CREATE TABLE log (
        n INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX log_by_position ON log (session, last_seq);
    CREATE TABLE session_events (
        id INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL,
        app_name TEXT NOT NULL,
        event TEXT NOT NULL,
        at REAL NOT NULL,
        detail TEXT NOT NULL
    );
    CREATE INDEX session_events_by_session ON session_events (session_id);
    CREATE TABLE tokens (
        name TEXT PRIMARY KEY,
        hash BLOB NOT NULL UNIQUE,
        ip_cidrs TEXT NOT NULL,
        created_at REAL NOT NULL
    );
    CREATE TABLE server (
        name TEXT PRIMARY KEY,
        value BLOB NOT NULL
    );
    CREATE TABLE files (
        hash BLOB PRIMARY KEY,
        app_name TEXT NOT NULL,
        path TEXT NOT NULL,
        size INTEGER NOT NULL,
        expires_at REAL NOT NULL
    );
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        app_name TEXT NOT NULL,
        agent TEXT NOT NULL,
        model TEXT,
        prompt_bytes INTEGER NOT NULL,
        started_at REAL NOT NULL,
        result_bytes INTEGER,
        duration_ms INTEGER,
        stop_reason TEXT,
        error TEXT
    );
    CREATE INDEX runs_unfinished ON runs (id) WHERE stop_reason IS NULL;
    """,
    "CREATE TABLE prewarmed (id TEXT PRIMARY KEY) WITHOUT ROWID;",
    """
    CREATE TABLE asked (
        session INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        turn_index INTEGER NOT NULL,
        PRIMARY KEY (session, request_id)
    ) WITHOUT ROWID;
    """,
    "ALTER TABLE sessions ADD COLUMN agent_state TEXT;",
    "ALTER TABLE sessions ADD COLUMN settings TEXT;",
    "ALTER TABLE sessions ADD COLUMN client_cwd TEXT;",
)
"""Each brings the schema to the version of its number, from 1."""


def check(version: int) -> None:
    """Refuse a database that this program cannot use as it is.

    Raises:
        SchemaError: its schema is older or newer than this program's.
    """
    if version != len(MIGRATIONS):
        raise SchemaError(
            f"the database has schema {version}, this program {len(MIGRATIONS)}:"
            " start the server once, which brings an older one up to date"
        )


def migrations(version: int) -> list[str]:
    """The scripts, each a transaction, that bring a database of that version up to date.

    Raises:
        SchemaError: a newer clawdforge made it.
    """
    if version > len(MIGRATIONS):
        raise SchemaError(
            f"the database has schema {version}, newer than this program's {len(MIGRATIONS)}:"
            " start the version that made it"
        )
    return [
        f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
        for number, script in enumerate(MIGRATIONS[version:], version + 1)
    ]


@dataclasses.dataclass(slots=True)
class SessionRow:
    """A session as it is stored; times are unix seconds, ``meta`` is JSON.

    ``agent_state`` is the JSON of what its agent last said of itself, if it has said anything;
    ``settings`` that of the mode and the options in which it must be. ``model`` is one of them.
    ``client_cwd`` is the folder that an ACP client named, on its own machine as a rule.
    """

    n: int
    id: str
    app_name: str
    agent: str
    model: str | None
    system: str | None
    meta: str
    permission: str
    cwd: str
    created_at: float
    last_turn_at: float | None
    turn_count: int
    has_context: int
    closed_at: float | None
    close_reason: str | None
    agent_state: str | None = None
    settings: str | None = None
    client_cwd: str | None = None


@dataclasses.dataclass(slots=True)
class TurnRow:
    """A turn as it is stored.

    ``prompt`` is the JSON of its content blocks; ``first_seq`` and ``last_seq``
    are the log positions of its start and its end (None until then); ``error``
    is JSON ``{code, message, retryable}`` or None.
    """

    session: int
    turn_index: int
    client_id: str | None
    prompt: bytes
    timeout_secs: float | None
    first_seq: int | None
    last_seq: int | None
    stop_reason: str | None
    error: bytes | None
    duration_ms: int | None


@dataclasses.dataclass(slots=True)
class LogRow:
    """A run of log entries: the frames ``first_seq`` to ``last_seq``, one a line."""

    session: int
    first_seq: int
    last_seq: int
    body: bytes


@dataclasses.dataclass(slots=True)
class TokenRow:
    """An app's token; ``ip_cidrs`` is a JSON array."""

    name: str
    hash: bytes
    ip_cidrs: str
    created_at: float


@dataclasses.dataclass(slots=True)
class FileRow:
    """An upload; ``hash`` is the SHA-256 of its file token."""

    hash: bytes
    app_name: str
    path: str
    size: int
    expires_at: float


@dataclasses.dataclass(slots=True)
class RunRow:
    """A ``/run``: sizes and how it ended, never its words; ``error`` is a code."""

    id: str
    app_name: str
    agent: str
    model: str | None
    prompt_bytes: int
    started_at: float
    result_bytes: int | None = None
    duration_ms: int | None = None
    stop_reason: str | None = None
    error: str | None = None
