"""The parts of a server that only a node of a cluster has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from aiohttp import web

from ..auth.tokens import TokenRegistry
from ..cluster.node import ClusterNode
from ..errors import DatabaseError
from ..sessions.followed_log import HeadReporter, LogFollower
from ..sessions.ownership import SessionOwnership
from ..sessions.registry import SessionRegistry
from ..sessions.remote_lists import RemoteLists
from ..sessions.remote_session import RemoteSessions
from ..tasks import Supervisor, Tasks
from ..ws.remote_commands import CommandServer
from .context import ServerContext
from .node_link import LINK, NodeLink

logger = logging.getLogger(__name__)

TOKENS_CHANGED = "tokens"
"""The event that tells the other nodes that tokens or shares have changed."""
TOKENS_POLL_SECS = 0.5


class NodeParts:
    """The connections between the sessions of this node and those of the others."""

    def __init__(self, node: ClusterNode, sessions: SessionRegistry) -> None:
        self._node = node
        self._sessions = sessions
        logs = sessions.logs
        self._follower = LogFollower(node, logs, sessions.queries)
        self._lists = RemoteLists(node, sessions)
        self._reporter = HeadReporter(node, sessions.loaded)
        self._tokens_changed = asyncio.Event()
        sessions.remote = RemoteSessions(node, self._follower, self._lists, sessions.queries)
        self._ownership = sessions.ownership = SessionOwnership(sessions, node)

    @contextlib.asynccontextmanager
    async def running(
        self, app: web.Application, context: ServerContext, supervisor: Supervisor
    ) -> AsyncIterator[None]:
        """Serve the other nodes."""
        node, tokens = self._node, context.tokens
        app[LINK] = NodeLink(node)
        CommandServer(node, self._sessions, tokens, context.files)

        async def tell() -> None:
            await node.tell_all(TOKENS_CHANGED)

        tokens.on_changed = tokens.shares.on_changed = tell
        node.on_event[TOKENS_CHANGED] = lambda _: self._tokens_changed.set()
        await node.find_nodes()
        tasks = Tasks()
        for name, loop in (
            ("cluster-channels", node.channels.watch),
            ("cluster-heads", self._follower.watch),
            ("cluster-lists", self._lists.run),
            ("cluster-sessions", self._ownership.run),
            ("cluster-tokens", lambda: self._refresh_tokens(tokens)),
        ):
            supervisor.spawn(tasks, name, loop)
        try:
            yield
        finally:
            await tasks.finish(0)
            for part in (self._reporter, self._lists, self._follower, node.channels, node.bus):
                await part.stop()

    async def _refresh_tokens(self, tokens: TokenRegistry) -> None:
        """Let changes of tokens that other nodes make take effect, forever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TOKENS_POLL_SECS):
                    await self._tokens_changed.wait()
            was_told = self._tokens_changed.is_set()
            self._tokens_changed.clear()
            try:
                if was_told or await self._node.tokens_have_changed():
                    await tokens.refresh()
            except DatabaseError as error:
                logger.debug("the tokens cannot be read: %s", error)
