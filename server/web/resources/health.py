"""For whoever watches the server: no token, no wait."""

from __future__ import annotations

import time

from aiohttp import web

from ... import __version__
from ...errors import draining
from ..context import services_of
from ..responses import json_reply

routes = web.RouteTableDef()


@routes.get("/healthz")
async def healthz(request: web.Request) -> web.Response:
    services = services_of(request)
    health = services.health
    return json_reply(
        {
            "ok": True,
            "version": __version__,
            "claude_present": health.claude_present,
            "claude_version": health.claude_version,
            "acpx_present": health.acpx_version is not None,
            "acpx_version": health.acpx_version,
            "open_sessions": services.sessions.quotas.open_sessions,
            "live_agents": len(services.sessions.slots),
            "sockets": len(services.sockets),
            "uptime_secs": int(time.time() - services.started_at),
        }
    )


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    services = services_of(request)
    if not services.health.ready or services.supervisor.failure is not None:
        raise draining()
    return json_reply({"ok": True})
