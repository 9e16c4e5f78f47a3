"""Real nginx and real Caddy in front, as ``docs/howto/proxy.md`` configures them."""

from __future__ import annotations

import io
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from server.config import SettingError, load

from ..conftest import Serve
from ..support import proxies
from ..support.harness import Client, Deadline, LocalServer, script, texts_of

OUTSIDE = "127.0.0.2"
"""The address of the tests' clients; the proxies use 127.0.0.1."""


class Here(AbstractResolver):
    """Resolves every host name to this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None: ...


@pytest.fixture
def port() -> int:
    return proxies.free_port()


@pytest.fixture
async def server(serve: Serve, port: int) -> LocalServer:
    settings = load({"CLAWDFORGE_TRUSTED_PROXIES": "127.0.0.1/32"})
    return await serve(
        trusted_proxies=settings.trusted_proxies,
        allowed_origins=(f"https://{proxies.NAME}:{port}",),
        heartbeat_secs=0.2,
    )


@pytest.fixture(params=["nginx", "caddy"])
async def front(
    request: pytest.FixtureRequest, server: LocalServer, port: int, tmp_path: Path
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """A proxy's address, and an HTTP session that trusts it and comes from outside."""
    start = getattr(proxies, request.param)
    async with start(tmp_path, port, server.url.removeprefix("http://")) as certificate:
        connector = aiohttp.TCPConnector(
            resolver=Here(),
            ssl=ssl.create_default_context(cafile=str(certificate)),
            local_addr=(OUTSIDE, 0),
        )
        async with aiohttp.ClientSession(connector=connector) as http:
            url = f"https://{proxies.NAME}:{port}"
            yield url, http


async def test_every_interface_works_through_proxy(
    server: LocalServer, front: tuple[str, aiohttp.ClientSession], tmp_path: Path
) -> None:
    url, http = front
    token = (await server.client("app")).token
    for prefix in ("", "/chat"):
        client = Client(url + prefix, token, http)
        async with http.get(f"{client.url}/") as page:
            assert page.status == 200
            assert "static/app.js" in await page.text()

        session = await client.create()
        socket_ = await client.connect(session, headers={"Origin": url})
        end = await socket_.turn("hello")
        assert end["stop_reason"] == "end_turn"
        assert socket_.text() == "echo: hello"
        await socket_.until("heartbeat")
        await socket_.close()

        await streams(client, session, tmp_path / f"gate{prefix.replace('/', '-')}")
        await uploads(client, session)

    async with http.get(f"{url}/chat", allow_redirects=False) as bare:
        assert bare.status == 308
        assert str(bare.headers["Location"]).endswith("/chat/")


async def streams(client: Client, session: str, gate: Path) -> None:
    """Events arrive as they happen: the proxy does not buffer them."""
    prompt = script({"say": "first"}, {"gate": str(gate)}, {"say": "second"})
    async with client.http.post(
        f"{client.url}/sessions/{session}/turn",
        json={"prompt": prompt},
        headers={**client.headers(), "Accept": "text/event-stream"},
    ) as stream:
        assert stream.status == 200
        async with Deadline("the rest of the stream"):
            seen = b""
            while b'"first"' not in seen.replace(b'\\"', b""):
                seen += await stream.content.readany()
            assert not gate.exists()
            gate.touch()
            rest = await stream.content.read()
    assert b"second" in rest
    assert b"turn_end" in rest


async def uploads(client: Client, session: str) -> None:
    """An upload that exceeds the default limits of proxies."""
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b"x" * (3 << 20)), filename="large.bin")
    async with client.http.post(
        f"{client.url}/files", data=form, headers=client.headers()
    ) as response:
        assert response.status in (200, 201), await response.text()
        file = (await response.json())["file_token"]
    _, reply = await client.turn(session, "look", files=[file])
    assert "large.bin" in texts_of(reply["events"])


async def test_token_networks_apply_to_client_behind_proxy(
    server: LocalServer, front: tuple[str, aiohttp.ClientSession]
) -> None:
    url, http = front
    mine = (await server.client("mine", ip_cidrs=[f"{OUTSIDE}/32"])).token
    others = (await server.client("others", ip_cidrs=["203.0.113.0/24"])).token
    lie = {"X-Forwarded-For": "203.0.113.9"}
    assert (await Client(url, mine, http).get("/agents"))[0] == 200
    assert (await Client(url, mine, http).get("/agents", headers=lie))[0] == 200
    assert (await Client(url, others, http).get("/agents"))[0] == 401
    assert (await Client(url, others, http).get("/agents", headers=lie))[0] == 401
    # A client that bypasses the proxy cannot choose its address either.
    assert (await Client(server.url, others, http).get("/agents", headers=lie))[0] == 401
    session = await Client(url, mine, http).create()
    socket_ = await Client(url, None, http).connect(session, ready=False)
    await socket_.send("auth", token=mine)
    await socket_.until("ready")


def test_invalid_trusted_proxy_prevents_start() -> None:
    with pytest.raises(SettingError, match="CLAWDFORGE_TRUSTED_PROXIES: must be networks"):
        load({"CLAWDFORGE_TRUSTED_PROXIES": json.dumps(["10.0.0.0/8"])})
