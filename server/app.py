"""Wires the parts of the server together, and starts and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping

from aiohttp import web

from .accounts.accounts import Accounts
from .agents.catalog import AcpxError
from .agents.logins import AgentLogins
from .agents.process.environ import agent_environ
from .auth.first_tokens import FirstTokens
from .auth.tokens import TokenRegistry
from .backends import AgentBackend, make_backend
from .config import MAX_BODY_BYTES, Settings
from .data_dir import DataDir
from .errors import DatabaseError, Error, StartError
from .gateways.setup import Gateways
from .limits import ByteBudget
from .metrics import Metrics
from .outbox.outbox import AlertOutbox
from .reload.program import StartedProgram
from .reload.reloader import Carrier, Reloader
from .reload.state import Inherited
from .runs.jobs import RunJobs
from .runs.results import RunResults
from .runs.runner import Runner
from .sandbox.sandbox import Sandbox
from .search.index import SearchIndex
from .search.indexer import Indexer
from .sessions.registry import SessionRegistry
from .storage.audit import AuditQueries
from .storage.database import Database
from .storage.engine import SharedEngine, join_cluster, open_database, storage_error
from .storage.growth import GrowthQueries
from .storage.queries import Queries
from .storage.schema import SchemaError
from .storage.usage import UsageQueries
from .storage.writer import DatabaseWriter
from .tasks import Supervisor
from .tracing import Tracer, open_tracer
from .uploads.files import FileStore
from .web.context import CONTEXT, ServerContext
from .web.gauges import register_gauges
from .web.health import HealthMonitor
from .web.middleware import add_common_headers, error_middleware
from .web.node_link import node_middleware
from .web.node_parts import connect_beats, enter_cluster, growth_of, make_node, share_accounts
from .web.request_body import BODY_READER, BodyReader
from .web.request_spans import tracing_middleware
from .web.resources import add_resources
from .web.responses import set_server_header
from .web.sse import STREAM_KEEP_ALIVE_SECS
from .web.waits import CONTINUED
from .wiring.backend_start import begin_start
from .wiring.links import connect_tokens, resume_removals
from .wiring.loops import start_loops
from .wiring.reloads import (
    ReloadableConnections,
    ReloadableStorage,
    close_rest,
    inherited_lock,
    restore_tickets,
)
from .wiring.running import make_reloader
from .wiring.shutdown import drain
from .workspace.files import WorkspaceFiles
from .ws.hub import Hub
from .ws.incoming import INCOMING_LIMITS, IncomingLimits

FIRST_TOKENS = web.AppKey("first-tokens", list[FirstTokens])
"""The tokens that the first start created, until they are shown; otherwise empty."""
RELOADER = web.AppKey("reloader", Reloader)
CONNECTIONS = web.AppKey("connections", ReloadableConnections)
SANDBOX = web.AppKey("sandbox", Sandbox)
TRACER = web.AppKey("tracer", Tracer)


async def build_app(
    settings: Settings,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
    supervisor: Supervisor | None = None,
    stream_keep_alive_secs: float = STREAM_KEEP_ALIVE_SECS,
    program: StartedProgram | None = None,
    inherited: Inherited | None = None,
) -> web.Application:
    """Make the application. Its parts start when the application starts.

    Args:
        environ: the environment; agents get a part of it.
        clock: Unix seconds, for everything that expires. Nodes use the database's by default.
        supervisor: of the long-lived tasks; by default a new one.
        stream_keep_alive_secs: an event stream gets a comment after this time without an event.
        program: what this process was started with, for a reload.
        inherited: the state of an earlier version of the server, which is continued.

    The start of the application raises :class:`StartError` if the server cannot start.
    """
    middlewares = [error_middleware, *([node_middleware] if settings.cluster_url else [])]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app[FIRST_TOKENS] = []
    app[CONTINUED] = {}
    limits = app[INCOMING_LIMITS] = IncomingLimits(
        ByteBudget(settings.max_body_bytes, settings.max_body_bytes_per_app),
        timeout=settings.body_timeout_secs,
        stall_timeout=settings.stall_timeout_secs,
    )
    app[BODY_READER] = BodyReader(limits)
    app.on_response_prepare.extend((set_server_header, add_common_headers))
    supervisor = supervisor or Supervisor()
    if (tracer := open_tracer(environ)) is not None:
        app[TRACER] = tracer
        app.middlewares.append(tracing_middleware(tracer))
    app[RELOADER] = make_reloader(settings, program, inherited)
    times = clock, supervisor, stream_keep_alive_secs
    server = _Server(app, settings, environ, *times, inherited)
    app.cleanup_ctx.append(server.lifespan)
    app.on_shutdown.append(drain)
    add_resources(app)
    return app


class _Server:
    """Starts the parts of the server in order, and stops them in the reverse order."""

    def __init__(
        self,
        app: web.Application,
        settings: Settings,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        supervisor: Supervisor,
        stream_keep_alive_secs: float,
        inherited: Inherited | None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._environ: Mapping[str, str] = environ
        self._agent_environ: Mapping[str, str] = agent_environ(environ, settings.agent_env)
        self._clock = clock
        self._supervisor = supervisor
        self._stream_keep_alive_secs = stream_keep_alive_secs
        self._inherited = inherited
        self._data_dir = DataDir.of(settings)
        self._metrics = Metrics()
        self._database: Database
        self._engine: SharedEngine | None = None

    async def lifespan(self, app: web.Application) -> AsyncIterator[None]:
        """Run the parts of the server: aiohttp's ``cleanup_ctx``.

        Raises:
            StartError: a part cannot start.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._start(stack)
            except (AcpxError, Error, SchemaError) as error:
                raise StartError(str(error)) from None
            except (OSError, DatabaseError) as error:
                raise storage_error(self._settings, self._data_dir.path, error) from None
            yield

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start all parts. *stack* stops them."""
        self._start_tracing(stack)
        await self._open_gateways(stack)
        lock = stack.enter_context(self._data_dir.locked(inherited_lock(self._inherited)))
        queries, writer = await self._start_storage(stack)
        tokens = await self._load_tokens(stack, queries, writer)
        await tokens.connect_sandbox(self._app[SANDBOX])
        backend = self._make_backend(writer, tokens)
        starting = begin_start(stack, backend, self._settings.default_agent)
        if self._inherited is not None:
            await starting  # the sessions continue with its agents
        parts = self._settings, queries, writer, self._metrics, backend, self._clock
        cluster = make_node(self._engine, self._supervisor)
        sessions = SessionRegistry(*parts, accounts=tokens.accounts, cluster=cluster)
        outbox = await self._start_outbox(stack, writer, tokens, sessions)
        await sessions.start(self._inherited)
        stack.push_async_callback(sessions.stop)
        runner = await self._start_runner(stack, queries, writer, backend, sessions)
        self._gateways.connect(sessions, runner)
        jobs = await self._start_jobs(stack, writer)
        files = await self._start_uploads(queries, writer, sessions)
        logins = AgentLogins(backend, self._data_dir)
        stack.push_async_callback(logins.stop)
        workspace = WorkspaceFiles(self._settings, sessions.disk)
        stack.callback(workspace.stop)
        search = await self._start_search(stack, queries, sessions)
        await resume_removals(sessions, files, search)
        sockets = Hub(self._settings)
        connect_tokens(tokens, sockets, sessions, jobs, outbox)
        health = self._make_health()
        storage = ReloadableStorage(writer, tokens, lock)
        storage.is_ready = lambda: health.ready and runner.is_idle and jobs.is_idle
        context = ServerContext(
            settings=self._settings,
            tokens=tokens,
            sessions=sessions,
            logins=logins,
            files=files,
            workspace=workspace,
            sockets=sockets,
            health=health,
            metrics=self._metrics,
            runner=runner,
            jobs=jobs,
            supervisor=self._supervisor,
            long_replies=ByteBudget(
                2 * self._settings.max_reply_bytes, self._settings.max_reply_bytes
            ),
            search=search,
            audit=AuditQueries(self._database),
            usage=UsageQueries(self._database),
            outbox=outbox,
            reloader=self._set_carriers(stack, sockets, sessions.reloadable, backend, storage),
            stream_keep_alive_secs=self._stream_keep_alive_secs,
        )
        await self._open(stack, context, writer, backend, starting)

    async def _open(
        self,
        stack: contextlib.AsyncExitStack,
        context: ServerContext,
        writer: DatabaseWriter,
        backend: AgentBackend,
        starting: asyncio.Task[None],
    ) -> None:
        """Serve requests with the started parts, once the backend has started as well."""
        self._app[CONTEXT] = context
        register_gauges(context, writer)
        restarts = "host_restarts", "Restarts of the acpx host", lambda: backend.restarts
        self._metrics.add_counter(*restarts)
        start_loops(stack, context, writer)
        await enter_cluster(stack, self._engine, self._app, context)
        await starting
        context.health.acpx_version = backend.versions["acpx"]
        context.health.ready = self._supervisor.failure is None

    def _make_health(self) -> HealthMonitor:
        health = HealthMonitor(self._settings.claude_bin, environ=self._agent_environ)
        health.engine = self._engine
        return health

    async def _start_outbox(
        self,
        stack: contextlib.AsyncExitStack,
        writer: DatabaseWriter,
        tokens: TokenRegistry,
        sessions: SessionRegistry,
    ) -> AlertOutbox:
        outbox = await AlertOutbox.start(
            self._settings, self._database, writer, tokens, self._clock
        )
        stack.push_async_callback(outbox.stop)
        outbox.connect(sessions)
        return outbox

    def _set_carriers(
        self, stack: contextlib.AsyncExitStack, sockets: Hub, *carriers: Carrier
    ) -> Reloader:
        """Let the parts survive a reload. The state of an earlier version has been restored."""
        reloader, key_proxy = self._app[RELOADER], self._gateways.key_proxy
        connections = ReloadableConnections(sockets, self._gateways.check_reload)
        self._app[CONNECTIONS] = connections
        proxies = [key_proxy] if key_proxy is not None else []
        reloader.carriers = [connections, *proxies, *carriers]
        stack.push_async_callback(reloader.stop)
        close_rest(self._inherited)
        return reloader

    def _start_tracing(self, stack: contextlib.AsyncExitStack) -> None:
        if (tracer := self._app.get(TRACER)) is not None:
            self._metrics.tracer = tracer
            stack.push_async_callback(asyncio.to_thread, tracer.stop)

    async def _open_gateways(self, stack: contextlib.AsyncExitStack) -> None:
        given = self._settings, self._environ, self._agent_environ, self._supervisor
        self._gateways = gateways = await Gateways.open(stack, *given, self._inherited)
        self._environ, self._agent_environ = gateways.environ, gateways.agent_environ
        self._app[SANDBOX] = gateways.sandbox

    async def _start_storage(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[Queries, DatabaseWriter]:
        settings, supervisor = self._settings, self._supervisor
        database = await open_database(settings, self._data_dir.database, stack)
        self._engine = await join_cluster(settings, database, supervisor, stack)
        writer = DatabaseWriter(database, self._metrics, supervisor)
        writer.start()
        stack.push_async_callback(writer.stop)
        if self._engine is not None:
            self._engine.attach(writer, supervisor)
            if self._clock is time.time:
                self._clock = self._engine.clock
        self._database = database
        return Queries(database), writer

    async def _start_search(
        self, stack: contextlib.AsyncExitStack, queries: Queries, sessions: SessionRegistry
    ) -> Indexer:
        index = await SearchIndex.open(self._data_dir.search_index)
        stack.push_async_callback(index.close)

        def is_busy(session_id: str) -> bool:
            session = sessions.cached.get(session_id)
            return session is not None and session.is_busy

        growth = growth_of(sessions.cluster, sessions.writer)
        return Indexer(index, queries, GrowthQueries(self._database), is_busy, growth)

    async def _load_tokens(
        self, stack: contextlib.AsyncExitStack, queries: Queries, writer: DatabaseWriter
    ) -> TokenRegistry:
        accounts = Accounts(UsageQueries(self._database), self._clock)
        share_accounts(accounts, self._engine, writer, self._clock, stack)
        await accounts.start()
        limit = self._settings.max_tickets_per_app
        tokens = TokenRegistry(
            queries,
            writer,
            max_tickets_per_app=limit,
            max_shares_per_session=self._settings.max_shares_per_session,
            clock=self._clock,
            accounts=accounts,
        )
        if (first := await tokens.load(self._settings.admin_token)) is not None:
            self._app[FIRST_TOKENS].append(first)
        restore_tickets(tokens, self._inherited)
        return tokens

    def _make_backend(self, writer: DatabaseWriter, tokens: TokenRegistry) -> AgentBackend:
        settings, sandbox = self._settings, self._app[SANDBOX]
        about = settings, self._environ, writer, self._supervisor
        backend = make_backend(*about, sandbox=sandbox, inherited=self._inherited)
        backend.environ_of = tokens.environ_of
        connect_beats(self._engine, backend)
        return backend

    async def _start_runner(
        self,
        stack: contextlib.AsyncExitStack,
        queries: Queries,
        writer: DatabaseWriter,
        backend: AgentBackend,
        sessions: SessionRegistry,
    ) -> Runner:
        runner = Runner(
            self._settings,
            queries,
            writer,
            backend,
            environ=self._agent_environ,
            choose_agent=sessions.agents.choose,
            waiting_bytes=sessions.quotas.waiting_bytes,
            disk=sessions.disk,
            accounts=sessions.accounts,
            clock=self._clock,
        )
        runner.tracer = self._metrics.tracer
        await runner.start()
        stack.push_async_callback(runner.stop)
        return runner

    async def _start_jobs(
        self, stack: contextlib.AsyncExitStack, writer: DatabaseWriter
    ) -> RunJobs:
        limit = self._settings.max_run_result_bytes_per_app
        results = RunResults(self._database, writer, max_bytes_per_app=limit, clock=self._clock)
        jobs = RunJobs(results)
        await results.start()
        stack.push_async_callback(jobs.stop)
        return jobs

    async def _start_uploads(
        self, queries: Queries, writer: DatabaseWriter, sessions: SessionRegistry
    ) -> FileStore:
        files = FileStore(
            self._data_dir,
            queries,
            writer,
            max_bytes=self._settings.max_upload_bytes,
            max_bytes_per_app=self._settings.max_upload_bytes_per_app,
            max_count_per_app=self._settings.max_uploads_per_app,
            own_limit=sessions.app_disk.room_for_uploads,
            disk=sessions.disk,
            sandbox=sessions.backend.sandbox,
            clock=self._clock,
        )
        sessions.app_disk.uploads, sessions.app_disk.recount = files.bytes_of, files.recount
        await files.start()
        return files
