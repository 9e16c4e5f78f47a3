"""The parts of a server that only a node of a cluster has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from ..accounts.accounts import Accounts
from ..accounts.remote_spending import RemoteSpending
from ..acp.relay_server import AcpRelayServer
from ..agents.base import Backend
from ..agents.host.backend import HostBackend
from ..agents.process import supervise
from ..auth.shared_tickets import SharedTickets
from ..cluster.membership import SINGLE_SERVER, Cluster
from ..cluster.node import NODES, ClusterNode
from ..errors import DatabaseError, Error
from ..sessions.followed_log import LogFollower, LossWatch
from ..sessions.head_reporter import HeadReporter
from ..sessions.ownership import SessionOwnership
from ..sessions.registry import SessionRegistry
from ..sessions.remote_lists import RemoteLists
from ..sessions.remote_session import RemoteSessions
from ..storage.engine import SharedEngine
from ..storage.lease import BEAT_SHARE, FREEZE_SHARE, LeaseState
from ..storage.outbox import ADOPT_DELIVERIES, ADOPT_PUSH_MESSAGES
from ..storage.writer import DatabaseWriter
from ..tasks import Supervisor, Tasks
from ..ws.remote_commands import CommandServer
from .context import ServerContext
from .node_link import LINK, NodeLink

logger = logging.getLogger(__name__)

TOKENS_CHANGED = "tokens"
"""The event for the other nodes after a change of tokens or shares."""
RUNS_POLL_SECS = 30.0
FROZEN_CLOSE_SECS = 5.0
PROVEN_SECS = 5.0
"""The time that a node which starts waits for the first notification."""


def share_accounts(
    accounts: Accounts,
    engine: SharedEngine | None,
    writer: DatabaseWriter,
    clock: Callable[[], float],
    stack: contextlib.AsyncExitStack,
) -> None:
    """Let the accounts of a node read the spending of the other nodes; *stack* ends this."""
    if engine is not None:
        accounts.join(RemoteSpending(engine.limits, lambda: writer.commit(()), clock))
        stack.push_async_callback(accounts.stop)


def make_node(engine: SharedEngine | None, supervisor: Supervisor) -> Cluster:
    """This server as a node of a cluster, or as a server with a database of its own."""
    if engine is None:
        return SINGLE_SERVER
    lease = engine.lease
    return ClusterNode(
        engine.driver,
        lease.number,
        supervisor,
        beat_secs=BEAT_SHARE * lease.secs,
        secret=engine.secret,
    )


def growth_of(cluster: Cluster, writer: DatabaseWriter) -> Callable[[], object]:
    """Return a function whose value changes when the log of the database has grown."""
    if isinstance(cluster, ClusterNode):
        return lambda: cluster.growth
    return lambda: writer.commits


def connect_beats(engine: SharedEngine | None, backend: Backend) -> None:
    """Let the agents of a node run only while its lease is renewed."""
    if engine is None or not isinstance(backend, HostBackend):
        return
    lease = engine.lease
    beats = backend.beats
    beats.freeze_secs = FREEZE_SHARE * lease.secs

    def beat(sent_at: float) -> None:
        beats.send(supervise.now() - (time.monotonic() - sent_at))

    lease.on_beat = beat


class NodeParts:
    """Connects the sessions of this node with the sessions of the other nodes."""

    def __init__(self, node: ClusterNode, sessions: SessionRegistry, engine: SharedEngine) -> None:
        self._node = node
        self._lease = engine.lease
        self._limits = engine.limits
        self._sessions = sessions
        logs = sessions.logs
        logs.time_ns = engine.clock.time_ns
        self._driver, self._tail = engine.driver, engine.driver.tail
        losses = LossWatch(lambda: self._tail.failovers, lambda: self._tail.on_lost())
        self._follower = LogFollower(node, logs, sessions.queries, losses)
        self._lists = RemoteLists(node, sessions)
        self._reporter = HeadReporter(node, sessions.memory.get)
        self._tokens_changed = asyncio.Event()
        self._digest: tuple[object, ...] = ()
        self._has_work = asyncio.Event()
        sessions.remote = RemoteSessions(node, self._follower, self._lists, sessions.queries)
        self._ownership = sessions.ownership = SessionOwnership(sessions, node)

    @contextlib.asynccontextmanager
    async def running(self, app: web.Application, context: ServerContext) -> AsyncIterator[None]:
        """Serve the other nodes."""
        node, tasks = self._node, Tasks()
        app[LINK] = NodeLink(node)
        CommandServer(node, self._sessions, context.tokens, context.files)
        AcpRelayServer(node, self._sessions, context.tokens, context.logins)
        context.sessions.quotas.shared = context.files.shared = self._limits
        self._connect_tokens(context)
        self._connect_lease(context, tasks)
        await self._lease.beat()
        await self._start_bus(context)
        for name, loop in (
            ("cluster-channels", node.channels.watch),
            ("cluster-heads", self._follower.watch),
            ("cluster-lists", self._lists.run),
            ("cluster-sessions", self._ownership.run),
            ("cluster-count", self._ownership.count_sessions),
            ("cluster-refresh", lambda: self._refresh(context)),
            ("cluster-left", lambda: self._complete_work(context)),
        ):
            context.supervisor.spawn(tasks, name, loop)
        try:
            # Before the first request: a session of this node's predecessor has an owner again.
            await self._ownership.take_over_work()
            await self._sessions.writer.flush()
            self._has_work.set()  # look for what is left at once
            self._lease.followers.append(self._suspend)  # a start waits for the database
            yield
        finally:
            await tasks.finish(0)
            for part in (self._reporter, self._lists, self._follower, node.channels, node.bus):
                await part.stop()

    def _connect_tokens(self, context: ServerContext) -> None:
        """Let the nodes learn of changes of tokens, and have all open tickets in common."""
        node, tokens = self._node, context.tokens

        async def notify_nodes() -> None:
            await node.notify_all(TOKENS_CHANGED)

        tokens.shared_tickets = SharedTickets(node.engine, context.settings.max_tickets_per_app)
        tokens.on_changed = tokens.shares.on_changed = notify_nodes
        node.on_event[TOKENS_CHANGED] = lambda _: self._tokens_changed.set()
        node.on_digest = self._note_digest

    def _connect_lease(self, context: ServerContext, tasks: Tasks) -> None:
        """Report the load with each beat, and follow losses of the lease and of other nodes."""
        slots = self._sessions.slots

        def start_again() -> None:
            self._sessions.logs.pages.clear()
            context.sockets.start_again()

        def close_sockets(state: LeaseState) -> None:
            if state is LeaseState.FROZEN:
                tasks.spawn(context.sockets.close_all(FROZEN_CLOSE_SECS), "frozen-sockets")

        def find_nodes() -> None:
            tasks.spawn(self._find_nodes(), "cluster-nodes")

        self._tail.on_lost = start_again
        self._lease.load = lambda: (context.settings.max_live_agents, len(slots))
        self._lease.followers.append(close_sockets)
        self._lease.on_gone = self._on_gone
        self._lease.on_nodes = self._node.note_nodes
        self._node.find_nodes = self._lease.beat
        self._node.on_event[NODES] = lambda _: find_nodes()

    def _suspend(self, state: LeaseState) -> None:
        self._driver.suspend(is_suspended=state is LeaseState.FROZEN)

    async def _start_bus(self, context: ServerContext) -> None:
        bus = self._node.bus
        bus.start()
        context.health.is_notified = bus.is_proven.is_set
        with contextlib.suppress(TimeoutError):  # without it, the node is not ready
            async with asyncio.timeout(PROVEN_SECS):
                await bus.is_proven.wait()
        bus.announce(NODES)

    def _on_gone(self, numbers: list[int]) -> None:
        """Take the sessions and the other work of nodes that have ended, without waiting."""
        self._node.note_gone(numbers)
        self._node.bus.announce(NODES)
        self._ownership.run_soon()
        self._has_work.set()

    async def _find_nodes(self) -> None:
        """Find which nodes there are now, and the sessions of those that have ended."""
        await self._lease.beat()
        self._ownership.run_soon()

    async def _complete_work(self, context: ServerContext) -> None:
        """End the runs and send the webhooks of nodes that have ended, forever.

        Rounds without an event complete the work that another node has not finished.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RUNS_POLL_SECS):
                    await self._has_work.wait()
            self._has_work.clear()
            try:
                await context.runner.end_interrupted()
                await context.jobs.end_interrupted()
                await self._adopt_deliveries(context)
            except (DatabaseError, Error) as error:
                logger.warning("the work of other nodes cannot be taken over: %s", error)

    async def _adopt_deliveries(self, context: ServerContext) -> None:
        number = self._lease.number
        for adopt in (ADOPT_DELIVERIES, ADOPT_PUSH_MESSAGES):
            await self._node.engine.change(adopt, (number,), repeats=True)
        await context.outbox.adopt(number)

    def _note_digest(self, digest: tuple[object, ...]) -> None:
        if digest != self._digest:
            self._digest = digest
            self._tokens_changed.set()

    async def _refresh(self, context: ServerContext) -> None:
        """Let what other nodes change in the tokens and the webhooks take effect, forever."""
        while True:
            await self._tokens_changed.wait()
            self._tokens_changed.clear()
            try:
                await context.tokens.refresh()
                await context.outbox.refresh()
            except DatabaseError as error:
                self._digest = ()  # the next round tries again
                logger.debug("the changes of other nodes cannot be read: %s", error)


async def enter_cluster(
    stack: contextlib.AsyncExitStack,
    engine: SharedEngine | None,
    app: web.Application,
    context: ServerContext,
) -> None:
    """Connect this server with the other nodes, if there is a cluster; *stack* leaves it."""
    node = context.sessions.cluster
    if engine is not None and isinstance(node, ClusterNode):
        parts = NodeParts(node, context.sessions, engine)
        await stack.enter_async_context(parts.running(app, context))
