"""The one error class, its codes, and the function that maps any exception to a failure.

A client sees an :class:`Error` only. :func:`failure_of` maps every other exception to ``internal``
and logs it. The attributes of an :class:`ErrorCode` give a failure its form in each protocol: an
HTTP status, a WebSocket close code, a JSON-RPC code.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

RPC_INVALID_PARAMS = -32602
RPC_INTERNAL = -32603
RPC_AUTH_REQUIRED = -32000
RPC_NOT_FOUND = -32002


class CloseCode(enum.IntEnum):
    """WebSocket close codes. Below 4500 a client reconnects and resumes; from 4500 it must not."""

    GOING_AWAY = 1001
    """The client has disconnected. The server never sends this code."""
    PROTOCOL_ERROR = 1002
    """The client broke the protocol of WebSocket or ACP."""
    TOO_BIG = 1009
    """A message has too many bytes or values."""
    RESTARTING = 1012
    """The server is stopping."""
    OVERLOADED = 1013
    """The client's message could not be received in time, or in memory."""
    INTERNAL = 4000
    """A defect, or the database cannot be read."""
    POSITION_UNKNOWN = 4002
    """The position to resume from is past the end of the log."""
    STALLED = 4003
    """The client does not read."""
    NO_PONG = 4004
    """The client does not answer pings."""
    RATE_LIMIT = 4005
    """The client sent too many frames in a second."""
    REFUSED = 4500
    """The credential is refused."""
    BAD_FRAME = 4501
    """A frame is not a JSON object, or is not a text frame."""
    AUTH_TIMEOUT = 4502
    """The client sent no ``auth`` frame in time."""
    REVOKED = 4503
    """The credential was revoked."""
    TOO_MANY_SOCKETS = 4504
    """The session or the app has too many connections."""
    NO_SESSION = 4505
    """The session does not exist, or belongs to another app."""
    PROTOCOL_VERSION = 4507
    """The client requested another version of the protocol."""
    SESSION_CLOSED = 4508
    """The session is closed."""


def _define(
    value: str,
    status: int,
    description: str,
    *,
    is_retryable: bool = False,
    close_code: CloseCode = CloseCode.INTERNAL,
    rpc_code: int = RPC_INTERNAL,
) -> tuple[str, int, str, bool, CloseCode, int]:
    """The arguments of an :class:`ErrorCode`, with defaults."""
    return value, status, description, is_retryable, close_code, rpc_code


class ErrorCode(enum.StrEnum):
    """The codes of all failures.

    Attributes:
        status: of HTTP.
        description: the meaning, as the API's description gives it.
        is_retryable: whether the same request may succeed later. An error may say otherwise.
        close_code: of a WebSocket that ends because of the failure.
        rpc_code: of JSON-RPC or ACP.
    """

    status: int
    description: str
    is_retryable: bool
    close_code: CloseCode
    rpc_code: int

    def __new__(cls, value: str, *attributes: Any) -> ErrorCode:
        code = str.__new__(cls, value)
        code._value_ = value
        (
            code.status,
            code.description,
            code.is_retryable,
            code.close_code,
            code.rpc_code,
        ) = attributes
        return code

    BAD_REQUEST = _define(
        "bad_request",
        400,
        "A field is invalid.",
        close_code=CloseCode.BAD_FRAME,
        rpc_code=RPC_INVALID_PARAMS,
    )
    NOT_SUPPORTED = _define(
        "not_supported",
        400,
        "The agent, or the server's way to run it, cannot do that.",
        rpc_code=RPC_INVALID_PARAMS,
    )
    UNAUTHORIZED = _define(
        "unauthorized",
        401,
        "No valid token.",
        close_code=CloseCode.REFUSED,
        rpc_code=RPC_AUTH_REQUIRED,
    )
    BUDGET_EXCEEDED = _define(
        "budget_exceeded",
        402,
        "The app has used up its budget. `resets_at` says until when, in unix seconds.",
    )
    FORBIDDEN = _define(
        "forbidden",
        403,
        "The host name or the origin is not allowed, or the token does not allow the call.",
        close_code=CloseCode.REFUSED,
        rpc_code=RPC_AUTH_REQUIRED,
    )
    NOT_FOUND = _define(
        "not_found",
        404,
        "The resource does not exist, or belongs to another app.",
        close_code=CloseCode.NO_SESSION,
        rpc_code=RPC_NOT_FOUND,
    )
    METHOD_NOT_ALLOWED = _define("method_not_allowed", 405, "The path has no such method.")
    REQUEST_TIMEOUT = _define(
        "request_timeout", 408, "The body arrived too slowly.", is_retryable=True
    )
    CONFLICT = _define("conflict", 409, "The name is taken, or the state does not allow it.")
    SESSION_CLOSED = _define(
        "session_closed",
        410,
        "The session is closed.",
        close_code=CloseCode.SESSION_CLOSED,
        rpc_code=RPC_NOT_FOUND,
    )
    PRECONDITION_FAILED = _define(
        "precondition_failed",
        412,
        "The file has changed since the version that `If-Match` names.",
    )
    PAYLOAD_TOO_LARGE = _define(
        "payload_too_large",
        413,
        "The body or a file is too large.",
        close_code=CloseCode.TOO_BIG,
    )
    UNSUPPORTED_MEDIA_TYPE = _define(
        "unsupported_media_type", 415, "The body has a `Content-Encoding`."
    )
    RANGE_NOT_SATISFIABLE = _define("range_not_satisfiable", 416, "The file has no such range.")
    EXPECTATION_FAILED = _define(
        "expectation_failed", 417, "The `Expect` header is not `100-continue`."
    )
    UPGRADE_REQUIRED = _define(
        "upgrade_required", 426, "The path is a WebSocket: the request must be an upgrade."
    )
    SCHEMA_FAILED = _define(
        "schema_failed", 422, "The agent's result is not valid against the request's `schema`."
    )
    QUEUE_FULL = _define(
        "queue_full", 429, "The session's queue of prompts is full.", is_retryable=True
    )
    RATE_LIMITED = _define(
        "rate_limited",
        429,
        "Rate limit reached.",
        is_retryable=True,
        close_code=CloseCode.RATE_LIMIT,
    )
    INTERNAL = _define("internal", 500, "A defect of the server.", is_retryable=True)
    AGENT_UNAVAILABLE = _define(
        "agent_unavailable", 502, "The agent is not installed, or does not start."
    )
    AGENT_FAILED = _define(
        "agent_failed",
        502,
        "The agent returned an error, or its process exited.",
        is_retryable=True,
    )
    LOGIN_REQUIRED = _define(
        "login_required",
        502,
        "The agent requires a login. `error` gives the command; `auth_methods` is ACP's list.",
        rpc_code=RPC_AUTH_REQUIRED,
    )
    POOL_FULL = _define("pool_full", 503, "Capacity limit reached.", is_retryable=True)
    DRAINING = _define(
        "draining",
        503,
        "The server is stopping.",
        is_retryable=True,
        close_code=CloseCode.RESTARTING,
    )
    SERVER_RESTARTED = _define(
        "server_restarted", 503, "The server stopped during the turn.", is_retryable=True
    )
    AGENT_TIMEOUT = _define("agent_timeout", 504, "The time limit was exceeded.", is_retryable=True)


