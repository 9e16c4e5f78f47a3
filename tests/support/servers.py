"""Servers for tests: in the test's own process, or as a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import web
from blockbuster import BlockBuster

from server.app import build_app
from server.config import Settings
from server.sandbox import setup
from server.sandbox.levels import Mechanism, find_mechanism
from server.sessions.registry import SessionRegistry
from server.sessions.session import Session
from server.tasks import Supervisor
from server.web.context import CONTEXT, ServerContext
from server.web.listener import Listener
from server.web.middleware import ServerRunner
from server.web.sse import STREAM_KEEP_ALIVE_SECS
from server.ws.incoming import INCOMING_LIMITS, IncomingLimits

from .client import ADMIN, Client, http_session
from .engine import engine_settings, engine_variables
from .mock_agents import MOCK, MOCKS
from .processes import ROOT
from .sandboxes import TEST_LEVEL
from .waiting import TIMEOUT_SECS


class LocalServer:
    """A server in the test's own process and event loop, with the real acpx."""

    def __init__(self, runner: web.AppRunner, url: str, http: aiohttp.ClientSession) -> None:
        self._runner = runner
        self._http = http
        self.url = url
        self.services: ServerContext = runner.app[CONTEXT]
        self.router = runner.app.router
        self.incoming: IncomingLimits = runner.app[INCOMING_LIMITS]

    async def client(self, name: str = "app", **token: Any) -> Client:
        """A client with a new token."""
        admin = self.admin()
        status, reply = await admin.post("/admin/tokens", {"name": name, **token})
        assert status == 200, reply
        return Client(self.url, reply["token"], self._http)

    async def clear(self) -> None:
        """Remove all apps, with their sockets, sessions and agents."""
        await self.anonymous().close_sockets()
        services = self.services
        for row in services.tokens.rows():
            for session in await services.sessions.listing.sessions(row.name, include_closed=False):
                await services.sessions.close(session, "admin")
            await services.tokens.revoke(row.name)

    def admin(self) -> Client:
        return Client(self.url, ADMIN, self._http)

    def anonymous(self) -> Client:
        return Client(self.url, None, self._http)

    async def stop(self) -> None:
        await self._runner.cleanup()


blocking = BlockBuster("server")
"""Fails blocking calls of the server, except while it starts or stops."""
for function in blocking.functions.values():  # asyncpg looks for certificates and passwords
    function.can_block_in("asyncpg/connect_utils.py", "_parse_connect_dsn_and_args")
    function.can_block_in("server/workspace/fingerprint.py", "is_plainly_unchanged")


@functools.cache
def _mechanism(setting: str, path: str) -> Mechanism:
    return find_mechanism(setting, {"PATH": path})


def _find_mechanism(setting: str, environ: Mapping[str, str]) -> Mechanism:
    """The servers of this process find the same mechanism. Each trial would start programs."""
    return _mechanism(setting, environ.get("PATH", os.defpath))


mock.patch.object(setup, "find_mechanism", _find_mechanism).start()


@contextlib.asynccontextmanager
async def local_server(
    data_dir: Path,
    clock: Callable[[], float] = time.time,
    supervisor: Supervisor | None = None,
    stream_keep_alive_secs: float = STREAM_KEEP_ALIVE_SECS,
    **settings: Any,
) -> AsyncIterator[LocalServer]:
    """Run a server in this process. *settings* are fields of :class:`Settings`."""
    values = {
        "admin_token": ADMIN,
        "agents": MOCKS,
        "default_agent": "mock",
        "data_dir": data_dir,
        "min_free_bytes": 0,  # tests do not depend on the free space of the disk
        "sandbox": TEST_LEVEL,
        "sandbox_read": (MOCK.parents[1],),
        "sandbox_write": (data_dir.parents[1],),  # tests exchange files with agents there
        "drain_secs": 0.1,  # do not wait for turns that a test left running
        **engine_settings(data_dir),
        **settings,
    }
    blocking.deactivate()
    environ = {**os.environ, "DEMO_PACE_MS": "0"}
    app = await build_app(
        Settings(**values),
        environ=environ,
        clock=clock,
        supervisor=supervisor,
        stream_keep_alive_secs=stream_keep_alive_secs,
    )
    runner = ServerRunner(app, shutdown_timeout=2)
    try:
        await runner.setup()
        services = app[CONTEXT]
        listener = Listener(
            services.sockets.unauthenticated,
            services.settings.auth_timeout_secs,
            services.settings.stall_timeout_secs,
            services.supervisor,
        )
        async with http_session() as http, listener.open(runner, "127.0.0.1", 0) as port:
            blocking.activate()
            yield LocalServer(runner, f"http://127.0.0.1:{port}", http)
    finally:
        blocking.deactivate()
        await runner.cleanup()


