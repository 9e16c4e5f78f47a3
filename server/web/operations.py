"""The table of REST: every call with what it takes, what it gives, and how it fails.

The bodies, queries and headers named here are the ones that the routes check
requests with; ``openapi.py`` makes the document of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ..acp.params import Wishes
from . import bodies, shapes

JSON = "application/json"
SSE = "text/event-stream"

Wait = Literal["body", "work", "reply", "stream", "socket"]
"""The client's own bytes, the end of a turn or a run, a client that takes a long reply slowly,
entries that are streamed, frames."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A call.

    Attributes:
        waits: what a request of it may wait for once its token is accepted. A revocation of the
            token ends that wait (:meth:`auth.Credential.waiting`).
        answer: the shape of a success's JSON; None where it gives something else.
        example: of a success, or of a request that gives it.
        auth_later: the token may also come by another way, once the call is through.
        media: what else a success may be, by its type, with an example.
        codes: of its own failures; those of its ``auth``, its body and every call are added.
        failures: shapes of failures that have fields of their own, by status.
        statuses: of what is neither, with what it means.
    """

    waits: tuple[Wait, ...]
    tag: str
    summary: str
    auth: Literal["app", "admin"] | None = "app"
    auth_later: bool = False
    body: type | None = None
    multipart: type | None = None
    request: Any = None
    query: type | None = None
    headers: type | None = None
    answer: type | None = None
    example: Any = None
    media: Mapping[str, str] = dataclasses.field(default_factory=dict)
    codes: tuple[str, ...] = ()
    failures: Mapping[int, type] = dataclasses.field(default_factory=dict)
    statuses: Mapping[int, str] = dataclasses.field(default_factory=dict)
    about: str = ""


SESSION_ID = "939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17"
STATE = {
    "ok": True,
    "session_id": SESSION_ID,
    "agent": "demo",
    "model": None,
    "system": None,
    "system_delivery": None,
    "meta": {"channel": "42"},
    "permission": "approve-all",
    "cwd": "/srv/clawdforge/data/workspaces/939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17",
    "created_at": 1795479703,
    "last_turn_at": 1795479707,
    "turn_count": 1,
    "closed_at": None,
    "close_reason": None,
    "state": "idle",
    "head": 240,
    "turn_index": None,
    "queued": [],
    "pending_permissions": [],
    "sockets": 0,
    "agent_state": "live",
    "mode": "ask",
    "asks": True,
    "modes": None,
    "models": None,
    "config_options": None,
    "commands": None,
}
LISTED = {name: value for name, value in STATE.items() if name != "ok"}
RESPONSE = {"jsonrpc": "2.0", "id": 2, "result": {"stopReason": "end_turn"}}
TURN = {
    "ok": True,
    "session_id": SESSION_ID,
    "turn_index": 1,
    "stop_reason": "end_turn",
    "duration_ms": 4369,
    "events": [RESPONSE],
}
ENTRY = {
    "type": "turn_end",
    "seq": 125,
    "ts": 1795479875223,
    "turn_index": 1,
    "stop_reason": "end_turn",
    "duration_ms": 2451,
    "error": None,
}
EVENTS = (
    'id: 125\ndata: {"type":"turn_end","seq":125,"ts":1795479875223,"turn_index":1,'
    '"stop_reason":"end_turn","duration_ms":2451,"error":null}\n\n'
)
METRICS = "# TYPE clawdforge_open_sessions gauge\nclawdforge_open_sessions 3.0\n"
TOKEN = {"name": "my-bot", "ip_cidrs": ["10.0.0.0/8"], "created_at": 1795479703}

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/run"): Operation(
        waits=("body", "work"),
        tag="One prompt, one answer",
        summary="Run one prompt",
        about="On a claude process of its own, or in one turn of another agent. Who hangs up"
        " stops the run.",
        body=bodies.RunOnce,
        request={"prompt": "List three primes as JSON, nothing else."},
        answer=shapes.RunAnswer,
        example={"ok": True, "result": [2, 3, 5], "duration_ms": 2140, "stop_reason": "end_turn"},
        codes=("rate_limited", "pool_full", "draining"),
        failures={502: shapes.RunFailure},
    ),
    ("POST", "/files"): Operation(
        waits=("body",),
        tag="Files",
        summary="Upload a file",
        about="Its token is then good for `files` of a prompt, for this app alone.",
        multipart=bodies.Upload,
        query=bodies.UploadQuery,
        answer=shapes.Uploaded,
        example={"ok": True, "file_token": "ff_…", "ttl_secs": 3600, "size": 1024},
        codes=("payload_too_large", "rate_limited"),
    ),
    ("POST", "/sessions"): Operation(
        waits=("body",),
        tag="Sessions",
        summary="Open a session",
        about="It answers before the agent runs: one that does not start fails the first turn.",
        body=bodies.CreateSession,
        request={"agent": "demo", "meta": {"channel": "42"}},
        answer=shapes.SessionState,
        example=STATE,
        codes=("agent_unavailable", "pool_full", "draining"),
    ),
    ("GET", "/sessions"): Operation(
        waits=("reply",),
        tag="Sessions",
        summary="List sessions",
        query=bodies.ListSessions,
        answer=shapes.SessionList,
        example={"ok": True, "count": 1, "sessions": [LISTED]},
    ),
    ("GET", "/sessions/{session_id}"): Operation(
        waits=(),
        tag="Sessions",
        summary="Get a session's state",
        answer=shapes.SessionState,
        example=STATE,
    ),
    ("PATCH", "/sessions/{session_id}"): Operation(
        waits=("body",),
        tag="Sessions",
        summary="Note something about a session",
        about="`meta` is merged into what is there; null removes a key.",
        body=bodies.UpdateSession,
        request={"meta": {"title": "My first one"}},
        answer=shapes.SessionState,
        example=STATE,
    ),
    ("DELETE", "/sessions/{session_id}"): Operation(
        waits=(),
        tag="Sessions",
        summary="Close a session",
        about="It stops a running turn and closes its sockets.",
        answer=shapes.SessionClosed,
        example={"ok": True, "session_id": SESSION_ID},
    ),
    ("POST", "/sessions/{session_id}/turn"): Operation(
        waits=("body", "work", "reply", "stream"),
        tag="Turns",
        summary="Prompt the agent, and wait for the turn's end",
        about="With `Accept: text/event-stream` the turn's log entries come as server-sent events,"
        " and the status is 200 however the turn ends.",
        body=bodies.RunTurn,
        request={"prompt": "hello"},
        headers=bodies.TurnHeaders,
        answer=shapes.TurnAnswer,
        example=TURN,
        media={SSE: EVENTS},
        codes=("session_closed", "queue_full", "rate_limited", "draining"),
        failures={
            400: shapes.TurnFailure,  # of a setting that the agent does not have, say
            500: shapes.TurnFailure,
            502: shapes.TurnFailure,
            503: shapes.TurnFailure,
            504: shapes.TurnFailure,
        },
    ),
    ("POST", "/sessions/{session_id}/cancel"): Operation(
        waits=(),
        tag="Turns",
        summary="Cancel the running turn",
        answer=shapes.Cancelled,
        example={"ok": True, "cancelled": True},
    ),
    ("POST", "/sessions/{session_id}/permissions/{request_id}"): Operation(
        waits=("body",),
        tag="Turns",
        summary="Answer a permission request",
        about="With one of the agent's options, or as cancelled; the first answer wins.",
        body=bodies.AnswerPermission,
        request={"option_id": "allow_once"},
        answer=shapes.Done,
        example={"ok": True},
    ),
    ("GET", "/sessions/{session_id}/events"): Operation(
        waits=("reply", "stream"),
        tag="The log",
        summary="Read a session's log",
        about="The entries behind `after`. With `Accept: text/event-stream` they come as"
        " server-sent events and go on live; `id:` is an entry's `seq`, `Last-Event-ID` resumes.",
        query=bodies.ListEvents,
        headers=bodies.EventsHeaders,
        answer=shapes.Entries,
        example={"ok": True, "entries": [ENTRY], "head": 125, "has_more": False},
        media={SSE: EVENTS},
        codes=("rate_limited",),
        statuses={204: "A stream of a closed session: the client has all of it."},
    ),
    ("GET", "/sessions/{session_id}/ws"): Operation(
        waits=("socket",),
        tag="WebSockets",
        summary="Open the session's WebSocket",
        about="The main way in, which this document cannot describe. Who cannot send a header"
        " sends a first frame `auth`.",
        auth_later=True,
        query=bodies.SocketQuery,
        codes=("rate_limited",),
        statuses={101: "From here on it is a WebSocket."},
    ),
    ("GET", "/acp"): Operation(
        waits=("socket",),
        tag="WebSockets",
        summary="Open a WebSocket that speaks ACP",
        about="The Agent Client Protocol as agents speak it, one JSON-RPC message a text frame. Who"
        " cannot send a header offers the token as a subprotocol.",
        auth_later=True,
        query=Wishes,
        codes=("upgrade_required", "rate_limited", "draining"),
        statuses={101: "From here on it is a WebSocket."},
    ),
    ("POST", "/sessions/{session_id}/ticket"): Operation(
        waits=(),
        tag="Sessions",
        summary="Make a ticket for a browser",
        about="It lets one WebSocket into this session, once.",
        answer=shapes.Ticket,
        example={"ok": True, "ticket": "cft_…", "expires_in": 30},
        codes=("rate_limited",),
    ),
    ("GET", "/agents"): Operation(
        waits=(),
        tag="Sessions",
        summary="List the agents",
        answer=shapes.AgentList,
        example={"ok": True, "agents": [{"name": "demo", "installed": True, "default": True}]},
    ),
    ("POST", "/admin/tokens"): Operation(
        waits=(),
        tag="For the operator",
        summary="Make an app's token",
        auth="admin",
        body=bodies.CreateToken,
        request={"name": "my-bot", "ip_cidrs": ["10.0.0.0/8"]},
        answer=shapes.TokenMade,
        example={"ok": True, **TOKEN, "token": "cf_…"},
        codes=("conflict",),
    ),
    ("GET", "/admin/tokens"): Operation(
        waits=(),
        tag="For the operator",
        summary="List the tokens",
        auth="admin",
        answer=shapes.TokenList,
        example={"ok": True, "count": 1, "tokens": [TOKEN]},
    ),
    ("DELETE", "/admin/tokens/{name}"): Operation(
        waits=(),
        tag="For the operator",
        summary="Revoke a token",
        about="What waits with it is answered with 401, its sockets close, its turns and runs end.",
        auth="admin",
        answer=shapes.TokenGone,
        example={"ok": True, "name": "my-bot"},
    ),
    ("DELETE", "/admin/sessions/{session_id}"): Operation(
        waits=(),
        tag="For the operator",
        summary="Close any app's session",
        auth="admin",
        answer=shapes.SessionClosed,
        example={"ok": True, "session_id": SESSION_ID},
    ),
    ("GET", "/metrics"): Operation(
        waits=(),
        tag="For the operator",
        summary="Figures for Prometheus",
        auth="admin",
        media={"text/plain": METRICS},
    ),
    ("GET", "/healthz"): Operation(
        waits=(),
        tag="For who watches",
        summary="Is it there?",
        auth=None,
        answer=shapes.Health,
        example={
            "ok": True,
            "version": "0.3.0",
            "claude_present": False,
            "claude_version": None,
            "acpx_present": True,
            "acpx_version": "0.19.1",
            "open_sessions": 3,
            "live_agents": 1,
            "sockets": 2,
            "uptime_secs": 86400,
        },
    ),
    ("GET", "/readyz"): Operation(
        waits=(),
        tag="For who watches",
        summary="Does it take requests?",
        auth=None,
        answer=shapes.Ready,
        example={"ok": True},
        codes=("draining",),
    ),
    ("GET", "/openapi.json"): Operation(
        waits=(),
        tag="For who watches",
        summary="This document",
        auth=None,
        answer=shapes.Document,
        example={"openapi": "3.1.1", "info": {}, "paths": {}, "components": {}},
    ),
}
