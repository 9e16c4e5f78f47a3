"""The first step of a stop: the server serves no more, and running turns may finish."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..web.context import CONTEXT

SOCKETS_CLOSE_SECS = 5.0


async def drain(app: web.Application) -> None:
    """Close the sockets, then let running turns and runs finish."""
    context = app[CONTEXT]
    context.health.ready = False
    context.sessions.is_draining = True
    context.runner.refuse_new()
    await context.sockets.close_all(SOCKETS_CLOSE_SECS)
    await asyncio.gather(context.sessions.stop(), context.runner.stop())
