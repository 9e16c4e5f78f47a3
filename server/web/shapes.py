"""What REST answers: the shapes of the bodies, for who reads ``/openapi.json``.

The answers themselves are put together where they are made, many of them from
bytes that are JSON already; the tests hold them against these shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ..agents.base import Presence
from ..errors import STATUS

Ok = Annotated[bool, msgspec.Meta(extra_json_schema={"const": True})]
NotOk = Annotated[bool, msgspec.Meta(extra_json_schema={"const": False})]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[int, msgspec.Meta(description="Unix seconds.")]
Millis = Annotated[int, msgspec.Meta(description="Unix milliseconds.")]
Token = Annotated[str, msgspec.Meta(pattern="^cf_", description="Shown once, stored as a hash.")]
Code = Annotated[
    str,
    msgspec.Meta(description="For a program.", extra_json_schema={"enum": sorted(STATUS)}),
]
Message = Annotated[str, msgspec.Meta(description="One sentence, for a person.")]
RequestId = Annotated[str, msgspec.Meta(description="The server's log has more under it.")]
Permission = Literal["approve-all", "approve-reads", "deny-all", "ask"]

AuthMethods = Annotated[
    list[dict[str, Any]] | msgspec.UnsetType,
    msgspec.Meta(description="Only with `login_required`: the agent's own, as ACP lists them."),
]


class Failure(msgspec.Struct, kw_only=True):
    """Every failure."""

    ok: NotOk
    error: Message
    code: Code
    request_id: RequestId


class Done(msgspec.Struct, kw_only=True):
    """It is done."""

    ok: Ok


# /run and /files.


class RunAnswer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A run's answer: exactly these keys."""

    ok: Ok
    result: Annotated[
        Any,
        msgspec.Meta(description="The answer's text without its code fence, parsed if it is JSON."),
    ]
    duration_ms: Annotated[Count, msgspec.Meta(description="Without the time in the queue.")]
    stop_reason: str


class RunFailure(msgspec.Struct, kw_only=True):
    """A run without an answer."""

    ok: NotOk
    error: Message
    code: Code
    retryable: bool
    stderr: Annotated[str, msgspec.Meta(description="The end of what the program wrote there.")]
    duration_ms: Count
    stop_reason: Literal["error", "timeout", "cancelled"]
    request_id: RequestId
    auth_methods: AuthMethods = msgspec.UNSET


class Uploaded(msgspec.Struct, kw_only=True):
    """A file that was uploaded."""

    ok: Ok
    file_token: Annotated[str, msgspec.Meta(pattern="^ff_")]
    ttl_secs: Annotated[int, msgspec.Meta(description="After so many seconds it is deleted.")]
    size: Annotated[Count, msgspec.Meta(description="In bytes.")]


# Sessions.


class QueuedTurn(msgspec.Struct, kw_only=True):
    """A prompt that waits for its turn."""

    turn_index: Count
    id: str | None
    prompt: Annotated[
        list[Any], msgspec.Meta(description="Its first 1000 characters, as text blocks.")
    ]


class PendingPermission(msgspec.Struct, kw_only=True):
    """A permission request that waits for an answer."""

    request_id: str
    request: Annotated[
        Any,
        msgspec.Meta(
            description="The agent's params, in ACP's shape, with all that is known of the call."
        ),
    ]
    expires_at: Millis
    turn_index: Count


class Session(msgspec.Struct, kw_only=True):
    """A session's state."""

    session_id: str
    agent: str
    model: str | None
    system: str | None
    system_delivery: Annotated[
        Literal["agent", "prompt"] | None,
        msgspec.Meta(
            description="How the agent gets `system`: as such, or in front of its first prompt."
        ),
    ]
    meta: dict[str, Any]
    permission: Permission
    cwd: Annotated[str, msgspec.Meta(description="The agent's folder.")]
    created_at: Seconds
    last_turn_at: Seconds | None
    turn_count: Count
    closed_at: Seconds | None
    close_reason: Literal["client", "idle", "admin"] | None
    state: Literal["idle", "running", "closed"]
    head: Annotated[Count, msgspec.Meta(description="The newest entry's `seq`.")]
    turn_index: Annotated[Count | None, msgspec.Meta(description="Of the turn that runs.")]
    queued: list[QueuedTurn]
    pending_permissions: list[PendingPermission]
    sockets: Count
    agent_state: Presence
    mode: Annotated[
        str | None, msgspec.Meta(description="The agent's mode, or the one it will be put into.")
    ]
    asks: Annotated[
        bool | None,
        msgspec.Meta(description="Whether the agent, in its mode, asks; null: it is not known."),
    ]
    modes: Annotated[Any, msgspec.Meta(description="What the agent last said, or null.")]
    models: Any
    config_options: Any
    commands: Any


class SessionState(Session, kw_only=True):
    """A session's state."""

    ok: Ok


class SessionList(msgspec.Struct, kw_only=True):
    """Sessions, newest first."""

    ok: Ok
    count: Count
    sessions: list[Session]


class SessionClosed(msgspec.Struct, kw_only=True):
    """The session is closed."""

    ok: Ok
    session_id: str
    already_closed: bool | msgspec.UnsetType = msgspec.UNSET


Omitted = Annotated[
    bool, msgspec.Meta(description="Whether `events` are left out because they are too long.")
]
OmittedFrom = Annotated[
    Annotated[int, msgspec.Meta(ge=1)] | None,
    msgspec.Meta(description="With `events_omitted`: the turn's first or last entry in the log."),
]


