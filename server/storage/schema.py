"""The schema of the database: its migrations, and a dataclass for the rows of each table."""

from __future__ import annotations

import dataclasses
from typing import Any

from .drivers.base import SchemaError as SchemaError
from .drivers.base import Statement as Statement

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
    "ALTER TABLE sessions ADD COLUMN options TEXT;",
    """
    ALTER TABLE sessions ADD COLUMN ttl_secs REAL;
    ALTER TABLE sessions ADD COLUMN retention_secs REAL;
    ALTER TABLE sessions ADD COLUMN reopened_at REAL;
    ALTER TABLE sessions ADD COLUMN read_seq INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sessions ADD COLUMN has_agent_title INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sessions ADD COLUMN removed_at REAL;
    CREATE INDEX sessions_by_close ON sessions (closed_at) WHERE retention_secs IS NULL;
    CREATE INDEX sessions_by_retention ON sessions (closed_at + retention_secs)
        WHERE retention_secs IS NOT NULL;
    CREATE INDEX sessions_removed ON sessions (n) WHERE removed_at IS NOT NULL;
    CREATE TABLE upload_uses (
        session INTEGER NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (session, hash)
    ) WITHOUT ROWID;
    CREATE INDEX upload_uses_by_hash ON upload_uses (hash);
    """,
    "ALTER TABLE tokens ADD COLUMN options TEXT;",
    "ALTER TABLE asked ADD COLUMN kind TEXT NOT NULL DEFAULT 'permission';",
    """
    CREATE TABLE steers (
        id TEXT PRIMARY KEY,
        session INTEGER NOT NULL,
        client_id TEXT,
        turn_index INTEGER NOT NULL,
        prompt BLOB
    );
    CREATE UNIQUE INDEX steers_by_client_id ON steers (session, client_id);
    CREATE INDEX steers_undecided ON steers (session) WHERE prompt IS NOT NULL;
    """,
    """
    CREATE TABLE run_results (
        id TEXT PRIMARY KEY,
        app_name TEXT NOT NULL,
        client_id TEXT,
        status INTEGER,
        body BLOB,
        expires_at REAL NOT NULL
    );
    CREATE UNIQUE INDEX run_results_by_client_id ON run_results (app_name, client_id)
        WHERE client_id IS NOT NULL;
    """,
    """
    CREATE TABLE log_segments (
        session INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        owner INTEGER NOT NULL,
        PRIMARY KEY (session, last_seq)
    ) WITHOUT ROWID;
    CREATE INDEX log_segments_by_owner ON log_segments (owner, last_seq);
    ALTER TABLE sessions ADD COLUMN forked_from TEXT;
    ALTER TABLE sessions ADD COLUMN owes_history INTEGER NOT NULL DEFAULT 0;
    """,
    """
    CREATE TABLE shares (
        id TEXT PRIMARY KEY,
        session INTEGER NOT NULL,
        session_id TEXT NOT NULL,
        app_name TEXT NOT NULL,
        hash BLOB NOT NULL UNIQUE,
        label TEXT,
        created_at REAL NOT NULL,
        expires_at REAL
    );
    CREATE INDEX shares_by_session ON shares (session);
    """,
    """
    ALTER TABLE sessions ADD COLUMN usage TEXT;
    CREATE TABLE usage (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        app_name TEXT NOT NULL,
        session_id TEXT,
        turn_index INTEGER,
        agent TEXT NOT NULL,
        model TEXT,
        input_tokens INTEGER,
        output_tokens INTEGER,
        cached_read_tokens INTEGER,
        cached_write_tokens INTEGER,
        thought_tokens INTEGER,
        cost REAL,
        currency TEXT
    );
    CREATE INDEX usage_by_app ON usage (app_name, at);
    CREATE INDEX usage_by_time ON usage (at);
    """,
    """
    CREATE TABLE push_subscriptions (
        id TEXT PRIMARY KEY,
        app_name TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        p256dh BLOB NOT NULL,
        auth BLOB NOT NULL,
        events TEXT NOT NULL,
        created_at REAL NOT NULL
    );
    CREATE UNIQUE INDEX push_subscriptions_by_endpoint ON push_subscriptions (app_name, endpoint);
    CREATE TABLE webhooks (
        app_name TEXT PRIMARY KEY,
        url TEXT NOT NULL,
        events TEXT NOT NULL,
        secret BLOB NOT NULL,
        created_at REAL NOT NULL
    );
    CREATE TABLE webhook_deliveries (
        n INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        app_name TEXT NOT NULL,
        session_id TEXT NOT NULL,
        event TEXT NOT NULL,
        seq INTEGER,
        at REAL NOT NULL,
        fields BLOB NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        next_at REAL NOT NULL DEFAULT 0
    );
    CREATE INDEX webhook_deliveries_by_session ON webhook_deliveries (app_name, session_id, n);
    CREATE TABLE webhook_failures (
        n INTEGER PRIMARY KEY,
        app_name TEXT NOT NULL,
        at REAL NOT NULL,
        delivery_id TEXT,
        session_id TEXT,
        event TEXT,
        seq INTEGER,
        attempt INTEGER,
        status INTEGER,
        error TEXT NOT NULL,
        is_last INTEGER NOT NULL
    );
    CREATE INDEX webhook_failures_by_app ON webhook_failures (app_name, n);
    """,
    "",  # only PostgreSQL's tables have changed
    "",
    """
    CREATE TABLE push_messages (
        id TEXT PRIMARY KEY,
        subscription_id TEXT NOT NULL,
        session_id TEXT NOT NULL,
        topic TEXT NOT NULL,
        urgency TEXT NOT NULL,
        body BLOB NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL
    );
    CREATE INDEX push_messages_by_subscription ON push_messages (subscription_id);
    """,
)
"""The script that makes each version of the schema from the one before, from version 1."""


