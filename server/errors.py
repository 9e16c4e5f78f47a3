"""The one error class, and the table of its codes.

Every failure that a client sees is an :class:`Error`: it knows its code (for a
program), its message (for a person), its HTTP status and whether asking again
can help. Anything else that is raised is a defect: clients see ``internal``,
and the log has the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

STATUS: Final[dict[str, int]] = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "session_closed": 410,
    "precondition_failed": 412,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "expectation_failed": 417,
    "upgrade_required": 426,
    "queue_full": 429,
    "rate_limited": 429,
    "internal": 500,
    "agent_unavailable": 502,
    "agent_failed": 502,
    "login_required": 502,
    "pool_full": 503,
    "draining": 503,
    "server_restarted": 503,
    "agent_timeout": 504,
}

RETRYABLE: Final = frozenset(
    {
        "request_timeout",
        "queue_full",
        "rate_limited",
        "pool_full",
        "draining",
        "server_restarted",
        "agent_failed",
        "agent_timeout",
        "internal",
    }
)


class Error(Exception):
    """A failure with a name.

    Args:
        code: a key of :data:`STATUS`.
        message: one sentence for a person; it goes to the client as it is, so
            it names nothing that the client may not know.
        retry_after: seconds, for the ``Retry-After`` header.
        retryable: whether the same request may succeed later; by default what
            is usual for the code.
        fields: what clients are told besides, by name.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
        retryable: bool | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.retryable = code in RETRYABLE if retryable is None else retryable
        self.fields = fields or {}

    @property
    def status(self) -> int:
        return STATUS[self.code]


class DatabaseError(Exception):
    """A failed read or write of the database.

    Attributes:
        is_transient: whether the same operation may succeed later, as after a full disk.
    """

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class StartError(Exception):
    """The server cannot start; the message is one line for the operator."""


def bad_request(message: str) -> Error:
    return Error("bad_request", message)


def payload_too_large(message: str = "the body is too large") -> Error:
    return Error("payload_too_large", message)


def not_found(what: str = "session") -> Error:
    return Error("not_found", f"no such {what}")


def session_closed() -> Error:
    return Error("session_closed", "the session is closed")


def draining() -> Error:
    return Error("draining", "the server is going away; try again in a moment", retry_after=5)


def internal() -> Error:
    """What a client is told of a defect: nothing but that it is one."""
    return Error("internal", "internal error; the server's log has the details")


def not_stored() -> Error:
    return Error("internal", "the server cannot store anything at the moment; nothing was accepted")


RPC_CODES: Final[dict[str, int]] = {
    "bad_request": -32602,
    "unauthorized": -32000,
    "forbidden": -32000,
    "login_required": -32000,
    "not_found": -32002,
    "session_closed": -32002,
}
"""JSON-RPC's and ACP's codes for ours; the others are -32603, internal."""


class CloseCode(enum.IntEnum):
    """WebSocket close codes. Below 4500: come back and resume; from 4500: stay away."""

    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    TOO_BIG = 1009
    RESTARTING = 1012
    OVERLOADED = 1013
    INTERNAL = 4000
    POSITION_UNKNOWN = 4002
    STALLED = 4003
    NO_PONG = 4004
    RATE_LIMIT = 4005
    REFUSED = 4500
    BAD_FRAME = 4501
    AUTH_TIMEOUT = 4502
    REVOKED = 4503
    TOO_MANY_SOCKETS = 4504
    NO_SESSION = 4505
    PROTOCOL_VERSION = 4507
    SESSION_CLOSED = 4508


CLOSE_CODES: Final[dict[str, CloseCode]] = {
    "bad_request": CloseCode.BAD_FRAME,
    "unauthorized": CloseCode.REFUSED,
    "forbidden": CloseCode.REFUSED,
    "not_found": CloseCode.NO_SESSION,
    "session_closed": CloseCode.SESSION_CLOSED,
    "payload_too_large": CloseCode.TOO_BIG,
    "rate_limited": CloseCode.RATE_LIMIT,
    "draining": CloseCode.RESTARTING,
}
"""The close codes of failures that end a socket; of the others it is 4000."""
