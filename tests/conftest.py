"""Fixtures: servers in this process (``server``, ``serve``) and in their own (``spawn``)."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from server.agents.host.process import COMPILED

from .support.harness import (
    ADMIN,
    Client,
    Clock,
    LocalServer,
    ServerProcess,
    blocking,
    descendants,
    eventually,
    http_session,
    is_running,
    local_server,
    start_server,
)
from .support.raw_socket import RawSocket, open_raw_socket

# acpx and the agents start hundreds of times, so Node stores their compiled code.
os.environ.setdefault("NODE_COMPILE_CACHE", str(COMPILED))

gc.disable()  # until the tests are collected: collecting them makes no garbage


def pytest_collection_finish() -> None:
    """Exclude what exists now from the garbage collections during the tests."""
    gc.freeze()
    gc.enable()


SECRET = re.compile(rf"{ADMIN}|(cf|cft|cfs|ff)_[A-Za-z0-9_-]{{40}}")
"""A token, a ticket or a file token. No log may contain one."""

Serve = Callable[..., Awaitable[LocalServer]]
Spawn = Callable[..., Awaitable[ServerProcess]]
Connect = Callable[..., Awaitable[RawSocket]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start servers with given settings: ``await serve(max_sessions=2)``."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *, data_dir: Path = tmp_path / "data", clock: Clock | None = None, **settings: Any
        ) -> LocalServer:
            if clock is not None:
                settings["clock"] = clock
            return await stack.enter_async_context(local_server(data_dir, **settings))

        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    async with local_server(tmp_path_factory.mktemp("shared") / "data") as server:
        blocking.deactivate()
        yield server


@pytest.fixture
async def server(shared_server: LocalServer) -> AsyncIterator[LocalServer]:
    """A server with default settings and the mock agents, shared by the tests of a module.

    After each test, its apps are removed with their sessions.
    """
    blocking.activate()
    yield shared_server
    blocking.deactivate()
    await shared_server.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server_pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serve]:
    """The servers of ``share``, by their settings."""
    servers: dict[str, LocalServer] = {}
    async with contextlib.AsyncExitStack() as stack:

        async def find(**settings: Any) -> LocalServer:
            key = repr(sorted(settings.items()))
            if key not in servers:
                data_dir = tmp_path_factory.mktemp("shared") / "data"
                starting = local_server(data_dir, **settings)
                servers[key] = await stack.enter_async_context(starting)
            return servers[key]

        yield find


@pytest.fixture
async def share(server_pool: Serve) -> AsyncIterator[Serve]:
    """Servers with given settings, as ``serve`` starts them, shared by the tests of a module.

    After each test, their apps are removed with their sessions. For tests that do not stop their
    server, and do not count all that it has.
    """
    used: list[LocalServer] = []

    async def find(**settings: Any) -> LocalServer:
        server = await server_pool(**settings)
        blocking.activate()
        used.append(server)
        return server

    yield find
    blocking.deactivate()
    for server in used:
        await server.clear()
    pools = [server.services.sessions.slots for server in used]
    await eventually("the agents to end", lambda: not any(map(len, pools)))


@pytest.fixture
async def client(server: LocalServer) -> Client:
    """A client of ``server`` with a new app."""
    return await server.client(f"app-{secrets.token_hex(4)}")


@pytest.fixture
async def own_server(serve: Serve) -> LocalServer:
    """A server like ``server`` for one test only, which may change its state."""
    return await serve()


@pytest.fixture
async def own_client(own_server: LocalServer) -> Client:
    """A client of ``own_server``."""
    return await own_server.client()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with http_session() as session:
        yield session


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open raw sockets: ``await connect(client, session, after=0)``."""
    with contextlib.ExitStack() as stack:

        async def open_socket(client: Client, session: str, **options: Any) -> RawSocket:
            raw = await open_raw_socket(client, session, **options)
            stack.callback(raw.abort)
            return raw

        yield open_socket


@contextlib.asynccontextmanager
async def spawning(folder: Path) -> AsyncIterator[Spawn]:
    """Start servers as processes with the data of *folder*. All are stopped at the end."""
    started: list[ServerProcess] = []
    below: set[int] = set()
    log = folder / "server.log"

    async def start(*, wrapper: Sequence[str] = (), **variables: Any) -> ServerProcess:
        process = await start_server(folder / "data", log, wrapper=wrapper, **variables)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.process.returncode is None:
                below.update(descendants(process.pid))
                await process.stop()
    await eventually("the processes of the servers to end", lambda: not any(map(is_running, below)))
    lines = log.read_text("utf-8", "replace") if log.exists() else ""
    assert "Traceback" not in lines, lines[-5000:]
    assert not SECRET.search(lines)


@pytest.fixture
async def spawn(tmp_path: Path) -> AsyncIterator[Spawn]:
    """Start servers as processes: ``await spawn(DRAIN_SECS="1")``. All are stopped at the end."""
    async with spawning(tmp_path) as start:
        yield start