class TurnAnswer(msgspec.Struct, kw_only=True):
    """A turn that has ended."""

    ok: Ok
    session_id: str
    turn_index: Annotated[int, msgspec.Meta(ge=1)]
    stop_reason: str
    duration_ms: Count
    events: Annotated[
        list[dict[str, Any]],
        msgspec.Meta(description="The agent's raw ACP messages; the last is its response."),
    ]
    events_omitted: Omitted = False
    first_seq: OmittedFrom = None
    last_seq: OmittedFrom = None


class TurnFailure(msgspec.Struct, kw_only=True):
    """A turn that failed."""

    ok: NotOk
    error: Message
    code: Code
    request_id: RequestId
    retryable: bool
    auth_methods: AuthMethods = msgspec.UNSET
    session_id: str
    turn_index: Annotated[int, msgspec.Meta(ge=1)]
    stop_reason: str
    duration_ms: Count
    events: list[dict[str, Any]]
    events_omitted: Omitted = False
    first_seq: OmittedFrom = None
    last_seq: OmittedFrom = None


class Cancelled(msgspec.Struct, kw_only=True):
    """Whether there was a turn to cancel."""

    ok: Ok
    cancelled: bool


class Ticket(msgspec.Struct, kw_only=True):
    """What lets one WebSocket in, once."""

    ok: Ok
    ticket: str
    expires_in: Annotated[int, msgspec.Meta(description="Seconds.")]


class TurnError(msgspec.Struct, kw_only=True):
    """Why a turn failed."""

    code: Code
    message: Message
    retryable: bool
    auth_methods: AuthMethods = msgspec.UNSET


class _Entry(msgspec.Struct, kw_only=True, tag_field="type"):
    seq: Annotated[int, msgspec.Meta(ge=1)]
    ts: Millis
    turn_index: Count


class TurnStartEntry(_Entry, kw_only=True, tag="turn_start"):
    """A turn begins."""

    prompt: list[Any]
    id: str | None
    context: Literal["new", "kept", "lost"]


class EventEntry(_Entry, kw_only=True, tag="event"):
    """One raw ACP message from the agent."""

    event: dict[str, Any]


class PermissionRequestEntry(_Entry, kw_only=True, tag="permission_request"):
    """The agent asks for permission."""

    request_id: str
    request: Any
    expires_at: Millis


class PermissionResolvedEntry(_Entry, kw_only=True, tag="permission_resolved"):
    """It was answered."""

    request_id: str
    outcome: dict[str, Any]
    by: Literal["client", "policy", "timeout", "cancel"]


class NoticeEntry(_Entry, kw_only=True, tag="notice"):
    """Something that the server did or found."""

    notice: Literal["restored", "asks"]
    setting: Annotated[str, msgspec.Meta(description="Of `restored`.")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    value: str | msgspec.UnsetType = msgspec.UNSET
    asks: Annotated[bool, msgspec.Meta(description="Of `asks`.")] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class TurnEndEntry(_Entry, kw_only=True, tag="turn_end"):
    """A turn has ended."""

    stop_reason: str
    duration_ms: Count
    error: TurnError | None


class SessionClosedEntry(_Entry, kw_only=True, tag="session_closed"):
    """The last entry."""

    reason: Literal["client", "idle", "admin"]


Entry = (
    TurnStartEntry
    | EventEntry
    | PermissionRequestEntry
    | PermissionResolvedEntry
    | NoticeEntry
    | TurnEndEntry
    | SessionClosedEntry
)


class Entries(msgspec.Struct, kw_only=True):
    """Log entries."""

    ok: Ok
    entries: list[Entry]
    head: Count
    has_more: Annotated[
        bool, msgspec.Meta(description="Whether there are entries after the last one here.")
    ]


# Agents, health, the operator.


class Agent(msgspec.Struct, kw_only=True):
    """An agent that can be asked for by name."""

    name: str
    installed: bool
    default: bool
    install: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="What would install it, where it is not."),
    ] = msgspec.UNSET


class AgentList(msgspec.Struct, kw_only=True):
    """All agents."""

    ok: Ok
    agents: list[Agent]


class Health(msgspec.Struct, kw_only=True):
    """What the server sees of itself."""

    ok: Ok
    version: str
    claude_present: bool
    claude_version: str | None
    acpx_present: bool
    acpx_version: str | None
    open_sessions: Count
    live_agents: Count
    sockets: Count
    uptime_secs: Count


class Ready(msgspec.Struct, kw_only=True):
    """It takes requests."""

    ok: Ok


class TokenInfo(msgspec.Struct, kw_only=True):
    """An app's token, without its secret."""

    name: str
    ip_cidrs: list[str]
    created_at: Seconds


class TokenMade(TokenInfo, kw_only=True):
    """A new token; this is the only time that it is shown."""

    ok: Ok
    token: Token


class TokenList(msgspec.Struct, kw_only=True):
    """All tokens."""

    ok: Ok
    count: Count
    tokens: list[TokenInfo]


class TokenGone(msgspec.Struct, kw_only=True):
    """The token is revoked."""

    ok: Ok
    name: str


class Document(msgspec.Struct, kw_only=True):
    """OpenAPI 3.1."""

    openapi: Annotated[str, msgspec.Meta(pattern=r"^3\.1\.")]
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
