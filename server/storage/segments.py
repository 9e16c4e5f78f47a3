"""The logs of forks, which begin with rows of other sessions.

A row of ``log_segments`` says that the entries of a session up to ``last_seq``, and after its
previous segment, are the entries of ``owner`` with the same positions. The later entries are the
session's own rows. So a fork copies no entry, however long its log is.

The rows of a deleted session stay as far as a segment refers to them. The last of them is cut,
because it may have entries after the end of the segment.
"""

from __future__ import annotations

from collections.abc import Iterable

from .drivers.functions import head_lines
from .schema import LogRow, Statement

_KEPT = "(SELECT coalesce(max(last_seq), 0) FROM log_segments WHERE owner = ?1)"
_IS_GONE = "NOT EXISTS (SELECT 1 FROM sessions WHERE n = ?1)"


def without_tail(row: LogRow, last_seq: int) -> LogRow:
    """The row without the entries after a position."""
    if row.last_seq <= last_seq:
        return row
    body = head_lines(row.body, last_seq + 1 - row.first_seq)
    return LogRow(row.session, row.first_seq, last_seq, body)


def copy_log(source: int, last_seq: int, target: int) -> list[Statement]:
    """Let the log of a new session begin with the log of another session.

    Args:
        last_seq: the position of the last entry that both have.
    """
    before = (
        "coalesce((SELECT max(last_seq) FROM log_segments"
        "  WHERE session = ?2 AND last_seq < segment.last_seq), 0)"
    )
    return [
        (
            "INSERT INTO log_segments SELECT CAST(?1 AS BIGINT), CASE WHEN segment.last_seq < ?3"
            "  THEN segment.last_seq ELSE ?3 END, segment.owner"
            f" FROM log_segments AS segment WHERE segment.session = ?2 AND {before} < ?3",
            (target, source, last_seq),
        ),
        (
            "INSERT INTO log_segments SELECT CAST(?1 AS BIGINT), CAST(?3 AS BIGINT),"
            "  CAST(?2 AS BIGINT) WHERE CAST(?3 AS BIGINT) >"
            " coalesce((SELECT max(last_seq) FROM log_segments WHERE session = ?2), 0)",
            (target, source, last_seq),
        ),
        (
            "INSERT INTO turns (session, turn_index, prompt, first_seq, last_seq, stop_reason,"
            "  error, duration_ms)"
            " SELECT CAST(?1 AS BIGINT), turn_index, ?4, first_seq, last_seq, stop_reason, error,"
            "  duration_ms FROM turns WHERE session = ?2 AND first_seq <= ?3",
            (target, source, last_seq, b""),
        ),
        (
            "INSERT INTO upload_uses SELECT CAST(?1 AS BIGINT), hash"
            " FROM upload_uses WHERE session = ?2",
            (target, source),
        ),
    ]


def delete_log(session: int, owners: Iterable[int]) -> list[Statement]:
    """Delete the log of a session whose row is deleted, except what forks of it still refer to.

    Args:
        owners: the sessions that its segments refer to; some may be deleted.
    """
    deletions: list[Statement] = [("DELETE FROM log_segments WHERE session = ?", (session,))]
    for owner in sorted({session, *owners}):
        deletions += [
            (
                f"DELETE FROM log WHERE session = ?1 AND first_seq > {_KEPT} AND {_IS_GONE}",
                (owner,),
            ),
            (
                f"UPDATE log SET body = head_lines(body, {_KEPT} - first_seq + 1),"
                f" last_seq = {_KEPT}"
                f" WHERE session = ?1 AND last_seq > {_KEPT} AND {_IS_GONE}",
                (owner,),
            ),
        ]
    return deletions
