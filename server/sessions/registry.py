"""The sessions of all apps: found by id, created, listed, closed and deleted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from ..accounts.accounts import Accounts
from ..agents.base import Backend
from ..agents.selection import AgentSelection
from ..cluster.membership import SINGLE_SERVER, Cluster, OtherNodeError
from ..config import Settings
from ..data_dir import DataDir
from ..errors import Error, ErrorCode, draining, not_found
from ..metrics import Metrics
from ..reload.state import Inherited
from ..storage import statements
from ..storage.queries import Queries
from ..storage.schema import SessionRow
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion
from .assembly import make_creator
from .budget_ends import refuse_unsent
from .context import SessionContext
from .creation import SessionRequest
from .figures import SessionFigures
from .forking import ForkPoint, SessionForker
from .imports import ImportedLog
from .listing import SessionListing
from .loaded_sessions import LoadedSessions
from .ownership import SessionOwnership
from .prewarm import Prewarmer
from .reloadable import ReloadableSessions
from .remote_session import RemoteSession, RemoteSessions
from .removal import SessionRemover
from .session import Session
from .sweeper import Sweeper
from .tenure import SessionUses, TenureState
from .workspaces import Workspaces

logger = logging.getLogger(__name__)

FINISH_CLOSING_SECS = 5


class SessionRegistry:
    """The sessions of all apps, in memory and in the database.

    Attributes:
        tasks: cancelled when the server stops.
        closing: the tasks that close sessions. The server waits for them before it stops.
        is_draining: the server is stopping; no new work is accepted.
        memory: the sessions that are loaded.
        remote: the sessions of the cluster's other nodes; None without a cluster.
        ownership: decides which sessions this node owns; None without a cluster.
        reloadable: the sessions during a reload.
        loading: the look-ups in progress that load a session, by its id.
        uses: keeps the sessions on this node of a cluster that requests use.
    """

    def __init__(
        self,
        settings: Settings,
        queries: Queries,
        writer: DatabaseWriter,
        metrics: Metrics,
        backend: Backend,
        clock: Callable[[], float] = time.time,
        cluster: Cluster = SINGLE_SERVER,
        accounts: Accounts | None = None,
    ) -> None:
        self.cluster = cluster
        self.remote: RemoteSessions | None = None
        self.ownership: SessionOwnership | None = None
        self.accounts = accounts or Accounts(clock=clock)
        parts = settings, backend, queries, writer, metrics, clock, self.accounts
        context = self._context = SessionContext.create(*parts)
        self.settings, self.queries, self.writer = settings, queries, writer
        self.metrics, self.backend, self.clock = metrics, backend, clock
        self.tasks, self.closing, self.snapshots = context.tasks, context.closing, context.snapshots
        self.slots, self.disk, self.quotas = context.slots, context.disk, context.quotas
        self.app_disk = context.app_disk
        self.changes, self.alerts, self.logs = context.changes, context.alerts, context.logs
        self.agents = AgentSelection(backend, settings.default_agent)
        self.workspaces = Workspaces(DataDir.of(settings), settings.workspace_roots, backend)
        # The cli backend keeps no process between turns.
        # In a cluster, another node would end the prewarmed agents of this one.
        keeps_agents = settings.agent_backend == "host" and cluster.number is None
        self.prewarmer = Prewarmer(
            settings.prewarmed_agents if keeps_agents else 0,
            backend=backend,
            writer=writer,
            slots=self.slots,
            workspaces=self.workspaces,
            tasks=self.tasks,
            choose_agent=self.agents.choose,
            is_draining=lambda: self.is_draining,
        )
        self._creator = make_creator(self)
        self.sweeper = Sweeper(self)
        self.remover = SessionRemover(self)
        self.remover.steps.append(lambda row, _: context.snapshots.delete(row.id))
        self.remover.steps.append(self._creator.remove_worktree_of)
        self.listing, self.figures = SessionListing(self), SessionFigures(self)
        self.forker = SessionForker(self)
        self.memory = LoadedSessions()
        self.accounts.on_exceeded.append(partial(refuse_unsent, self.memory, self.accounts))
        self.reloadable = ReloadableSessions(self, self._context)
        self.loading: dict[str, asyncio.Task[Session | None]] = {}
        self.uses = SessionUses()

    async def start(self, inherited: Inherited | None = None) -> None:
        """Load the counters, and end the turns that an earlier server left unfinished.

        Args:
            inherited: the state of an earlier version of the server, which is continued.
        """
        move = statements.relocate_workspaces(str(self.workspaces.path("")))
        if self.cluster.number is None:
            await self.writer.commit([move])
        for row in await self.queries.removed_sessions():
            self.memory.hide(row.id)
        self.quotas.set_open_sessions(await self.queries.open_counts())
        self._creator.last_number = await self.queries.last_session_number()

        async def folder_of(session_id: str) -> str | None:
            row = await self.queries.session(session_id)
            return row.cwd if row is not None else None

        await self._context.snapshots.start(folder_of)
        unfinished = await self.queries.sessions_to_recover() if self.cluster.number is None else ()
        # A node of a cluster finds those that it owns at each beat.
        await self.reloadable.recover(inherited, unfinished)
        await self.writer.flush()

    async def stop(self) -> None:
        """End all turns; running ones have ``drain_secs`` to finish.

        The backend ends the agents.
        """
        self.is_draining = True
        timeout = self.settings.drain_secs
        if self.ownership is not None:
            await self.ownership.hand_over(timeout)
        await asyncio.gather(*(session.succession.drain(timeout) for session in self.memory.all()))
        await self.closing.finish(FINISH_CLOSING_SECS)
        await self.tasks.finish(0)
        await self._context.snapshots.stop()

    @property
    def is_draining(self) -> bool:
        return self._context.is_draining

    @is_draining.setter
    def is_draining(self, is_draining: bool) -> None:
        self._context.is_draining = is_draining

    @property
    def cached(self) -> Mapping[str, Session]:
        """The sessions that stay in memory without being used, by their ids."""
        return self.memory.cached

    # Finding

    async def get(self, session_id: str, app_name: str, *, is_used: bool = True) -> Session:
        """Return a session of the app.

        Args:
            is_used: whether this node of a cluster keeps it until the end of the request.

        Raises:
            Error: ``not_found``, also for another app's session.
            OtherNodeError: another node of the cluster runs it.
        """
        session = self.memory.get(session_id)
        if session is None or session.row.app_name != app_name:
            # The query makes another app's session take the same time as an unknown id.
            if not await self.queries.has_session(app_name, session_id):
                raise not_found()
            session = await self.find(session_id)
        if session is None:  # deleted since the query
            raise not_found()
        self.memory.cache(session)
        if is_used and self.ownership is not None:
            self.uses.note_lookup(session_id)
        return session

    async def get_viewed(self, session_id: str, app_name: str) -> Session | RemoteSession:
        """Return a session of the app for a client that follows it, also if another node runs it.

        Raises:
            Error: ``not_found``; ``draining`` if its node is out of reach.
        """
        try:
            return await self.get(session_id, app_name, is_used=False)
        except OtherNodeError as error:
            session = await self.remote.get(error) if self.remote is not None else None
            if session is None:
                raise not_found() from None
            return session

    async def find(self, session_id: str) -> Session | None:
        """Return a session of any app, or None.

        Raises:
            OtherNodeError: another node of the cluster runs it.
        """
        while not self.memory.is_hidden(session_id):
            session = self.memory.get(session_id)
            if session is not None:
                self.memory.cache(session)
                return session
            await self.uses.wait_released(session_id)
            task = self.loading.get(session_id)
            if task is None:
                task = asyncio.create_task(self._load_by_id(session_id))
                self.loading[session_id] = task
                task.add_done_callback(lambda _: self.loading.pop(session_id, None))
            session = await asyncio.shield(task)
            if session is None or session.tenure.current is TenureState.OWNED:
                return session
        return None

    async def _load_by_id(self, session_id: str) -> Session | None:
        was_free = await self.cluster.claim(session_id)
        row = await self.queries.session(session_id)
        if row is None:
            return None
        session = await self._from_row(row)
        if self.cluster.number is not None:
            if was_free:
                await session.succession.continue_waiting()
            else:
                await session.succession.recover()
            await session.log.reach(session.log.last)  # then queries know which turns have ended
        self.add(session)
        self.cluster.announce(row.n)  # those that follow it need not notice by themselves
        return session

    async def load(self, row: SessionRow) -> Session:
        session = await self._from_row(row)
        self.add(session)
        return session

    async def _from_row(self, row: SessionRow) -> Session:
        head = await self.queries.log_head(row.n)
        last_turn_index = await self.queries.last_turn_index(row.n)
        return Session(self._context, row, head=head, last_turn_index=last_turn_index)

    def add(self, session: Session) -> None:
        """Let look-ups find a session."""
        self.memory.add(session)
        self.changes.add(session)

    # Listing

    async def listed_session(self, row: SessionRow) -> Session | None:
        """A session to be listed. A closed one, or one of no node, is not kept in memory."""
        if row.id in self.memory or (row.closed_at is None and self.cluster.number is None):
            return await self.find(row.id)
        return None if self.memory.is_hidden(row.id) else await self._from_row(row)

    # Creating

    async def create(
        self, app_name: str, request: SessionRequest, fork: ForkPoint | ImportedLog | None = None
    ) -> Session:
        """Open a session; its agent starts in the background.

        Args:
            fork: the log with which it begins. Then the caller starts the agent.

        Raises:
            Error: ``bad_request``, ``payload_too_large``, ``agent_unavailable``, ``pool_full``,
                ``draining`` or ``internal``.
        """
        if self.is_draining:
            raise draining()
        draft = await self._creator.check(request)
        await self.quotas.reserve_session(app_name, draft.reservation)
        self._creator.reserve_agent(app_name, draft, is_fork=fork is not None)
        self.memory.hide(draft.id)
        try:
            row = await self._creator.store(app_name, draft, fork)
            about = {"session": row.id, "app": app_name}
            logger.info("session opened: %s", row.agent, extra=about)
            session = Session(
                self._context,
                row,
                head=fork.position if fork is not None else 0,
                last_turn_index=fork.last_turn_index if fork is not None else 0,
            )
            self.add(session)
        except BaseException:
            self.quotas.release_session(app_name)
            await self.quotas.free_reservation(draft.reservation)
            raise
        finally:
            self.memory.unhide(draft.id)
        if self.ownership is not None:
            self.uses.note_lookup(session.id)
        if fork is None:
            session.start_agent(draft.prewarmed)
        if draft.folder is not None or request.options.git is not None:
            session.snapshots.warm_up()
        self.prewarmer.fill()
        return session

    async def reopen(self, session: Session) -> None:
        """Open a closed session again.

        Raises:
            Error: ``conflict`` if it is open, ``not_found`` if it is being deleted; otherwise the
                errors of :meth:`create`.
        """
        if self.is_draining:
            raise draining()
        if not session.is_closed or session.is_reopening:
            raise Error(ErrorCode.CONFLICT, "the session is open")
        if session.row.removed_at is not None or self.memory.is_hidden(session.id):
            raise not_found()
        session.is_reopening = True
        try:
            await self.disk.check()
            await self.agents.choose(session.row.agent)
            await self.quotas.reserve_session(session.row.app_name, session.id)
            try:
                await to_completion(session.reopen())
            finally:
                await self.quotas.free_reservation(session.id)
                if session.is_closed:
                    self.quotas.release_session(session.row.app_name)
        finally:
            session.is_reopening = False
        self.memory.cache(session)

    # Ending

    async def close(self, session: Session, reason: str) -> bool:
        """Close *session*; False if it was closed already."""
        is_first = not session.is_closed
        try:
            await session.close(reason)
        finally:  # the session is closed even if this caller was cancelled
            if is_first and session.is_closed:
                self.quotas.release_session(session.row.app_name)
                if session.is_stored and not session.subscribers:
                    self.memory.uncache(session.id)
        return is_first

    async def close_by_id(self, session_id: str, reason: str) -> bool:
        """Close a session of any app; False if it was closed already.

        Raises:
            Error: ``not_found``.
        """
        session = await self.find(session_id)
        if session is None:
            raise not_found()
        return await self.close(session, reason)

    def unload_unused(self) -> None:
        """Drop from memory the stored sessions that have no subscriber, turn or agent.

        A node of a cluster releases them instead.
        """
        if self.ownership is None:
            self.memory.uncache_unused()
