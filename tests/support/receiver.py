"""A receiver of webhooks for tests. It verifies the signature of each delivery."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from .client import Client, Json
from .waiting import Deadline

SECRET = "whsec_" + base64.b64encode(b"secret of the tests, 32 bytes ..").decode()
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Receiver:
    """A receiver on a local port.

    Attributes:
        status: of the responses.
        answer: makes the response instead, if it is set.
        attempts: every request: the delivery's id, the headers and the JSON.
        bodies: their bytes.
        accepted: the JSON of each request that got 2xx, in order.
        clock: returns unix seconds, by which no signature is old.
    """

    def __init__(self) -> None:
        self.status = 200
        self.answer: Answer | None = None
        self.attempts: list[tuple[str, dict[str, str], Json]] = []
        self.bodies: list[bytes] = []
        self.accepted: list[Json] = []
        self.secret = SECRET
        self.clock: Callable[[], float] = time.time
        self.port = 0
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def register(self, client: Client, **fields: Any) -> Json:
        """Set the webhook of the app to this receiver."""
        status, reply = await client.call(
            "PUT", "/webhook", {"url": self.url, "secret": self.secret, **fields}
        )
        assert status == 200, reply
        return reply

    async def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """Wait until requests have made *condition* true. Returns its value."""
        async with Deadline(what):
            while not (value := condition()):
                self._changed.clear()
                await self._changed.wait()
            return value

    async def next(self, kind: str, **fields: Any) -> Json:
        """Wait for an accepted event of that type, with these fields in its data."""

        def find() -> Json | None:
            for event in self.accepted:
                if event["type"] == kind and fields.items() <= event["data"].items():
                    return event
            return None

        event: Json = await self.until(f"{kind} {fields}", find)
        return event

    def ids(self) -> list[str]:
        """The ids of all requests."""
        return [delivery_id for delivery_id, _, _ in self.attempts]

    async def start(self) -> None:
        """Listen, on the same port as before if it was stopped."""
        app = web.Application()
        app.router.add_post("/hook", self._receive)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        check_signature(self.secret, request.headers, body, self.clock())
        event = json.loads(body)
        self.bodies.append(body)
        self.attempts.append((request.headers["webhook-id"], dict(request.headers), event))
        try:
            if self.answer is not None:
                return await self.answer(request)
            if self.status < 300:
                self.accepted.append(event)
            return web.Response(status=self.status)
        finally:
            self._changed.set()


def check_signature(secret: str, headers: Any, body: bytes, now: float) -> None:
    """Verify a delivery as Standard Webhooks says, at a unix time."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    assert abs(now - int(headers["webhook-timestamp"])) < 300
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    assert hmac.compare_digest(headers["webhook-signature"], expected)


@contextlib.asynccontextmanager
async def webhook_receiver() -> AsyncIterator[Receiver]:
    """Run a receiver."""
    running = Receiver()
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
