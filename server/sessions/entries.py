"""Log entries as bytes: each entry is JSON that is encoded once.

Raw ACP messages and content blocks are spliced in as they came and never encoded again.
Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codec import dumps, loads
from ..errors import Error


def entry(kind: str, seq: int, ts: int, turn_index: int, fields: bytes) -> bytes:
    """Encode a log entry.

    Args:
        kind: the entry's ``type``.
        seq: its position in the log.
        ts: unix milliseconds.
        fields: the entry's own fields, JSON without the outer braces.
    """
    return b'{"type":"%b","seq":%d,"ts":%d,"turn_index":%d,%b}' % (
        kind.encode(),
        seq,
        ts,
        turn_index,
        fields,
    )


_EVENT = b',"event":'
_SUBAGENT = b',"subagent":'
_TURN_INDEX = b'"turn_index":'
_EVENT_START = b'{"type":"event",'


def event_fields(message: bytes, subagent: Mapping[str, str] | None = None) -> bytes:
    """The fields of an ``event`` entry that carries the raw ACP message *message*.

    Args:
        subagent: ``session_id``, ``tool_call_id``: the subagent that it is of.
    """
    if subagent is None:
        return b'"event":' + message
    return b'"subagent":%b,"event":%b' % (dumps(subagent), message)


def event_of(line: bytes) -> bytes | None:
    """The raw ACP message of an ``event`` entry; None for other entries."""
    if not line.startswith(_EVENT_START):
        return None
    # The server writes the fields before it, so the first match is not part of agent output. The
    # ids of a subagent are, but a string contains no bare quote.
    return line[line.index(_EVENT) + len(_EVENT) : -1]


def is_of_subagent(line: bytes) -> bool:
    """Whether an ``event`` entry is of a subagent, and not of the agent itself."""
    return line.find(_SUBAGENT, 0, line.index(_EVENT)) >= 0


def subagent_session_of(line: bytes) -> str | None:
    """The session of a subagent that an ``event`` entry is of, if the subagent has one."""
    end = line.index(_EVENT)
    start = line.find(_SUBAGENT, 0, end)
    session_id = loads(line[start + len(_SUBAGENT) : end]).get("session_id") if start >= 0 else None
    return session_id if isinstance(session_id, str) else None


def turn_index_of(line: bytes) -> int:
    """The turn index of an entry."""
    start = line.index(_TURN_INDEX) + len(_TURN_INDEX)  # the first match, as above
    return int(line[start : line.index(b",", start)])


HIDDEN_ID = "\0"
"""Begins the id that a node of a cluster gives to a prompt without one, to send it again if the
answer is lost. Clients do not see it."""


def shown_id(client_id: str | None) -> str | None:
    """The id of a prompt as clients see it."""
    return None if client_id is not None and client_id.startswith(HIDDEN_ID) else client_id


def turn_start_fields(prompt: bytes, client_id: str | None, context: str) -> bytes:
    """The fields of ``turn_start``; *prompt* is the JSON of the content blocks."""
    return b'"prompt":%b,"id":%b,"context":%b' % (
        prompt,
        dumps(shown_id(client_id)),
        dumps(context),
    )


def turn_steer_fields(prompt: bytes, client_id: str | None) -> bytes:
    """The fields of ``turn_steer``; *prompt* is the JSON of the content blocks."""
    return b'"prompt":%b,"id":%b' % (prompt, dumps(shown_id(client_id)))


def turn_end_fields(
    stop_reason: str,
    duration_ms: int,
    error: bytes | None,
    *,
    withdrawn: bool = False,
    usage: bytes = b"",
) -> bytes:
    """The fields of ``turn_end``.

    Args:
        error: the JSON of :func:`error_fields`.
        withdrawn: the turn was cancelled before the agent received its prompt.
        usage: the JSON of what the agent has reported; empty if it has reported nothing.
    """
    return b'"stop_reason":%b,"duration_ms":%d,"error":%b%b%b' % (
        dumps(stop_reason),
        duration_ms,
        error or b"null",
        b',"withdrawn":true' if withdrawn else b"",
        b',"usage":%b' % usage if usage else b"",
    )


def agent_request_fields(request_id: str, request: bytes, expires_at: int) -> bytes:
    """The fields of ``permission_request`` and ``elicitation_request``.

    Args:
        request: the JSON of the params of ACP's request.
        expires_at: unix milliseconds.
    """
    return b'"request_id":%b,"request":%b,"expires_at":%d' % (
        dumps(request_id),
        request,
        expires_at,
    )


def encode_fields(**values: Any) -> bytes:
    """The fields of any other entry."""
    return dumps(values)[1:-1]


def error_fields(error: Error) -> dict[str, Any]:
    """The fields that describe an error in a ``turn_end`` entry or an ``error`` frame."""
    described = {"code": error.code, "message": error.message, "retryable": error.retryable}
    return {**described, **error.fields}
