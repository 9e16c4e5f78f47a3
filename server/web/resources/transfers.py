"""Export and import of sessions."""

from __future__ import annotations

import asyncio
from typing import Annotated, get_args

import msgspec
from aiohttp import web

from ...codec import dumps
from ...errors import Error
from ...sessions.creation import SessionRequest
from ...sessions.exports import CSP, MEDIA_TYPES, SUFFIXES, Format, export
from ...sessions.imports import header_text, meta_of, parse_export
from ...sessions.session import Session
from ..context import app_name_of, context_of, stream_json, waiting
from ..endpoint import Endpoint, Tag
from ..field_types import Count, PermissionMode, doc
from ..request_body import BODY_READER
from ..responses import raw_json_response


class ExportQuery(msgspec.Struct, frozen=True):
    """The format of the export."""

    format: Annotated[Format, doc("Only `ndjson` can be imported.")] = "ndjson"


class SessionImported(msgspec.Struct, kw_only=True):
    """The state of the new session, with all the fields of `GET /sessions/{session_id}`."""

    session_id: str
    head: Count


@Endpoint(
    "GET",
    "/sessions/{session_id}/export",
    tag=Tag.SESSIONS,
    scope="read",
    summary="Export a session",
    description="As a file: the log as NDJSON, after one line with `session`, `meta` and `title`;"
    " or what was said as Markdown or HTML.",
    waits=("response",),
    media={
        "application/x-ndjson": '{"session":{"agent":"demo"},"meta":{},"title":null}\n',
        "text/markdown": "# My first one\n",
        "text/html": "<!doctype html>\n",
    },
)
async def export_session(
    request: web.Request, session: Session, query: ExportQuery
) -> web.StreamResponse:
    name = f"session-{session.id}.{SUFFIXES[query.format]}"
    headers = {
        "Content-Type": MEDIA_TYPES[query.format],
        "Content-Disposition": f'attachment; filename="{name}"',
        "Content-Security-Policy": f"{CSP}; sandbox",
    }
    return await stream_json(request, export(session, query.format), headers=headers)


@Endpoint(
    "POST",
    "/sessions/import",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Import a session",
    description="The body is the NDJSON of an export. The new session is closed, and has the same"
    " entries. Once it is opened again, the agent receives the conversation as text.",
    waits=("body",),
    example={"ok": True, "session_id": "5d0f1ce2-0f4c-4a62-8f7e-3f0f5f8f2f11", "head": 241},
    failures=("payload_too_large", "agent_unavailable", "pool_full", "draining"),
)
async def import_session(
    request: web.Request,
) -> Annotated[web.Response, SessionImported]:
    context = context_of(request)
    settings = context.settings
    limit = min(settings.max_import_bytes, settings.max_body_bytes_per_app)
    async with waiting(request), request.app[BODY_READER].reserve(request, limit) as body:
        await context.sessions.disk.check(app_name_of(request), len(body))
        log = await asyncio.to_thread(parse_export, bytes(body))
    sessions = context.sessions
    agent, permission = header_text(log.header, "agent"), header_text(log.header, "permission")
    if permission not in get_args(PermissionMode):
        permission = None
    try:
        agent = await sessions.agents.choose(agent)
    except Error:  # this server does not have it
        agent = None
    app_name = app_name_of(request)
    session = await sessions.create(
        app_name,
        SessionRequest(
            agent=agent,
            model=header_text(log.header, "model"),
            system=header_text(log.header, "system"),
            meta=meta_of(log.header),
            permission=permission or "approve-all",
        ),
        log,
    )
    sessions.quotas.release_session(app_name)  # it is closed
    return raw_json_response(dumps({"ok": True, **session.view()}))
