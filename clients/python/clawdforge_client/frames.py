"""The frames and close codes that both sockets use: a session's, and the one for many sessions."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from .errors import ClawdforgeError, seconds_of
from .rest import backoff
from .shapes import Json, Prompt

MAX_FRAME_BYTES = 4 << 20
"""The server refuses longer frames."""
OPEN_SECS = 30
SILENCE_SECS = 45
"""The server sends a heartbeat every 20 seconds."""
TRANSIENT_CODES = {"rate_limited", "draining"}
"""A prompt that is refused with one of these codes is sent again."""

CONNECTION_LOST = 1006
FRAME_TOO_LARGE = 1009
OVERLOADED = 1013
UNKNOWN_POSITION = 4002
TOO_MANY_FRAMES = 4005
SESSION_CLOSED = 4508
FIRST_FINAL_CODE = 4500
"""From this close code on, the server refuses a reconnect, too."""
OTHER_TOKEN_CODES = frozenset({4500, 4503})
"""The final codes after which the server may accept another token."""
REFUSALS = {
    4500: "unauthorized",
    4501: "bad_request",
    4502: "unauthorized",
    4503: "unauthorized",
    4504: "rate_limited",
    4505: "not_found",
    4507: "not_supported",
}
"""The error codes that correspond to final close codes."""


def prompt_frame(
    prompt: Prompt, *, prompt_id: str | None, files: Sequence[str], steer: bool
) -> Json:
    """The frame that sends a prompt.

    Args:
        prompt_id: by default a random id.
        files: tokens of uploaded files.
        steer: add the prompt to the running turn, if the agent accepts it there.
    """
    frame: Json = {
        "type": "prompt",
        "id": prompt_id or secrets.token_hex(16),
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
    }
    if files:
        frame["files"] = list(files)
    if steer:
        frame["steer"] = True
    return frame


def encoded_frame(frame: Json) -> str:
    return json.dumps(frame, ensure_ascii=False)


def check_size(frame: Json) -> None:
    """Check that the server accepts a prompt of this size.

    Raises:
        ClawdforgeError: ``payload_too_large``.
    """
    if len(encoded_frame(frame).encode()) > MAX_FRAME_BYTES:
        raise ClawdforgeError("payload_too_large", "the prompt exceeds 4 MiB")


def frame_error(frame: Mapping[str, Any]) -> ClawdforgeError:
    """The error that an ``error`` frame describes."""
    milliseconds = frame.get("retry_after_ms")
    return ClawdforgeError(
        str(frame["code"]),
        str(frame.get("message", "")),
        retryable=bool(frame.get("retryable")),
        retry_after=None if milliseconds is None else milliseconds / 1000,
        body=frame,
    )


def resend_secs(error: ClawdforgeError) -> float:
    """Seconds after which a prompt is sent again that was refused for now."""
    return (1 if error.retry_after is None else error.retry_after) + backoff(2)


def retry_after_of(error: aiohttp.WSServerHandshakeError) -> float:
    """Seconds that a server, or a proxy, asks to wait when it refuses a WebSocket."""
    text = None if error.headers is None else error.headers.get("Retry-After")
    return seconds_of(text) or 0.0


def close_error(code: int, reason: str) -> ClawdforgeError:
    """The error of a socket that the server closed with a final *code*."""
    return ClawdforgeError(REFUSALS.get(code, "forbidden"), f"{reason} ({code})")