def hold_commits(
    server: LocalServer, patch: pytest.MonkeyPatch
) -> tuple[asyncio.Event, asyncio.Event]:
    """Delay the return of commits.

    Returns:
        An event that is set when a commit is stored, and an event that lets commits return.
    """
    writer, stored, release = server.services.sessions.writer, asyncio.Event(), asyncio.Event()
    commit = writer.commit

    async def slow_commit(statements: Any) -> None:
        await commit(statements)
        stored.set()
        await release.wait()

    patch.setattr(writer, "commit", slow_commit)
    return stored, release


def call_after_lookup(
    patch: pytest.MonkeyPatch, function: Callable[[str], Awaitable[object]]
) -> None:
    """Call *function* with the app's name after each lookup of a session, before its caller."""
    get = SessionRegistry.get

    async def get_and_call(
        self: SessionRegistry, session_id: str, app_name: str, *, is_used: bool = True
    ) -> Session:
        session = await get(self, session_id, app_name, is_used=is_used)
        await function(app_name)
        return session

    patch.setattr(SessionRegistry, "get", get_and_call)


class ServerProcess:
    """A server in a process of its own: ``python -m server``."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, greeting: str) -> None:
        self.process = process
        self.url = url
        self.greeting = greeting

    @property
    def pid(self) -> int:
        return self.process.pid

    async def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM if the process still runs. Returns its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), TIMEOUT_SECS)


async def start_server(
    data_dir: Path,
    log: Path,
    *,
    wrapper: Sequence[str] = (),
    folder: str | Path = ROOT,
    **variables: str | None,
) -> ServerProcess:
    """Start ``python -m server`` on a free port and wait until it is ready.

    Args:
        log: the file to which stderr is appended.
        wrapper: a program with arguments that executes the server.
        folder: of the program, with the package ``server``.
        variables: settings, by the variable's name without the prefix; None unsets a variable.
    """
    agents = {name: {"argv": a.argv, "env": dict(a.env)} for name, a in MOCKS.items()}
    settings = {
        "DATA_DIR": str(data_dir),
        "PORT": "0",
        "ADMIN_TOKEN": ADMIN,
        **engine_variables(data_dir),
        "AGENTS": json.dumps(agents),
        "DEFAULT_AGENT": "mock",
        "MIN_FREE_BYTES": "0",
        "SANDBOX": TEST_LEVEL,
        "SANDBOX_READ": str(MOCK.parents[1]),
        "SANDBOX_WRITE": str(data_dir.parents[1]),
        **variables,
    }
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
    environ |= {f"CLAWDFORGE_{k}": v for k, v in settings.items() if v is not None}
    environ |= {"DEMO_PACE_MS": "0", "PYTHONWARNINGS": "error"}
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *wrapper,
            *(sys.executable, "-m", "server"),
            cwd=folder,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    greeting = ""
    while "is ready on" not in greeting:
        line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT_SECS)
        if not line:
            raise AssertionError(f"the server did not start: see {log}")
        greeting += line.decode()
    url = greeting.rpartition("is ready on ")[2].strip().rstrip("/")
    return ServerProcess(process, url, greeting)
