"""Attacks of an agent on the gateways: theft of keys, other sessions, smuggling, exhaustion."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path

import pytest

from server.gateways.connections import MAX_KNOWN_PER_SESSION, MAX_UNKNOWN

from ..conftest import Serve
from ..support.anthropic_stand_in import stand_in
from ..support.sandboxes import mechanism, system_python
from .test_key_proxy import KEY, MESSAGE, Setup, setup
from .test_networks import run_in

__all__ = ["setup"]

BODY = json.dumps(MESSAGE)
SECOND = "POST /anthropic/v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
HUNT = """
import glob, os, sys
secret = sys.argv[1][::-1].encode()
found = []
paths = [p for kind in ("environ", "cmdline", "maps") for p in glob.glob("/proc/[0-9]*/" + kind)]
for top in (os.environ["HOME"], os.environ["TMPDIR"], os.getcwd(), "/run", "/dev/shm"):
    for folder, _, names in os.walk(top):
        paths += [os.path.join(folder, name) for name in names]
own = os.getpid()
for path in paths:
    if path.startswith(f"/proc/{own}/cmdline") or path == "/proc/self/cmdline":
        continue
    try:
        with open(path, "rb") as file:
            if secret in file.read(1 << 20):
                found.append(path)
    except OSError:
        pass
if any(secret in value.encode() for value in os.environ.values()):
    found.append("environ")
print(found)
"""


async def send(port: int, text: str) -> bytes:
    """Send raw bytes, and return everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    data = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(1):
            while piece := await reader.read(1 << 16):
                data += piece
    writer.close()
    return data


SMUGGLED = {
    "two lengths": f"Content-Length: {len(BODY)}\r\nContent-Length: 0\r\n\r\n{BODY}",
    "length and chunks": (
        f"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SECOND}"
    ),
    "unknown coding": f"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SECOND}",
    "chunk size": f"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n{SECOND}",
    "folded header": f"X-Stainless-A: b\r\n x-api-key: other\r\nContent-Length: 0\r\n\r\n{SECOND}",
    "space in name": f"X-Api-Key : x\r\nContent-Length: 0\r\n\r\n{SECOND}",
    "upgrade": "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
    "method override": "X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
    "other account": (
        "OpenAI-Organization: other\r\nX-Goog-User-Project: x\r\nContent-Length: 0\r\n\r\n"
    ),
    "hop by hop": "Connection: x-api-key\r\nContent-Length: 0\r\n\r\n",
    "forwarded": "X-Forwarded-Host: evil\r\nForwarded: host=evil\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_nothing_is_smuggled_to_the_provider(setup: Setup, name: str) -> None:
    token = setup.environ()["ANTHROPIC_API_KEY"]
    start = f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: {token}\r\n"
    reply = await send(setup.proxy.port, start + SMUGGLED[name])
    assert KEY.encode() not in reply
    assert len(setup.upstream.requests) <= 1
    for method, path, headers, _ in setup.upstream.requests:
        assert (method, path, headers["x-api-key"]) == ("POST", "/v1/messages", KEY)
        assert (
            not {
                *("x-http-method-override", "openai-organization", "x-goog-user-project"),
                *("x-forwarded-host", "forwarded", "upgrade", "authorization"),
            }
            & headers.keys()
        )
        assert headers["host"] != "x"


async def test_token_does_not_open_another_address(setup: Setup) -> None:
    """The proxy is not an open relay: neither as an HTTP proxy nor by its path or headers."""
    token = setup.environ()["ANTHROPIC_API_KEY"]
    for line in (
        f"CONNECT 127.0.0.1:{setup.proxy.port} HTTP/1.1",
        "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1",
        "POST http://169.254.169.254/anthropic/v1/messages HTTP/1.1",
        "POST //169.254.169.254/v1/messages HTTP/1.1",
        "POST /anthropic@169.254.169.254/v1/messages HTTP/1.1",
        "POST /anthropic/v1/messages@169.254.169.254 HTTP/1.1",
        "POST /anthropic/v1/messages#@169.254.169.254 HTTP/1.1",
    ):
        text = f"{line}\r\nHost: 169.254.169.254\r\nx-api-key: {token}\r\nContent-Length: 0\r\n"
        await send(setup.proxy.port, f"{text}Connection: close\r\n\r\n")
    assert all(
        path == "/v1/messages" and headers["host"] in setup.upstream.url
        for _, path, headers, _ in setup.upstream.requests
    )


async def test_silent_connections_do_not_lock_others_out(setup: Setup) -> None:
    environ = setup.environ()
    url, token = environ["ANTHROPIC_BASE_URL"] + "/v1/messages", environ["ANTHROPIC_API_KEY"]
    silent = [
        await asyncio.open_connection("127.0.0.1", setup.proxy.port)
        for _ in range(MAX_UNKNOWN + 20)
    ]
    assert (await setup.post(url, token))[0] == 200
    ended = [reader for reader, _ in silent[:20]]
    for reader in ended:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    for _, writer in silent:
        writer.close()


async def test_connections_of_a_session_are_limited(setup: Setup) -> None:
    environ = setup.environ()
    token, other = environ["ANTHROPIC_API_KEY"], setup.environ(key="other")["ANTHROPIC_API_KEY"]
    start = "GET /anthropic/v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: {}\r\n\r\n"
    writers = []
    for _ in range(MAX_KNOWN_PER_SESSION):
        reader, writer = await asyncio.open_connection("127.0.0.1", setup.proxy.port)
        writer.write(start.format(token).encode())
        assert b" 200 " in await reader.readline()
        writers.append(writer)
    for one, status in ((token, b" 429 "), (other, b" 200 ")):
        reader, writer = await asyncio.open_connection("127.0.0.1", setup.proxy.port)
        writers.append(writer)
        writer.write(start.format(one).encode())
        assert status in await reader.readline()
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("level", ["landlock", pytest.param("bwrap", marks=pytest.mark.slow)])
async def test_hostile_program_finds_no_key(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, level: str, tmp_path: Path
) -> None:
    mechanism(level)
    key = "sk-ant-hunted-by-the-agent"
    async with stand_in() as api:
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        server = await serve(sandbox=level, sandbox_write=())
        client = await server.client()
        assert (await client.turn(await client.create(), "hello"))[0] == 200
        result = await run_in(server, [system_python(), "-I", "-c", HUNT, key[::-1]])
        assert result.stdout.strip() == "[]", result
    assert os.environ["ANTHROPIC_API_KEY"] == key
