"""The answers of clients to an agent's questions."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...sessions.elicitations import Action
from ...sessions.session import Session
from ..endpoint import Endpoint, Tag


class ResolveElicitation(msgspec.Struct, frozen=True):
    """The answer of a person."""

    action: Action
    content: Annotated[
        dict[str, Any] | None,
        msgspec.Meta(description="The values of an accepted form, by the names of its fields."),
    ] = None


class ElicitationAccepted(msgspec.Struct, kw_only=True):
    """The answer is accepted."""


@Endpoint(
    "POST",
    "/sessions/{session_id}/elicitations/{request_id}",
    tag=Tag.TURNS,
    scope="approve",
    summary="Answer a question of the agent",
    description="The first answer wins. Content that does not match the form is `bad_request`;"
    " `field` names the field, and the question continues to wait.",
    waits=("body",),
    request_example={"action": "accept", "content": {"city": "Oslo"}},
    example={"ok": True},
)
async def resolve_elicitation(
    request: web.Request, session: Session, body: ResolveElicitation
) -> ElicitationAccepted:
    session.elicitations.resolve(request.match_info["request_id"], body.action, body.content)
    return ElicitationAccepted()
