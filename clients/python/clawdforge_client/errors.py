"""The errors of the client. Each has the server's ``code``, so that a program can react to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any


class ClawdforgeError(Exception):
    """A failure that the server reported, or one of the connection to it.

    Attributes:
        code: for programs: one of the server's error codes, or ``connection_lost``,
            ``position_unknown`` and ``closed``, which are the client's own.
        message: for a person.
        retryable: whether a repeated request may succeed.
        retry_after: seconds that the server asks to wait, or None.
        status: the HTTP status, or None.
        request_id: the id under which the server's log has the details, or None.
        body: the whole response, for its other fields.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.status = status
        self.body = dict(body or {})
        self.request_id: str | None = self.body.get("request_id")

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class ConnectionLostError(ClawdforgeError):
    """The server could not be reached for too long. Accepted prompts continue to run."""

    def __init__(self, message: str) -> None:
        super().__init__("connection_lost", message, retryable=True)


class TurnError(ClawdforgeError):
    """A turn ended with an error.

    Attributes:
        turn_index: the turn.
        text: what the agent had said before.
    """

    def __init__(self, error: Mapping[str, Any], turn_index: int, text: str) -> None:
        super().__init__(
            str(error.get("code", "internal")),
            str(error.get("message", "")),
            retryable=bool(error.get("retryable")),
            body=error,
        )
        self.turn_index = turn_index
        self.text = text


class RunError(ClawdforgeError):
    """A run failed. ``stderr`` has the last lines of its program."""

    @property
    def stderr(self) -> str:
        return str(self.body.get("stderr", ""))

    @property
    def stop_reason(self) -> str:
        return str(self.body.get("stop_reason", "error"))


STATUS_CODES = {
    400: "bad_request",
    401: "unauthorized",
    402: "budget_exceeded",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    410: "session_closed",
    413: "payload_too_large",
    429: "rate_limited",
    502: "agent_failed",
    503: "draining",
    504: "agent_timeout",
}
"""The codes of responses without the server's body, for example a proxy's."""
RETRYABLE_STATUS = {408, 429, 500, 502, 503, 504}
RETRYABLE_CODES = {
    *("request_timeout", "queue_full", "rate_limited", "internal", "pool_full", "draining"),
    *("server_restarted", "agent_timeout", "agent_failed"),
}


def error_of(
    status: int,
    body: Mapping[str, Any] | None,
    retry_after: str | None = None,
    kind: type[ClawdforgeError] = ClawdforgeError,
) -> ClawdforgeError:
    """The error that a response with *status* and *body* describes."""
    code = (body or {}).get("code")
    if not isinstance(code, str):
        code = STATUS_CODES.get(status, "internal" if status >= 500 else "bad_request")
        retryable = status in RETRYABLE_STATUS
    else:
        retryable = code in RETRYABLE_CODES
    message = (body or {}).get("error")
    return kind(
        code,
        message if isinstance(message, str) else f"the server responded with status {status}",
        retryable=bool((body or {}).get("retryable", retryable)),
        retry_after=seconds_of(retry_after),
        status=status,
        body=body,
    )


def seconds_of(retry_after: str | None) -> float | None:
    """The seconds of a ``Retry-After`` header, which may also be a date; None if it has none."""
    if not retry_after:
        return None
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
