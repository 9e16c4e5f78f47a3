"""Forks: new sessions that begin with the log of another one."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from ...codec import dumps
from ...sessions.session import Session
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import TurnIndex, doc
from ..new_session import CreateSession, fork_request
from ..responses import raw_json_response


class ForkSession(CreateSession, frozen=True, kw_only=True):
    """A fork; every field has the value of the forked session by default."""

    turn_index: Annotated[
        TurnIndex | None,
        doc("The last turn of the fork; by default the last turn that has ended."),
    ] = None


class ForkedFrom(msgspec.Struct, kw_only=True):
    """The place of the fork."""

    session_id: str
    turn_index: int


class SessionForked(msgspec.Struct, kw_only=True):
    """The state of the new session, with all the fields of `GET /sessions/{session_id}`."""

    session_id: str
    forked_from: ForkedFrom


@Endpoint(
    "POST",
    "/sessions/{session_id}/fork",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Fork a session",
    description="The new session has the entries up to the end of a turn, and continues on its own."
    " Its first `turn_start` says what the agent knows: `context` is `kept` if the agent has forked"
    " its conversation, and `told` if the conversation precedes the prompt as text.",
    waits=("body",),
    request_example={"turn_index": 2},
    example={
        "ok": True,
        "session_id": "5d0f1ce2-0f4c-4a62-8f7e-3f0f5f8f2f11",
        "forked_from": {"session_id": "939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17", "turn_index": 2},
    },
    failures=("conflict", "agent_unavailable", "pool_full", "draining"),
)
async def fork_session(
    request: web.Request, session: Session, body: ForkSession
) -> Annotated[web.Response, SessionForked]:
    fork = await context_of(request).sessions.forker.fork(
        session, body.turn_index, fork_request(body, session)
    )
    return raw_json_response(dumps({"ok": True, **fork.view()}))
