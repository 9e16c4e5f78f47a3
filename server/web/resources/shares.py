"""Shares: links that open one session for reading, without a token."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...origins import is_host_of
from ...sessions.session import Session
from ...storage.share_row import ShareRow
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import MAX_LIFETIME_SECS, Count, UnixSeconds, doc

SHARE_ID = "0b8a1d0e-3f5f-4f57-9c57-7a4f3f4a9a55"
SHARE_EXAMPLE = {
    "share_id": SHARE_ID,
    "label": "for the team",
    "created_at": 1795479703,
    "expires_at": 1795566103,
}


class CreateShare(msgspec.Struct, frozen=True):
    """A new share."""

    expires_in: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=MAX_LIFETIME_SECS)] | None,
        doc("Seconds; by default it does not expire."),
    ] = None
    label: Annotated[
        Annotated[str, msgspec.Meta(max_length=256)] | None, doc("Shown in the list.")
    ] = None


class ShareInfo(msgspec.Struct, kw_only=True):
    """A share, without its secret."""

    share_id: str
    label: str | None
    created_at: UnixSeconds
    expires_at: UnixSeconds | None


class ShareCreated(ShareInfo, kw_only=True):
    """A new share."""

    url: Annotated[str, doc("The page of the session. The secret is the last value after `#`.")]


class ShareList(msgspec.Struct, kw_only=True):
    """The shares of a session, the oldest first."""

    count: Count
    shares: list[ShareInfo]


class ShareRevoked(msgspec.Struct, kw_only=True):
    """The share is revoked."""

    share_id: str


@Endpoint(
    "POST",
    "/sessions/{session_id}/shares",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Share a session",
    description="Everybody who has the link can read the session's state and log, and follow it,"
    " until the share expires or is revoked. The link is shown once.",
    waits=("body",),
    request_example={"expires_in": 86400, "label": "for the team"},
    example={
        "ok": True,
        **SHARE_EXAMPLE,
        "url": "http://127.0.0.1:8800/#session=939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17&share=cfs_…",
    },
    failures=("rate_limited",),
)
async def create_share(request: web.Request, session: Session, body: CreateShare) -> ShareCreated:
    shares = context_of(request).tokens.shares
    row, secret = await shares.create(session.row, body.label, body.expires_in)
    url = f"{_base_url(request)}/#session={session.id}&share={secret}"
    return ShareCreated(url=url, **_share_fields(row))


@Endpoint(
    "GET",
    "/sessions/{session_id}/shares",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="List the shares of a session",
    example={"ok": True, "count": 1, "shares": [SHARE_EXAMPLE]},
)
async def list_shares(request: web.Request, session: Session) -> ShareList:
    rows = context_of(request).tokens.shares.rows(session.row.n)
    return ShareList(count=len(rows), shares=[ShareInfo(**_share_fields(row)) for row in rows])


@Endpoint(
    "DELETE",
    "/sessions/{session_id}/shares/{share_id}",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Revoke a share",
    description="Its sockets and streams end within a second.",
    example={"ok": True, "share_id": SHARE_ID},
)
async def revoke_share(request: web.Request, session: Session) -> ShareRevoked:
    share_id = request.match_info["share_id"]
    await context_of(request).tokens.shares.revoke(session.row.n, share_id)
    return ShareRevoked(share_id=share_id)


def _share_fields(row: ShareRow) -> dict[str, Any]:
    return {
        "share_id": row.id,
        "label": row.label,
        "created_at": int(row.created_at),
        "expires_at": None if row.expires_at is None else int(row.expires_at),
    }


def _base_url(request: web.Request) -> str:
    """The address of the page, as the client of this request knows it."""
    for origin in context_of(request).settings.allowed_origins:
        if is_host_of(request.host.lower(), origin):  # a proxy may hide its scheme
            return origin
    return f"{request.scheme}://{request.host}"
