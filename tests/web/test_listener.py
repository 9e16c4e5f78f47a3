"""The listener: single connections are accepted at once, bursts are paced."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from server.limits import ConcurrencyLimit
from server.web.accepting import PAUSE_SECS, should_pause
from server.web.listener import Listener

from ..conftest import Spawn
from ..support.harness import eventually


@contextlib.asynccontextmanager
async def listening(slots: ConcurrencyLimit, pause: float = PAUSE_SECS) -> AsyncIterator[str]:
    """Serve "hello" through a listener; its URL."""

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        listener = Listener(slots, 60, pause=pause)
        async with listener.open(runner, "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


def connect(url: str) -> socket.socket:
    """A connection that the kernel has established and the server has not accepted yet."""
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex((urlsplit(url).hostname, urlsplit(url).port))
    return connection


async def test_single_connections_are_accepted_without_pause(http: aiohttp.ClientSession) -> None:
    async with listening(ConcurrencyLimit(10, 10), pause=3600) as url:
        for _ in range(5):
            async with http.get(url, headers={"Connection": "close"}) as response:
                assert await response.text() == "hello"


async def test_burst_is_accepted_one_connection_at_a_time() -> None:
    slots = ConcurrencyLimit(10, 10)
    loop = asyncio.get_running_loop()
    async with listening(slots, pause=3600) as url:
        with connect(url) as first, connect(url), connect(url):
            await loop.sock_sendall(first, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await loop.sock_recv(first, 4096)
            assert len(slots) == 1


async def test_all_connections_of_a_burst_are_accepted() -> None:
    slots = ConcurrencyLimit(10, 10)
    async with listening(slots) as url:
        with connect(url), connect(url), connect(url):
            await eventually("all to be accepted", lambda: len(slots) == 3)


def test_pauses_get_rarer_in_larger_bursts() -> None:
    def seconds(count: int) -> float:
        return sum(map(should_pause, range(1, count + 1))) * PAUSE_SECS

    assert not should_pause(0)
    assert seconds(99) == pytest.approx(99 * PAUSE_SECS)
    assert seconds(1000) < 1
    assert seconds(10_000) < 2


async def test_server_accepts_again_once_it_has_descriptors(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn()
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    with connect(server.url):
        log = tmp_path / "server.log"
        await eventually("the failure to be logged", lambda: "cannot accept" in log.read_text())
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        async with http.get(f"{server.url}/readyz") as response:
            assert response.status == 200
    assert "Too many open files" in log.read_text()
