"""The answers of clients to an agent's permission requests."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from aiohttp import web

from ...errors import bad_request
from ...sessions.session import Session
from ..endpoint import Endpoint, Tag


class ResolvePermission(msgspec.Struct, frozen=True):
    """Either `option_id` or `outcome`."""

    option_id: Annotated[
        str | None, msgspec.Meta(description="One of the options of the request.")
    ] = None
    outcome: Literal["cancelled"] | None = None


class PermissionAccepted(msgspec.Struct, kw_only=True):
    """The answer is accepted."""


@Endpoint(
    "POST",
    "/sessions/{session_id}/permissions/{request_id}",
    tag=Tag.TURNS,
    scope="approve",
    summary="Answer a permission request",
    description="With one of the agent's options, or as cancelled. The first answer wins.",
    waits=("body",),
    request_example={"option_id": "allow_once"},
    example={"ok": True},
)
async def resolve_permission(
    request: web.Request, session: Session, body: ResolvePermission
) -> PermissionAccepted:
    if (body.option_id is None) == (body.outcome is None):
        raise bad_request("one of option_id and outcome is needed")
    session.permissions.resolve(request.match_info["request_id"], option_id=body.option_id)
    return PermissionAccepted()
