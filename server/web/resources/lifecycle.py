"""The life of a session after its creation: opened again, and read."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from aiohttp import web

from ...codec import dumps
from ...sessions.session import Session
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, doc
from ..responses import raw_json_response

MAX_READ_SEQ = 1 << 62
EXAMPLE_ID = "939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17"


class SessionReopened(msgspec.Struct, kw_only=True):
    """The session's state, with all the fields of `GET /sessions/{session_id}`."""

    session_id: str
    state: Literal["idle", "running", "closed"]
    head: Count


class ReadMark(msgspec.Struct, frozen=True):
    """The entries that the app has read."""

    seq: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=MAX_READ_SEQ)], doc("The `seq` of the last of them.")
    ]


class MarkedRead(msgspec.Struct, kw_only=True):
    """The mark is stored."""

    session_id: str
    unread: Annotated[Count, doc("The entries after the mark.")]


@Endpoint(
    "POST",
    "/sessions/{session_id}/reopen",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Open a closed session again",
    description="The session keeps its id and its log. Its next turn says whether the agent has"
    " kept its conversation: `context` is `kept` or `lost`.",
    example={"ok": True, "session_id": EXAMPLE_ID, "state": "idle", "head": 241},
    failures=("conflict", "agent_unavailable", "pool_full", "draining"),
)
async def reopen_session(
    request: web.Request, session: Session
) -> Annotated[web.Response, SessionReopened]:
    await context_of(request).sessions.reopen(session)
    return raw_json_response(dumps({"ok": True, **session.view()}))


@Endpoint(
    "POST",
    "/sessions/{session_id}/read",
    tag=Tag.SESSIONS,
    scope="read",
    summary="Mark entries as read",
    description="`unread` in the state counts the entries after the mark.",
    waits=("body",),
    request_example={"seq": 240},
    example={"ok": True, "session_id": EXAMPLE_ID, "unread": 0},
)
async def mark_read(request: web.Request, session: Session, body: ReadMark) -> MarkedRead:
    await session.details.mark_read(body.seq)
    return MarkedRead(session_id=session.id, unread=session.details.unread)
