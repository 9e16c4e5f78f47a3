"""Answers over HTTP: JSON, and one shape for every failure."""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web

from .codec import dumps
from .errors import Error

NAME = "clawdforge"


async def sign(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Say who answers, and nothing of versions: left to itself aiohttp tells its and Python's."""
    response.headers[hdrs.SERVER] = NAME


def raw_reply(body: bytes, *, status: int = 200) -> web.Response:
    """*body* is JSON already."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def json_reply(value: Any, *, status: int = 200) -> web.Response:
    return raw_reply(dumps(value), status=status)


def error_reply(error: Error, request_id: str) -> web.Response:
    reply = json_reply(
        {
            "ok": False,
            "error": error.message,
            "code": error.code,
            "request_id": request_id,
        },
        status=error.status,
    )
    if error.retry_after is not None:
        reply.headers["Retry-After"] = str(error.retry_after)
    if error.code == "unauthorized":
        reply.headers["WWW-Authenticate"] = "Bearer"
    return reply
