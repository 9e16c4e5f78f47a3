"""REST's own description: the document, and a page that shows it."""

from __future__ import annotations

from aiohttp import web

from ...codec import dumps
from ..openapi import document
from ..responses import raw_reply

routes = web.RouteTableDef()

DOCUMENT = web.AppKey("openapi-document", bytes)


@routes.get("/openapi.json")
async def openapi(request: web.Request) -> web.Response:
    return raw_reply(request.app[DOCUMENT])


def set_up(app: web.Application) -> None:
    app[DOCUMENT] = dumps(document())
    app.add_routes(routes)
