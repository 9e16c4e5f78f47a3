"""Every SQL statement that writes to the database.

Each function returns one :data:`~schema.Statement`, or a list that belongs in one transaction.
:meth:`Database.write` and the :class:`~writer.DatabaseWriter` execute them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from .drivers.base import OF_ENDED_SERVERS, Engine
from .drivers.translation import LOG_INSERT
from .rows import RunRow, UsageRow
from .schema import (
    FileRow,
    LogRow,
    SessionRow,
    Statement,
    SteerRow,
    TokenRow,
    TurnRow,
    columns,
)
from .segments import delete_log
from .share_row import ShareRow

LOG_ROWS = 240
"""Rows of one statement: SQLite takes 999 parameters, and a row has four."""


def _insert(table: str, row: Any) -> Statement:
    fields = dataclasses.fields(row)
    marks = ", ".join("?" * len(fields))
    return (
        f"INSERT INTO {table} ({columns(type(row))}) VALUES ({marks})",
        [getattr(row, field.name) for field in fields],
    )


def insert_session(row: SessionRow) -> Statement:
    return _insert("sessions", row)


def insert_turn(row: TurnRow) -> Statement:
    return _insert("turns", row)


def insert_steer(row: SteerRow) -> Statement:
    """Store a prompt before the agent receives it for its running turn."""
    return _insert("steers", row)


def accept_steer(steer_id: str) -> Statement:
    """Note that the log has a steered prompt."""
    return "UPDATE steers SET prompt = NULL WHERE id = ?", (steer_id,)


def delete_steer(steer_id: str) -> Statement:
    """Delete a steered prompt that became an ordinary one, or was refused."""
    return "DELETE FROM steers WHERE id = ?", (steer_id,)


def insert_token(row: TokenRow) -> Statement:
    return _insert("tokens", row)


def insert_file(row: FileRow) -> Statement:
    return _insert("files", row)


def insert_run(row: RunRow) -> Statement:
    return _insert("runs", row)


def insert_usage(row: UsageRow) -> Statement:
    return _insert("usage", row)


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


def end_interrupted_runs(engine: Engine) -> Statement:
    """End the runs that were running when their server was killed."""
    return (
        "UPDATE runs SET stop_reason = 'error', error = 'server_restarted'"
        f" WHERE stop_reason IS NULL AND {OF_ENDED_SERVERS[engine]}",
        (),
    )


def insert_share(row: ShareRow) -> Statement:
    return _insert("shares", row)


def delete_share(share_id: str) -> Statement:
    return "DELETE FROM shares WHERE id = ?", (share_id,)


def delete_shares_of(app_name: str) -> Statement:
    return "DELETE FROM shares WHERE app_name = ?", (app_name,)


def add_server_value(name: str, value: bytes) -> Statement:
    """Store a value unless there is one."""
    return (
        "INSERT INTO server (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
        (name, value),
    )


def set_server_value(name: str, value: bytes) -> Statement:
    return (
        "INSERT INTO server (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def delete_token(name: str) -> Statement:
    return "DELETE FROM tokens WHERE name = ?", (name,)


def set_token_options(name: str, options: str | None) -> Statement:
    return "UPDATE tokens SET options = ? WHERE name = ?", (options, name)


def insert_prewarmed(session_id: str) -> Statement:
    return "INSERT INTO prewarmed (id) VALUES (?)", (session_id,)


def delete_prewarmed(session_id: str) -> Statement:
    return "DELETE FROM prewarmed WHERE id = ?", (session_id,)


def delete_file(digest: bytes) -> list[Statement]:
    return [
        ("DELETE FROM files WHERE hash = ?", (digest,)),
        ("DELETE FROM upload_uses WHERE hash = ?", (digest,)),
    ]


def insert_log(rows: Sequence[LogRow]) -> list[Statement]:
    """Insert *rows* with as few statements as possible."""
    return [_insert_log(rows[start : start + LOG_ROWS]) for start in range(0, len(rows), LOG_ROWS)]


def _insert_log(rows: Sequence[LogRow]) -> Statement:
    marks = ", ".join(["(?, ?, ?, ?)"] * len(rows))
    return (
        LOG_INSERT + marks,
        [value for row in rows for value in (row.session, row.first_seq, row.last_seq, row.body)],
    )


def set_prompt(session: int, turn_index: int, prompt: bytes) -> Statement:
    """Replace the prompt of a turn that waits."""
    return (
        "UPDATE turns SET prompt = ? WHERE session = ? AND turn_index = ? AND first_seq IS NULL",
        (prompt, session, turn_index),
    )


def start_turn(
    session: int, turn_index: int, *, first_seq: int, at: float, sent: bool, told: bool = False
) -> list[Statement]:
    """Start a turn.

    Args:
        sent: whether the prompt has reached the agent, whose conversation then has a context.
        told: the agent has received the conversation so far with the prompt.
    """
    clear_debt = [("UPDATE sessions SET owes_history = 0 WHERE n = ?", (session,))]
    return [
        *(clear_debt if told else ()),
        (
            # The prompt is in the log now, so the copy in its row is deleted.
            "UPDATE turns SET first_seq = ?, prompt = ? WHERE session = ? AND turn_index = ?",
            (first_seq, b"", session, turn_index),
        ),
        (
            "UPDATE sessions SET turn_count = turn_count + 1, last_turn_at = ?,"
            " has_context = CASE WHEN ? = 1 THEN 1 ELSE has_context END WHERE n = ?",
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


def relocate_workspaces(folder: str) -> Statement:
    """Point the sessions at their workspaces in *folder*, after the data folder was moved."""
    return (
        "UPDATE sessions SET cwd = ?1 || id"
        " WHERE cwd LIKE '%/workspaces/' || id AND cwd != ?1 || id",
        (f"{folder}/",),
    )


def change_session(session: int, **columns: str | float | None) -> Statement:
    """Set the named columns of a session."""
    changes = ", ".join(f"{name} = ?" for name in columns)
    return f"UPDATE sessions SET {changes} WHERE n = ?", (*columns.values(), session)


def set_reported_settings(session: int, reported: str) -> Statement:
    return "UPDATE sessions SET agent_state = ? WHERE n = ?", (reported, session)


def set_settings(session: int, model: str | None, settings: str) -> Statement:
    return "UPDATE sessions SET model = ?, settings = ? WHERE n = ?", (model, settings, session)


def close_session(session: int, reason: str, at: float) -> Statement:
    return (
        "UPDATE sessions SET closed_at = ?, close_reason = ? WHERE n = ? AND closed_at IS NULL",
        (at, reason, session),
    )


def open_session(session: int, at: float) -> Statement:
    """Open a closed session again."""
    return (
        "UPDATE sessions SET closed_at = NULL, close_reason = NULL, reopened_at = ? WHERE n = ?",
        (at, session),
    )


def begin_removal(session: int, at: float) -> Statement:
    """Store that a session is being deleted. A server that is killed completes it later."""
    return "UPDATE sessions SET removed_at = ? WHERE n = ?", (at, session)


def insert_upload_use(session: int, digest: bytes) -> Statement:
    """Store that a prompt of the session has used an upload."""
    return (
        "INSERT INTO upload_uses (session, hash) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (session, digest),
    )


def insert_agent_request(session: int, kind: str, request_id: str, turn_index: int) -> Statement:
    """Store that a request of the agent waits for its outcome.

    Args:
        kind: ``permission`` or ``elicitation``.
    """
    return (
        "INSERT INTO asked (session, kind, request_id, turn_index) VALUES (?, ?, ?, ?)",
        (session, kind, request_id, turn_index),
    )


def delete_agent_request(session: int, request_id: str) -> Statement:
    """Delete a request that has its outcome."""
    return "DELETE FROM asked WHERE session = ? AND request_id = ?", (session, request_id)


def delete_session(session: int, owners: Iterable[int] = ()) -> list[Statement]:
    """Delete a session with its turns and its log; its audit events stay.

    Args:
        owners: the sessions whose rows are part of its log.
    """
    return [
        ("DELETE FROM turns WHERE session = ?", (session,)),
        ("DELETE FROM asked WHERE session = ?", (session,)),
        ("DELETE FROM upload_uses WHERE session = ?", (session,)),
        ("DELETE FROM steers WHERE session = ?", (session,)),
        ("DELETE FROM shares WHERE session = ?", (session,)),
        ("DELETE FROM sessions WHERE n = ?", (session,)),
        *delete_log(session, owners),
    ]


def insert_audit_event(
    session_id: str, app_name: str, event: str, at: float, detail: str
) -> Statement:
    return (
        "INSERT INTO session_events (session_id, app_name, event, at, detail)"
        " VALUES (?, ?, ?, ?, ?)",
        (session_id, app_name, event, at, detail),
    )
