"""The log of a session: pages of its entries, and a stream that follows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from ...agents.usage import Usage
from ...errors import bad_request
from ...sessions.elicitations import Action
from ...sessions.remote_session import RemoteSession, ViewedSession, following
from ...sessions.session import Session
from ..context import context_of, stream_events, stream_json
from ..endpoint import Endpoint, Tag
from ..field_types import (
    AuthMethods,
    Count,
    ErrorMessage,
    FailureCode,
    ResetsAt,
    SubagentInfo,
    UnixMillis,
    doc,
)
from ..sse import SSE, STREAM_EXAMPLE, wants_stream

MAX_POSITION = 1 << 62
MAX_EVENTS = 10_000
PAGE_OVERHEAD_BYTES = 100
"""The bytes of a page of events besides its entries, at most."""
ENTRY_EXAMPLE = {
    "type": "turn_end",
    "seq": 125,
    "ts": 1795479875223,
    "turn_index": 1,
    "stop_reason": "end_turn",
    "duration_ms": 2451,
    "error": None,
}


class EventPage(msgspec.Struct, frozen=True):
    """The entries to return."""

    after: Annotated[
        int,
        msgspec.Meta(ge=0, le=MAX_POSITION, description="The last `seq` that the client has."),
    ] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENTS)] = 1000


class EventHeaders(msgspec.Struct, frozen=True):
    """The headers of a stream."""

    last_event_id: Annotated[
        str | None,
        doc("Takes precedence over `after`. Ignored if it is not a position."),
    ] = msgspec.field(default=None, name="Last-Event-ID")


class TurnError(msgspec.Struct, kw_only=True):
    """The reason why a turn failed."""

    code: FailureCode
    message: ErrorMessage
    retryable: bool
    auth_methods: AuthMethods = msgspec.UNSET
    resets_at: ResetsAt = msgspec.UNSET


class _EntryFields(msgspec.Struct, kw_only=True, tag_field="type"):
    seq: Annotated[int, msgspec.Meta(ge=1)]
    ts: UnixMillis
    turn_index: Count


class TurnStartEntry(_EntryFields, kw_only=True, tag="turn_start"):
    """The start of a turn."""

    prompt: list[Any]
    id: str | None
    context: Literal["new", "kept", "told", "lost"]


class TurnSteerEntry(_EntryFields, kw_only=True, tag="turn_steer"):
    """A prompt that the agent accepted for the running turn."""

    prompt: list[Any]
    id: str | None


class EventEntry(_EntryFields, kw_only=True, tag="event"):
    """One raw ACP message from the agent."""

    event: dict[str, Any]
    subagent: SubagentInfo | msgspec.UnsetType = msgspec.UNSET


class PermissionRequestEntry(_EntryFields, kw_only=True, tag="permission_request"):
    """A permission request of the agent."""

    request_id: str
    request: Any
    expires_at: UnixMillis


class PermissionResolvedEntry(_EntryFields, kw_only=True, tag="permission_resolved"):
    """The outcome of a permission request."""

    request_id: str
    outcome: dict[str, Any]
    by: Literal["client", "policy", "timeout", "cancel"]


class ElicitationRequestEntry(_EntryFields, kw_only=True, tag="elicitation_request"):
    """A question of the agent: a form or a link."""

    request_id: str
    request: Any
    expires_at: UnixMillis


class ElicitationOutcome(msgspec.Struct, kw_only=True):
    """The answer to a question."""

    action: Action
    content: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ElicitationResolvedEntry(_EntryFields, kw_only=True, tag="elicitation_resolved"):
    """The outcome of a question."""

    request_id: str
    outcome: ElicitationOutcome
    by: Literal["client", "timeout", "cancel"]


class NoticeEntry(_EntryFields, kw_only=True, tag="notice"):
    """An action or a finding of the server."""

    notice: Literal["restored", "asks", "limit", "undone"]
    setting: Annotated[str, doc("Of `restored`.")] | msgspec.UnsetType = msgspec.UNSET
    value: str | bool | msgspec.UnsetType = msgspec.UNSET
    asks: Annotated[bool, doc("Of `asks`.")] | msgspec.UnsetType = msgspec.UNSET
    limit: (
        Annotated[Literal["processes", "memory", "file"], doc("Of `limit`.")] | msgspec.UnsetType
    ) = msgspec.UNSET
    text: Annotated[str, doc("Of `limit`: a sentence for the user.")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    snapshot_id: (
        Annotated[str, doc("Of `undone`: the state that was replaced.")] | msgspec.UnsetType
    ) = msgspec.UNSET
    restored_turn: (
        Annotated[Count, doc("Of `undone`: the folder is as before this turn.")] | msgspec.UnsetType
    ) = msgspec.UNSET
    restored_snapshot: (
        Annotated[str, doc("Of `undone`: the snapshot that was restored.")] | msgspec.UnsetType
    ) = msgspec.UNSET
    incomplete: (
        Annotated[
            Literal[True], doc("Of `undone`: it failed, and a part of the folder may be restored.")
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class TurnEndEntry(_EntryFields, kw_only=True, tag="turn_end"):
    """The end of a turn."""

    stop_reason: str
    duration_ms: Count
    error: TurnError | None
    withdrawn: (
        Annotated[bool, doc("Whether it was cancelled before the agent received it.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    usage: Annotated[Usage, doc("As far as the agent has reported it.")] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class SessionClosedEntry(_EntryFields, kw_only=True, tag="session_closed"):
    """The last entry, unless the session is reopened."""

    reason: Literal["client", "idle", "admin"]


class SessionReopenedEntry(_EntryFields, kw_only=True, tag="session_reopened"):
    """The session is open again."""

    reason: Literal["client"]


LogEntry = (
    TurnStartEntry
    | TurnSteerEntry
    | EventEntry
    | PermissionRequestEntry
    | PermissionResolvedEntry
    | ElicitationRequestEntry
    | ElicitationResolvedEntry
    | NoticeEntry
    | TurnEndEntry
    | SessionClosedEntry
    | SessionReopenedEntry
)


class EventList(msgspec.Struct, kw_only=True):
    """Log entries."""

    entries: list[LogEntry]
    head: Count
    has_more: Annotated[bool, doc("Whether the log has entries after the last one here.")]


@Endpoint(
    "GET",
    "/sessions/{session_id}/events",
    tag=Tag.LOG,
    scope="read",
    summary="Read a session's log",
    is_shared=True,
    description="The entries after `after`. With `Accept: text/event-stream` they are sent as"
    " server-sent events, and new entries follow; `id:` is an entry's `seq`, and `Last-Event-ID`"
    " resumes.",
    waits=("response", "stream"),
    example={"ok": True, "entries": [ENTRY_EXAMPLE], "head": 125, "has_more": False},
    media={SSE: STREAM_EXAMPLE},
    failures=("rate_limited",),
    statuses={204: "The stream of a closed session: the client has all its entries."},
)
async def list_events(
    request: web.Request, session: ViewedSession, query: EventPage, headers: EventHeaders
) -> Annotated[web.StreamResponse, EventList]:
    if wants_stream(request):
        last = headers.last_event_id or ""
        is_position = last.isdecimal() and len(last) < 20
        return await _follow_log(request, session, int(last) if is_position else query.after)
    assert isinstance(session, Session)  # only a stream may be of another node's session
    _check_position(session, query.after)
    max_bytes = context_of(request).settings.max_events_bytes
    return await stream_json(request, _encoded_page(session, query.after, query.limit, max_bytes))


def _check_position(session: ViewedSession, after: int) -> None:
    head = session.log.head
    if isinstance(session, RemoteSession):  # this node may not have read the last entries yet
        head = max(head, session.ready_head)
    if after > head:
        raise bad_request(f"after: the newest entry is {head}")


async def _encoded_page(
    session: Session, after: int, limit: int, max_bytes: int
) -> AsyncIterator[bytes]:
    """Yield a page of at most *limit* entries and *max_bytes*, but of at least one entry."""
    yield b'{"ok":true,"entries":['
    count, size = 0, PAGE_OVERHEAD_BYTES
    async for line in _lines_after(session, after):
        size += len(line) + 1
        if count == limit or (count and size > max_bytes):
            break
        yield b"," + line if count else line
        count += 1
    head = session.log.head
    yield b'],"head":%d,"has_more":%b}' % (head, b"true" if after + count < head else b"false")


async def _lines_after(session: Session, position: int) -> AsyncIterator[bytes]:
    while batches := await session.log.read(position):
        for batch in batches:
            for line in batch.lines():
                yield line
            position = batch.last


async def _follow_log(
    request: web.Request, session: ViewedSession, after: int
) -> web.StreamResponse:
    _check_position(session, after)
    if session.is_log_complete and after >= session.log.last:
        return web.Response(status=204)  # an EventSource does not reconnect after this status
    with context_of(request).sockets.stream(session.row.app_name), following(session):
        async with stream_events(request) as stream:
            async for batch in session.log.follow(
                after, stream.keep_alive, idle_secs=stream.keep_alive_secs
            ):
                for seq, line in enumerate(batch.lines(), batch.first):
                    await stream.send(seq, line)
                if session.is_log_complete and batch.last >= session.log.last:
                    break
    return stream.response