def columns(row_type: type[Any]) -> str:
    """The names of a row's columns, separated by commas."""
    return ", ".join(map(column_name, dataclasses.fields(row_type)))


def column_name(field: dataclasses.Field[Any]) -> str:
    """The column of one field of a row."""
    return str(field.metadata.get("column", field.name))


@dataclasses.dataclass(slots=True)
class SessionRow:
    """A stored session. Times are unix seconds.

    Attributes:
        n: the session's number, which the other tables refer to.
        meta: JSON.
        agent_state: JSON of the settings that the agent reported last, not a state; None if it has
            reported none.
        settings: JSON of the mode and the options that clients have chosen. The model is in
            ``model``.
        client_cwd: the folder that an ACP client named, usually on the client's own machine.
        options: JSON of the other options that a client has chosen, some of them secret; None if
            all have their defaults.
        ttl_secs: seconds without a turn, after which the session is closed; None for the server's
            setting, infinity for never.
        retention_secs: seconds after its close, after which it is deleted; likewise.
        reopened_at: the time of the last reopen.
        read_seq: the last position that the app has marked as read.
        has_agent_title: the title in ``meta`` is the agent's own.
        removed_at: the time at which the deletion began. The session is not found any more.
        forked_from: JSON of ``{session_id, turn_index}``, or None.
        needs_history: the next prompt must contain the conversation, which the agent does not have.
        usage: JSON of the tokens and the cost of its turns; None if the agent has reported none.
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
    options: str | None = dataclasses.field(default=None, repr=False)
    ttl_secs: float | None = None
    retention_secs: float | None = None
    reopened_at: float | None = None
    read_seq: int = 0
    has_agent_title: int = 0
    removed_at: float | None = None
    forked_from: str | None = None
    needs_history: int = dataclasses.field(default=0, metadata={"column": "owes_history"})
    usage: str | None = None


@dataclasses.dataclass(slots=True)
class TurnRow:
    """A stored turn.

    Attributes:
        prompt: JSON of its content blocks; empty once the turn has started.
        first_seq, last_seq: log positions of its start and its end, None until then.
        error: JSON ``{code, message, retryable}``, or None.
    """

    session: int
    turn_index: int
    client_id: str | None
    prompt: bytes
    timeout_secs: float | None
    first_seq: int | None = None
    last_seq: int | None = None
    stop_reason: str | None = None
    error: bytes | None = None
    duration_ms: int | None = None


@dataclasses.dataclass(slots=True)
class SteerRow:
    """A stored prompt that was sent to be added to a running turn.

    Attributes:
        turn_index: the turn.
        prompt: JSON of its content blocks; None once the agent has accepted it.
    """

    id: str
    session: int
    client_id: str | None
    turn_index: int
    prompt: bytes | None


@dataclasses.dataclass(slots=True)
class LogRow:
    """Consecutive log entries; ``body`` has the JSON of each, one per line."""

    session: int
    first_seq: int
    last_seq: int
    body: bytes


@dataclasses.dataclass(slots=True)
class TokenRow:
    """An app's token.

    Attributes:
        ip_cidrs: a JSON array.
        options: JSON of the options that the operator has set, some of them secret, or None.
    """

    name: str
    hash: bytes
    ip_cidrs: str
    created_at: float
    options: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(slots=True)
class FileRow:
    """An upload; ``hash`` is the SHA-256 of its file token."""

    hash: bytes
    app_name: str
    path: str
    size: int
    expires_at: float
