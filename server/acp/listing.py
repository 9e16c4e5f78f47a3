"""The items and the page cursors of ``session/list``."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from ..codec import loads
from ..errors import bad_request
from ..storage.schema import SessionRow
from . import translate
from .params import NAMESPACE

MAX_TITLE_LENGTH = 200


def session_item(row: SessionRow) -> dict[str, Any]:
    """A session as ACP's ``SessionInfo``."""
    title = loads(row.meta).get("title")
    extension = {"agent": row.agent, "model": row.model, "permission": row.permission}
    return {
        "sessionId": row.id,
        "cwd": row.cwd,
        **({"title": title[:MAX_TITLE_LENGTH]} if isinstance(title, str) else {}),
        "updatedAt": translate.iso_time(row.last_turn_at or row.created_at),
        "_meta": {NAMESPACE: extension},
    }


def encode_cursor(number: int) -> str:
    """The cursor of the page after the session with that number."""
    return base64.urlsafe_b64encode(b"n%d" % number).decode()


def decode_cursor(cursor: str) -> int:
    """The number in a cursor.

    Raises:
        Error: ``bad_request``; this server has not made the cursor.
    """
    try:
        decoded = base64.urlsafe_b64decode(cursor.encode()).decode()
        if decoded.startswith("n") and decoded[1:].isdecimal() and len(decoded) < 20:
            return int(decoded[1:])
    except (binascii.Error, UnicodeError):
        pass
    raise bad_request("cursor: invalid")
