"""The house put together: what is made in which order, and taken down in the reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import get_args

from aiohttp import web

from .agents.base import Backpressure, MessageLimits, Presence
from .agents.catalog import AcpxError, find_node
from .agents.cli.backend import CliBackend
from .agents.host.backend import HostBackend
from .agents.process.environ import agent_environ, with_folder_of
from .agents.selection import FALLBACK_AGENT
from .auth.tokens import FirstTokens, TokenRegistry
from .config import MAX_BODY_BYTES, AgentCommand, Settings
from .data_dir import DataDir
from .errors import DatabaseError, Error, StartError
from .limits import ByteBudget
from .metrics import Metrics
from .runs.runner import Runner
from .sessions.registry import SessionRegistry
from .storage.database import Database
from .storage.import_v02 import upgrade
from .storage.queries import Queries
from .storage.schema import SchemaError
from .storage.writer import DatabaseWriter
from .tasks import Supervisor, Tasks
from .uploads.files import FileStore
from .web.context import CONTEXT, ServerContext
from .web.health import HealthMonitor
from .web.middleware import add_common_headers, error_middleware
from .web.request_body import BODY_READER, BodyReader
from .web.resources import add_resources
from .web.responses import set_server_header
from .ws.hub import Hub
from .ws.incoming import INCOMING_LIMITS, IncomingLimits

SOCKETS_CLOSE_SECS = 5.0
FIRST_TOKENS = web.AppKey("first-tokens", list[FirstTokens])
DEMO = Path(__file__).parent / "agents" / "demo" / "demo_agent.py"


async def build_app(
    settings: Settings,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
    supervisor: Supervisor | None = None,
) -> web.Application:
    """Make the application; nothing runs before it is started.

    Args:
        environ: of which agents get a part.
        clock: unix seconds, for everything that ages.
        supervisor: of the long-lived tasks, if not a new one.

    The application's start raises :class:`StartError` where it cannot.
    """
    app = web.Application(middlewares=[error_middleware], client_max_size=MAX_BODY_BYTES)
    app[FIRST_TOKENS] = []
    tasks = supervisor or Supervisor()
    limits = app[INCOMING_LIMITS] = IncomingLimits(
        ByteBudget(settings.max_body_bytes, settings.max_body_bytes_per_app),
        timeout=settings.body_timeout_secs,
        stall_timeout=settings.stall_timeout_secs,
    )
    app[BODY_READER] = BodyReader(limits)
    app.on_response_prepare.extend((set_server_header, add_common_headers))

    async def house(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(_house(app, settings, environ, clock, tasks))
            except (AcpxError, Error, SchemaError) as error:
                raise StartError(str(error)) from None
            except (OSError, DatabaseError) as error:
                raise StartError(f"CLAWDFORGE_DATA_DIR: {settings.data_dir}: {error}") from None
            yield

    app.cleanup_ctx.append(house)
    app.on_shutdown.append(_drain)
    add_resources(app)
    return app


@contextlib.asynccontextmanager
async def _house(
    app: web.Application,
    settings: Settings,
    environ: Mapping[str, str],
    clock: Callable[[], float],
    supervisor: Supervisor,
) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        data_dir = DataDir(settings.data_dir)
        stack.enter_context(data_dir.locked())
        await upgrade(data_dir.database)
        database = await Database.open(data_dir.database, sync=settings.sync)
        stack.push_async_callback(database.close)
        queries = Queries(database)
        metrics = Metrics()
        writer = DatabaseWriter(database, metrics, supervisor)
        writer.start()
        stack.push_async_callback(writer.stop)
        tokens = TokenRegistry(queries, writer, max_tickets_per_app=settings.max_tickets_per_app)
        if (first := await tokens.load(settings.admin_token)) is not None:
            app[FIRST_TOKENS].append(first)

        backend = make_backend(settings, environ, writer, supervisor)
        await backend.start()
        stack.push_async_callback(backend.stop)
        known = [info.name for info in await backend.agents()]
        if settings.default_agent not in (None, *known):
            raise StartError(f"CLAWDFORGE_DEFAULT_AGENT: must be one of {', '.join(known)}")
        all_sessions = SessionRegistry(settings, queries, writer, metrics, backend, clock)
        await all_sessions.start()
        stack.push_async_callback(all_sessions.stop)

        runner = Runner(
            settings,
            queries,
            writer,
            backend,
            environ=agent_environ(environ, settings.agent_env),
            choose_agent=all_sessions.agents.choose,
            waiting_bytes=all_sessions.quotas.waiting_bytes,
            disk=all_sessions.disk,
            clock=clock,
        )
        await runner.start()
        stack.push_async_callback(runner.stop)

        sockets = Hub(settings)

        def revoked(app_name: str) -> None:
            sockets.close_app(app_name)
            all_sessions.cancel_turns(app_name)

        tokens.on_revoke = revoked
        allowed = agent_environ(environ, settings.agent_env)
        state = HealthMonitor(settings.claude_bin, environ=allowed)
        state.acpx_version = backend.versions["acpx"]
        uploads = FileStore(
            data_dir.uploads,
            queries,
            writer,
            max_bytes=settings.max_upload_bytes,
            max_bytes_per_app=settings.max_upload_bytes_per_app,
            max_count_per_app=settings.max_uploads_per_app,
            disk=all_sessions.disk,
            clock=clock,
        )
        await uploads.start()
        _register_gauges(metrics, tokens, writer, all_sessions, runner, sockets, backend)
        app[CONTEXT] = ServerContext(
            settings, tokens, all_sessions, uploads, sockets, state, metrics, runner, supervisor
        )

        def refuse_all() -> None:
            state.ready = False
            all_sessions.is_draining = True

        supervisor.on_failure = refuse_all
        loops = Tasks()
        stack.push_async_callback(loops.finish, patience=0)
        sweep = partial(all_sessions.sweeper.run, uploads.sweep)
        supervisor.spawn(loops, "health", state.watch)
        supervisor.spawn(loops, "heart", sockets.heartbeat_loop)
        supervisor.spawn(loops, "metrics", metrics.watch_loop)
        supervisor.spawn(loops, "checkpoints", writer.checkpointer.run)
        supervisor.spawn(loops, "sweeper", sweep)
        state.ready = supervisor.failure is None
        yield


def _register_gauges(
    metrics: Metrics,
    tokens: TokenRegistry,
    writer: DatabaseWriter,
    all_sessions: SessionRegistry,
    runner: Runner,
    sockets: Hub,
    backend: HostBackend | CliBackend,
) -> None:
    """Let the metrics read the parts' own figures."""
    slots = all_sessions.slots
    for name, description, read in (
        ("open_sessions", "Sessions that are open", lambda: all_sessions.quotas.open_sessions),
        ("live_agents", "Agent processes", lambda: len(slots)),
        ("queued_for_agent", "Sessions that wait for a free agent", lambda: slots.queued),
        ("running_turns", "Turns that run", lambda: all_sessions.running_turns),
        ("queued_turns", "Prompts that wait in their sessions", lambda: all_sessions.queued_turns),
        ("runs", "Runs that have a place", lambda: runner.running),
        ("queued_runs", "Runs that wait for a place", lambda: runner.queued),
        ("sockets", "Connected sockets", lambda: len(sockets)),
        (
            "waiting_sockets",
            "Connections and sockets that have yet to say who they are",
            lambda: len(sockets.waiting),
        ),
        (
            "waiting_requests",
            "Requests that wait, and that a revocation of their token would end",
            lambda: tokens.waits,
        ),
        ("replay_lag_entries", "What the socket farthest behind lacks", lambda: sockets.replay_lag),
        ("log_backlog_bytes", "Entries that are not yet durable", lambda: writer.backlog),
        ("tasks", "Asyncio tasks", lambda: len(asyncio.all_tasks())),
    ):
        metrics.read(name, description, read)
    metrics.read_total("host_restarts", "Restarts of the acpx host", lambda: backend.restarts)
    metrics.read_total("cpu_seconds", "Processor time of the server's process", time.process_time)
    states = get_args(Presence)
    metrics.read_each(
        "agents", "Agents, and sessions without one", "state", states, all_sessions.count_agents
    )


