"""A push service and the browsers that use it, for tests. It decrypts what it receives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.outbox.push_crypto import base64url, from_base64url

from .client import Client, Json
from .waiting import Deadline


class Browser:
    """A browser's subscription: its keys, and the messages that it has received."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.messages: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.received = asyncio.Event()
        self._private = ec.generate_private_key(ec.SECP256R1())
        self._auth = os.urandom(16)

    def subscription(self) -> Json:
        """The return value of the browser's ``toJSON()``."""
        return {
            "endpoint": self.endpoint,
            "expirationTime": None,
            "keys": {"p256dh": base64url(self._point), "auth": base64url(self._auth)},
        }

    async def subscribe(self, client: Client, **fields: Any) -> str:
        """Subscribe at the server. Returns the id."""
        status, reply = await client.post("/push/subscriptions", {**self.subscription(), **fields})
        assert status == 200, reply
        return str(reply["id"])

    async def next(self, kind: str) -> Json:
        """Wait for a message of that type."""
        async with Deadline(f"a push message {kind}"):
            while True:
                self.received.clear()
                if found := [one for one in self.messages if one["type"] == kind]:
                    return found[-1]
                await self.received.wait()

    @property
    def _point(self) -> bytes:
        public = self._private.public_key()
        return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def decrypt(self, body: bytes) -> bytes:
        """Decrypt a message: RFC 8291, written independently of the server."""
        salt, size, length = body[:16], *struct.unpack("!IB", body[16:21])
        sender = body[21 : 21 + length]
        assert len(body) <= size
        shared = self._private.exchange(
            ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
        )

        def derive(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
            return HKDF(hashes.SHA256(), length, salt, info).derive(secret)

        info = b"WebPush: info\0" + self._point + sender
        secret = derive(self._auth, shared, info, 32)
        key = derive(salt, secret, b"Content-Encoding: aes128gcm\0", 16)
        nonce = derive(salt, secret, b"Content-Encoding: nonce\0", 12)
        padded = AESGCM(key).decrypt(nonce, body[21 + length :], None)
        assert padded.rstrip(b"\0").endswith(b"\x02")
        return padded.rstrip(b"\0")[:-1]


class PushService:
    """A push service on a local port.

    Attributes:
        status: of all responses.
        requests: the number of requests.
    """

    def __init__(self) -> None:
        self.status = 201
        self.headers: dict[str, str] = {}
        self.requests = 0
        self.browsers: dict[str, Browser] = {}
        self.url = ""

    def browser(self, name: str = "one") -> Browser:
        """A new browser with a subscription."""
        browser = self.browsers[name] = Browser(f"{self.url}/push/{name}")
        return browser

    async def handle(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.read()
        browser = self.browsers[request.match_info["name"]]
        check_authorization(request.headers["Authorization"], self.url)
        assert request.headers["Content-Encoding"] == "aes128gcm"
        if self.status < 300:
            browser.headers.append(dict(request.headers))
            browser.messages.append(json.loads(browser.decrypt(body)))
        browser.received.set()
        return web.Response(status=self.status, headers=self.headers)


def check_authorization(header: str, audience: str) -> Json:
    """Verify the server's signed token (RFC 8292). Returns its claims."""
    scheme, _, values = header.partition(" ")
    assert scheme == "vapid"
    fields = dict(part.strip().split("=", 1) for part in values.split(","))
    signed, _, signature = fields["t"].rpartition(".")
    raw = from_base64url(signature)
    public = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), from_base64url(fields["k"])
    )
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public.verify(der, signed.encode(), ec.ECDSA(hashes.SHA256()))
    claims: Json = json.loads(from_base64url(signed.partition(".")[2]))
    assert claims["aud"] == audience
    return {**claims, "k": fields["k"]}


@contextlib.asynccontextmanager
async def push_service() -> AsyncIterator[PushService]:
    """Run a push service."""
    service = PushService()
    app = web.Application()
    app.router.add_post("/push/{name}", service.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield service
    finally:
        await runner.cleanup()
