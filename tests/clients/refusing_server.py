"""Servers that refuse what a client sends, so that tests see how it goes on."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

REFUSED_MS = 50


class RefusingServer:
    """Refuses the first prompt for a while, and accepts those that follow.

    Attributes:
        accepted: the prompts, in their order.
        waited_secs: from the refusal to the next prompt.
    """

    def __init__(self) -> None:
        self.url = ""
        self.accepted: list[str] = []
        self.waited_secs = 0.0
        self._refused_at = 0.0

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        ready = {"type": "ready", "protocol": 1, "head": 0}
        is_list = request.path == "/ws"
        await ws.send_json({**ready, "sessions": []} if is_list else {**ready, "session_id": "s"})
        async for message in ws:
            frame = json.loads(message.data)
            if frame["type"] == "prompt":
                about = {"session_id": frame["session_id"]} if is_list else {}
                await ws.send_json({**about, "id": frame["id"], **self._answer(frame)})
        return ws

    def _answer(self, frame: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        if not self._refused_at:
            self._refused_at = now
            about = {"code": "rate_limited", "message": "slow down", "retryable": True}
            return {"type": "error", **about, "retry_after_ms": REFUSED_MS}
        self.waited_secs = self.waited_secs or now - self._refused_at
        self.accepted.append(frame["prompt"])
        return {"type": "accepted", "turn_index": len(self.accepted), "queued": False}


@contextlib.asynccontextmanager
async def _serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def refusing_server() -> AsyncIterator[RefusingServer]:
    server = RefusingServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.serve)
    async with _serving(app) as server.url:
        yield server


@contextlib.asynccontextmanager
async def scripted_server() -> AsyncIterator[tuple[str, list[web.Response]]]:
    """A server that gives the responses of a list, one after the other."""
    replies: list[web.Response] = []

    async def reply(_: web.Request) -> web.Response:
        return replies.pop(0)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", reply)
    async with _serving(app) as url:
        yield url, replies
