"""A session's state, as REST returns it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec

from ..agents.agent_state import Presence
from ..sessions.option_views import INFO_EXAMPLE, OptionsInfo
from .field_types import (
    Count,
    PermissionMode,
    SessionUsageInfo,
    UnixMillis,
    UnixSeconds,
    doc,
)

SESSION_ID_EXAMPLE = "939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17"
SESSION_EXAMPLE: Mapping[str, Any] = {
    "session_id": SESSION_ID_EXAMPLE,
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
    "pending_elicitations": [],
    "sockets": 0,
    "sandbox": "landlock",
    "title": None,
    "unread": 0,
    "usage": {},
    "forked_from": None,
    "ttl_secs": 3600,
    "retention_secs": 86400,
    "agent_state": "live",
    "mode": "ask",
    "asks": True,
    "modes": None,
    "models": None,
    "config_options": None,
    "commands": None,
    "steering": True,
    **INFO_EXAMPLE,
}
STATE_EXAMPLE = {"ok": True, **SESSION_EXAMPLE}


class QueuedTurn(msgspec.Struct, kw_only=True):
    """A queued prompt."""

    turn_index: Count
    id: str | None
    prompt: Annotated[list[Any], doc("Its first 1000 characters, as text blocks.")]


class PendingPermissionInfo(msgspec.Struct, kw_only=True):
    """A permission request that is not answered yet."""

    request_id: str
    request: Annotated[
        Any,
        doc("The agent's params, in ACP's format, with everything known about the call."),
    ]
    expires_at: UnixMillis
    turn_index: Count


class PendingElicitationInfo(msgspec.Struct, kw_only=True):
    """A question of the agent that is not answered yet."""

    request_id: str
    request: Annotated[Any, doc("The agent's params, in ACP's format.")]
    expires_at: UnixMillis
    turn_index: Count


class ForkOrigin(msgspec.Struct, kw_only=True):
    """The session with whose log a fork begins."""

    session_id: str
    turn_index: Annotated[int, doc("The last turn that the fork has of it.")]


class _WholeState(OptionsInfo, kw_only=True):
    """A session's state."""

    session_id: str
    agent: str
    model: str | None
    system: str | None
    system_delivery: Annotated[
        Literal["agent", "prompt"] | None,
        doc("How the agent gets `system`: as its system prompt, or before its first prompt."),
    ]
    meta: dict[str, Any]
    permission: PermissionMode
    cwd: Annotated[str, doc("The agent's working directory.")]
    created_at: UnixSeconds
    last_turn_at: UnixSeconds | None
    turn_count: Count
    closed_at: UnixSeconds | None
    close_reason: Literal["client", "idle", "admin"] | None
    state: Literal["idle", "running", "closed"]
    head: Annotated[Count, doc("The `seq` of the newest entry.")]
    turn_index: Annotated[Count | None, doc("The running turn.")]
    queued: list[QueuedTurn]
    pending_permissions: list[PendingPermissionInfo]
    pending_elicitations: list[PendingElicitationInfo]
    sockets: Count
    sandbox: Literal["bwrap", "landlock", "off"]
    title: Annotated[str | None, doc("`meta.title`; the agent's own if the client has set none.")]
    unread: Annotated[Count, doc("The entries after the last `POST …/read`.")]
    usage: Annotated[SessionUsageInfo, doc("The sum of all turns, and the context window.")]
    forked_from: ForkOrigin | None
    ttl_secs: Annotated[float | None, doc("Seconds without a turn until it is closed.")]
    retention_secs: Annotated[float | None, doc("Seconds that it is kept once it is closed.")]
    agent_state: Presence
    mode: Annotated[str | None, doc("The agent's mode, or the mode that it will be set to.")]
    asks: Annotated[bool | None, doc("Whether it asks for permission in its mode; null: unknown.")]
    modes: Annotated[Any, doc("The agent's latest report, or null.")]
    models: Any
    config_options: Any
    commands: Any
    steering: Annotated[bool | None, doc("Whether it accepts prompts for its running turn.")]


class SessionResponse(_WholeState, kw_only=True):
    """A session's state."""


if TYPE_CHECKING:
    SessionInfo = _WholeState
else:
    SessionInfo = msgspec.defstruct(
        "SessionInfo",
        [
            (name, hint | msgspec.UnsetType, msgspec.UNSET)
            for name, hint in get_type_hints(_WholeState, include_extras=True).items()
            if name in _WholeState.__struct_fields__
        ],
        kw_only=True,
        module=__name__,
        namespace={"__doc__": "A session's state; with `fields`, only those fields."},
    )