class Error(Exception):
    """A failure that a client receives.

    Args:
        code: an :class:`ErrorCode`, or its value.
        message: one sentence for a person. It is sent to the client unchanged, so it must not
            contain secrets.
        retry_after: seconds, for the ``Retry-After`` header.
        retryable: whether the same request may succeed later; by default the code's.
        fields: further fields of the failure.
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
        self.code = ErrorCode(code)
        self.message = message
        self.retry_after = retry_after
        self.retryable = self.code.is_retryable if retryable is None else retryable
        self.fields = fields or {}

    @property
    def status(self) -> int:
        """The status of the HTTP response."""
        return self.code.status


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


def failure_of(error: BaseException, operation: str, **log_fields: object) -> Error:
    """Map any exception to the failure that the client receives, and log what is not its mistake.

    Args:
        operation: the operation that failed, the subject of the log line: ``the request``.
        log_fields: fields of the log line, for example ``request_id`` or ``session``.
    """
    if isinstance(error, Error):
        return error
    if isinstance(error, DatabaseError) and error.is_transient:  # the traceback would not help
        logger.error("%s failed: the database: %s", operation, error, extra=log_fields)
    else:
        logger.error("%s failed", operation, exc_info=error, extra=log_fields)
    return internal()


def bad_request(message: str) -> Error:
    return Error(ErrorCode.BAD_REQUEST, message)


def not_supported(message: str) -> Error:
    return Error(ErrorCode.NOT_SUPPORTED, message)


def payload_too_large(message: str = "the body is too large") -> Error:
    return Error(ErrorCode.PAYLOAD_TOO_LARGE, message)


def not_found(what: str = "session") -> Error:
    return Error(ErrorCode.NOT_FOUND, f"no such {what}")


def forbidden_to_shares() -> Error:
    return Error(ErrorCode.FORBIDDEN, "a share can only read its session")


def session_closed() -> Error:
    return Error(ErrorCode.SESSION_CLOSED, "the session is closed")


def draining() -> Error:
    """The failure of new work while the server stops."""
    message = "the server is going away; try again in a moment"
    return Error(ErrorCode.DRAINING, message, retry_after=5)


def internal() -> Error:
    """The failure for a defect, without its details."""
    return Error(ErrorCode.INTERNAL, "internal error; the server's log has the details")


def not_stored() -> Error:
    """The failure for work that was refused because the database takes no writes."""
    message = "the server cannot store anything at the moment; nothing was accepted"
    return Error(ErrorCode.INTERNAL, message)
