"""The server's metrics, for Prometheus."""

from __future__ import annotations

from aiohttp import web

from ..context import context_of
from ..endpoint import Endpoint, Tag

METRICS_EXAMPLE = "# TYPE clawdforge_open_sessions gauge\nclawdforge_open_sessions 3.0\n"


@Endpoint(
    "GET",
    "/metrics",
    tag=Tag.OPERATOR,
    summary="Metrics for Prometheus",
    auth="admin",
    media={"text/plain": METRICS_EXAMPLE},
)
async def get_metrics(request: web.Request) -> web.Response:
    text, content_type = context_of(request).metrics.render()
    return web.Response(body=text, headers={"Content-Type": content_type})
