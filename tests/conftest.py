"""Fixtures: a server here (``server``, ``serve``), a server as a process (``spawn``)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from .harness import (
    Client,
    Clock,
    LocalServer,
    ServerProcess,
    descendants,
    eventually,
    http_session,
    is_running,
    local_server,
    start_server,
)

Serve = Callable[..., Awaitable[LocalServer]]
Spawn = Callable[..., Awaitable[ServerProcess]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start servers with settings of the test's own: ``await serve(max_sessions=2)``."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *, data_dir: Path = tmp_path / "data", clock: Clock | None = None, **settings: Any
        ) -> LocalServer:
            options = {} if clock is None else {"clock": clock}
            return await stack.enter_async_context(local_server(data_dir, **options, **settings))

        yield start


@pytest.fixture
async def server(serve: Serve) -> LocalServer:
    """A server with default settings and the mock agents."""
    return await serve()


@pytest.fixture
async def client(server: LocalServer) -> Client:
    """An app's client at ``server``."""
    return await server.client()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with http_session() as session:
        yield session


@pytest.fixture
async def spawn(tmp_path: Path) -> AsyncIterator[Spawn]:
    """Start servers as processes, ``await spawn(DRAIN_SECS="1")``; none outlives the test."""
    started: list[ServerProcess] = []
    below: set[int] = set()

    async def start(**variables: str) -> ServerProcess:
        process = await start_server(tmp_path / "data", tmp_path / "server.log", **variables)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.process.returncode is None:
            below.update(descendants(process.pid))
            await process.stop()
    await eventually(
        "every process that a server started to end", lambda: not any(map(is_running, below))
    )
