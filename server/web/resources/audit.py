"""The audit records of all sessions, for the operator."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...codec import loads
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, UnixSeconds, doc


class AuditFilter(msgspec.Struct, frozen=True):
    """A page of the audit records."""

    after: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=10**18)], doc("The last `id` that the client has.")
    ] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    app: Annotated[str | None, doc("Only the records of this app.")] = None
    event: Annotated[str | None, doc("Only the records of this event.")] = None


class AuditRecord(msgspec.Struct, kw_only=True):
    """Something that happened to a session."""

    id: Count
    at: UnixSeconds
    app: str
    session_id: str
    event: Annotated[str, doc("For example `create`, `turn`, `close` or `hard_delete`.")]
    detail: dict[str, Any]


class AuditPage(msgspec.Struct, kw_only=True):
    """Audit records, oldest first."""

    rows: list[AuditRecord]
    next: Annotated[int | None, doc("The `after` of the next page; null at the end.")]


@Endpoint(
    "GET",
    "/admin/audit",
    tag=Tag.OPERATOR,
    summary="Read the audit records",
    description="The records of the sessions of all apps, also of deleted ones.",
    auth="admin",
    example={"ok": True, "rows": [], "next": None},
)
async def read_audit(request: web.Request, query: AuditFilter) -> AuditPage:
    stored = await context_of(request).audit.page(
        after=query.after, limit=query.limit + 1, app_name=query.app, event=query.event
    )
    rows = [
        AuditRecord(
            id=row.id,
            at=int(row.at),
            app=row.app_name,
            session_id=row.session_id,
            event=row.event,
            detail=loads(row.detail),
        )
        for row in stored[: query.limit]
    ]
    return AuditPage(rows=rows, next=rows[-1].id if len(stored) > query.limit else None)
