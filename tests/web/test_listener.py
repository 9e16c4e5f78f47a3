"""Who comes in: a crowd one by one, anybody else at once."""

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
from server.web import listener

from ..conftest import Spawn
from ..support.harness import eventually


@contextlib.asynccontextmanager
async def opened(places: ConcurrencyLimit) -> AsyncIterator[str]:
    """A door with nothing but "hello" behind it; its URL."""

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        async with listener.Listener(places, 60).open(runner, "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


def come(url: str) -> socket.socket:
    """A connection that waits to be accepted; the system has it whole when this returns."""
    line = socket.socket()
    line.setblocking(False)
    line.connect_ex((urlsplit(url).hostname, urlsplit(url).port))
    return line


async def test_who_comes_alone_is_let_in_at_once(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PAUSE_SECS", 3600)
    async with opened(ConcurrencyLimit(10, 10)) as url:
        for _ in range(5):
            async with http.get(url, headers={"Connection": "close"}) as answer:
                assert await answer.text() == "hello"


async def test_a_crowd_is_let_in_one_by_one_so_that_nobody_inside_feels_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "PAUSE_SECS", 3600)
    places = ConcurrencyLimit(10, 10)
    loop = asyncio.get_running_loop()
    async with opened(places) as url:
        with come(url) as first, come(url), come(url):
            await loop.sock_sendall(first, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await loop.sock_recv(first, 4096)
            assert len(places) == 1


async def test_all_of_a_crowd_are_let_in() -> None:
    places = ConcurrencyLimit(10, 10)
    async with opened(places) as url:
        with come(url), come(url), come(url):
            await eventually("all to be let in", lambda: len(places) == 3)


def test_a_larger_crowd_is_let_in_faster_the_larger_it_is() -> None:
    def seconds(count: int) -> float:
        return sum(map(listener.is_to_pause, range(1, count + 1))) * listener.PAUSE_SECS

    assert not listener.is_to_pause(0)
    assert seconds(99) == pytest.approx(99 * listener.PAUSE_SECS)
    assert seconds(1000) < 1
    assert seconds(10_000) < 2


async def test_a_server_without_descriptors_goes_on_once_it_has_some(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn()
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    with come(server.url):
        log = tmp_path / "server.log"
        await eventually("the server to say so", lambda: "no connection can" in log.read_text())
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        async with http.get(f"{server.url}/readyz") as answer:
            assert answer.status == 200
    assert "Too many open files" in log.read_text()
