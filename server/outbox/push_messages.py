"""The messages of push notifications: what the service worker of a page shows."""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from ..codec import dumps, loads
from ..sessions.alerts import Alert, AlertKind
from ..storage.outbox import PushMessageRow
from ..storage.schema import SessionRow
from .push_crypto import MAX_PUSH_BYTES, base64url

NEEDS_PERSON: frozenset[AlertKind] = frozenset({"permission_requested", "elicitation_requested"})
TITLE_LENGTH = 120
BODY_LENGTH = 400
OPTION_LENGTH = 120
MAX_PUSHED_OPTIONS = 16
TOPIC_LENGTH = 32


def push_message(alert: Alert, subscription_id: str, ttl_secs: float) -> PushMessageRow:
    """The message about an alert, before its encryption.

    Args:
        subscription_id: of the browser that gets it.
        ttl_secs: the time for which the push service keeps it for a browser that is offline.
    """
    fields: dict[str, Any] = {
        "type": alert.kind,
        "timestamp": utc_time(alert.at),
        "title": _short(_shown_title(alert.session), TITLE_LENGTH),
        "body": _short(_shown_body(alert), BODY_LENGTH),
    }
    if alert.session is not None:
        fields["session_id"] = alert.session.id
        fields |= {"turn_index": alert.turn_index, "seq": alert.seq}
    request_id = alert.fields.get("request_id")
    expires_at = alert.at + ttl_secs
    if request_id is not None:
        fields |= {"request_id": request_id, "expires_at": alert.fields["expires_at"]}
        expires_at = min(expires_at, alert.fields["expires_at"] / 1000)
    for name in ("stop_reason", "reason", "resets_at"):
        if name in alert.fields:
            fields[name] = alert.fields[name]
    if alert.kind == "permission_requested":
        fields["options"] = _pushed_options(alert.fields["request"])
    body = dumps(fields)
    while len(body) > MAX_PUSH_BYTES and fields.get("options"):
        fields["options"].pop()
        body = dumps(fields)
    subject = f"{fields.get('session_id', '')} {alert.kind} {request_id or ''}"
    topic = base64url(hashlib.sha256(subject.encode()).digest())[:TOPIC_LENGTH]
    return PushMessageRow(
        id=uuid.uuid4().hex,
        subscription_id=subscription_id,
        session_id=fields.get("session_id", ""),
        topic=topic,
        urgency="high" if alert.kind in NEEDS_PERSON else "normal",
        body=body,
        created_at=alert.at,
        expires_at=expires_at,
    )


def utc_time(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC, with milliseconds."""
    at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown_title(row: SessionRow | None) -> str:
    if row is None:
        return "clawdforge"
    title = loads(row.meta).get("title")
    return title if isinstance(title, str) and title.strip() else row.agent


def _shown_body(alert: Alert) -> str:
    fields = alert.fields
    if alert.kind == "permission_requested":
        call = fields["request"].get("toolCall")
        title = call.get("title") if isinstance(call, dict) else None
        return title if isinstance(title, str) and title else "The agent asks for permission."
    if alert.kind == "elicitation_requested":
        message = (fields["request"] or {}).get("message")
        return message if isinstance(message, str) and message else "The agent has a question."
    if alert.kind == "turn_ended":
        error = fields.get("error")
        return f"The turn failed: {error['message']}" if error else "The turn has ended."
    if alert.kind == "session_closed":
        return "The session was closed."
    return "The budget is used up."


def _pushed_options(request: Mapping[str, Any]) -> list[dict[str, str]]:
    """The options of a permission request, as ACP names their fields."""
    offered = request.get("options")
    options = []
    for option in offered if isinstance(offered, list) else ():
        option_id = option.get("optionId") if isinstance(option, dict) else None
        if not isinstance(option_id, str):
            continue
        shown = {
            name: _short(option[name], OPTION_LENGTH)
            for name in ("name", "kind")
            if isinstance(option.get(name), str)
        }
        options.append({"optionId": option_id, **shown})
    return options[:MAX_PUSHED_OPTIONS]


def _short(text: str, length: int) -> str:
    """The beginning of a text of an agent. Unpaired surrogates are replaced."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"