async def _drain(app: web.Application) -> None:
    """Stop serving: sockets are told first, running turns may finish."""
    services = app[CONTEXT]
    services.health.ready = False
    services.sessions.is_draining = True
    await services.sockets.close_all(SOCKETS_CLOSE_SECS)
    await asyncio.gather(services.sessions.stop(), services.runner.stop())


def make_backend(
    settings: Settings,
    environ: Mapping[str, str],
    pressure: Backpressure,
    supervisor: Supervisor | None = None,
    *,
    node: str | None = None,
) -> HostBackend | CliBackend:
    """The way to run agents that the settings ask for.

    Args:
        node: Node's executable; it is looked for if it is not given.

    Raises:
        AcpxError: there is no Node.
    """
    demo = AgentCommand((sys.executable, "-I", "-S", str(DEMO)))
    make = (
        partial(HostBackend, supervisor=supervisor)
        if settings.agent_backend == "host"
        else CliBackend
    )
    node = node or find_node()
    return make(
        node=node,
        data_dir=DataDir(settings.data_dir),
        agents={FALLBACK_AGENT: demo, **settings.agents},
        environ=with_folder_of(node, agent_environ(environ, settings.agent_env)),
        start_timeout=settings.agent_start_timeout_secs,
        pressure=pressure,
        limits=MessageLimits(
            settings.max_agent_message_bytes, settings.max_agent_message_bytes_per_app
        ),
    )
