"""The operator's routes: tokens, any app's sessions, metrics."""

from __future__ import annotations

import json

from aiohttp import web

from ...storage.schema import TokenRow
from .. import bodies
from ..context import SESSION, require_admin, services_of
from ..responses import json_reply

routes = web.RouteTableDef()


@routes.post("/admin/tokens")
async def create_token(request: web.Request) -> web.Response:
    require_admin(request)
    body = await bodies.read_body(request, bodies.CreateToken)
    row, token = await services_of(request).tokens.create(body.name, body.ip_cidrs or [])
    return json_reply({"ok": True, **_view(row), "token": token})


@routes.get("/admin/tokens")
async def list_tokens(request: web.Request) -> web.Response:
    require_admin(request)
    tokens = [_view(row) for row in services_of(request).tokens.rows()]
    return json_reply({"ok": True, "count": len(tokens), "tokens": tokens})


@routes.delete("/admin/tokens/{name}")
async def delete_token(request: web.Request) -> web.Response:
    require_admin(request)
    name = request.match_info["name"]
    await services_of(request).tokens.revoke(name)
    return json_reply({"ok": True, "name": name})


@routes.delete("/admin/sessions/{session_id}")
async def close_session(request: web.Request) -> web.Response:
    require_admin(request)
    session_id = request[SESSION] = request.match_info["session_id"]
    first = await services_of(request).sessions.close_by_id(session_id, "admin")
    reply = {"ok": True, "session_id": session_id}
    return json_reply(reply if first else {**reply, "already_closed": True})


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    require_admin(request)
    text, content_type = services_of(request).metrics.render()
    return web.Response(body=text, headers={"Content-Type": content_type})


def _view(row: TokenRow) -> dict[str, object]:
    return {
        "name": row.name,
        "ip_cidrs": json.loads(row.ip_cidrs),
        "created_at": int(row.created_at),
    }
