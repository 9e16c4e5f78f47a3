"""Prewarmed agents: started before a session needs them.

A prewarmed agent has everything of a session except an app: an id, a folder, and an agent that has
opened an ACP session in that folder and has had no prompt. A new session that wants such an agent
takes over its id, folder and agent for good. So the agent works in the session's own folder, and
nothing of one app can reach another.

Prewarmed agents count as running agents, and are the first to be evicted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from ..agents.base import GRACE_SECS, Agent, AgentObserver, AgentSpec, Backend
from ..agents.subagents import Subagent
from ..errors import Error
from ..storage import statements
from ..storage.writer import DatabaseWriter
from ..tasks import Tasks
from .agent_slots import NO_APP, AgentSlots
from .announcement import Announcement
from .workspaces import Workspaces

logger = logging.getLogger(__name__)

MAX_BUFFERED_BYTES = 1 << 20
"""An agent that sends more messages than this before its first prompt is ended."""


class CarriedPrewarmed(msgspec.Struct, kw_only=True):
    """A prewarmed agent for the next version of the server."""

    id: str
    agent: str
    cwd: str
    elicitation: tuple[str, ...]
    messages: list[bytes]
    client_capabilities: tuple[str, ...] = ()


def _spec(key: str, agent: str, cwd: str, announced: Announcement) -> AgentSpec:
    """The specification of a prewarmed agent."""
    return AgentSpec(
        key=key,
        agent=agent,
        cwd=cwd,
        permission="deny-all",
        elicitation=announced.elicitation,
        client_capabilities=announced.client_capabilities,
    )


class PrewarmedAgent(AgentObserver):
    """An agent without a session. Its messages are buffered until a session takes it over.

    Attributes:
        app_name: :data:`NO_APP`.
        last_used: minus infinity, so that it is evicted before the agents of sessions.
        announced: what the agent has learned at its start.
        is_ready: the agent has opened its ACP session.
        messages: those that a session will get.
    """

    app_name = NO_APP
    last_used = -math.inf
    is_in_use = False

    def __init__(self, pool: Prewarmer, backend: Backend, spec: AgentSpec) -> None:
        self.id = spec.key
        self.spec = spec
        self.announced = Announcement(spec.elicitation, spec.client_capabilities)
        self.agent: Agent = backend.agent(spec, self)
        self.is_ready = False
        self._pool = pool
        self._is_reserved = False
        self.messages: list[bytes] = []
        self._buffered_bytes = 0

    # SlotHolder

    @property
    def presence(self) -> str:
        return "prewarmed" if self.is_ready else "waking"

    @property
    def can_hibernate(self) -> bool:
        return self.is_ready and not self._is_reserved

    async def hibernate(self, grace: float = GRACE_SECS) -> bool:
        """End the agent and delete its data; False if it is reserved for a session."""
        if not self.can_hibernate:
            return False
        await self._pool.end(self, grace)
        return True

    def reserve(self) -> None:
        """Protect the agent from eviction while its session is created."""
        self._is_reserved = True

    def transfer_to(self, spec: AgentSpec, observer: AgentObserver) -> Agent:
        """Make *observer* the agent's observer and replay the buffered messages to it."""
        self.agent.rebind(spec, observer)
        for message in self.messages:
            observer.notification_received(message)
        return self.agent

    # AgentObserver

    def notification_received(self, message: bytes, subagent: Subagent | None = None) -> None:
        self.messages.append(message)
        self._buffered_bytes += len(message)
        if self._buffered_bytes > MAX_BUFFERED_BYTES:
            self.messages.clear()
            self._pool.drop(self, "too many messages before the first prompt")

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        self.agent.answer_permission(raw_id, {"outcome": "cancelled"})

    def elicitation_requested(self, raw_id: Any, params: Any) -> None:
        self.agent.answer_elicitation(raw_id, {"action": "cancel"})

    def agent_ended(self) -> None:
        self._pool.drop(self, "the agent has ended")


class Prewarmer:
    """A pool that keeps a number of prewarmed agents of the default kind.

    Args:
        count: the number of agents.
        choose_agent: returns the name of the default agent if it is given None.
        is_draining: whether the server is stopping; no agent is started then.

    Attributes:
        agents: the prewarmed agents, including those that are starting.
        making: ids of forks and worktrees whose files are being made, and which have no row yet.
    """

    def __init__(
        self,
        count: int,
        *,
        backend: Backend,
        writer: DatabaseWriter,
        slots: AgentSlots,
        workspaces: Workspaces,
        tasks: Tasks,
        choose_agent: Callable[[str | None], Awaitable[str]],
        is_draining: Callable[[], bool],
    ) -> None:
        self.agents: list[PrewarmedAgent] = []
        self.making: set[str] = set()
        self._count = count
        # The announcements of the newest sessions: the pool has agents in the same proportion.
        self._recent_announcements = deque([Announcement()] * count, maxlen=count)
        self._backend = backend
        self._writer = writer
        self._slots = slots
        self._workspaces = workspaces
        self._tasks = tasks
        self._choose_agent = choose_agent
        self._filling: asyncio.Task[None] | None = None
        self._is_draining = is_draining

    def __len__(self) -> int:
        """The number of agents, including those that are starting."""
        return len(self.agents)

    @property
    def missing(self) -> int:
        """The number of agents that have yet to be started."""
        return max(0, self._count - len(self.agents))

    def start(self, abandoned: list[str], recent: Iterable[Announcement] = ()) -> None:
        """Start the agents, and delete the data of those that an earlier server left.

        Args:
            abandoned: ids of prewarmed agents, and of forks, that never became sessions.
            recent: the announcements of the newest sessions of the default agent, the oldest first.
        """
        self._recent_announcements.extend(recent)
        known = [agent.id for agent in self.agents]  # of an earlier version of the server
        if abandoned := [session_id for session_id in abandoned if session_id not in known]:
            self._tasks.spawn(self.delete_data(abandoned), "prewarm-clear")
        self.fill()

    def reserve(self, agent: str, announced: Announcement) -> PrewarmedAgent | None:
        """Remove an agent from the pool for a session; None if no matching agent is ready.

        The caller gives it to a session, or calls :meth:`end`.

        Args:
            agent: the name of the agent.
            announced: what the agent must have learned at its start.
        """
        fitting = [prewarmed for prewarmed in self.agents if prewarmed.spec.agent == agent]
        if not fitting:
            return None
        self._recent_announcements.append(announced)
        for prewarmed in fitting:
            if prewarmed.announced == announced and prewarmed.can_hibernate:
                prewarmed.reserve()
                self.agents.remove(prewarmed)
                return prewarmed
        return None

    # A reload of the server

    def pack(self) -> list[CarriedPrewarmed]:
        """Return the agents that are ready, for the next version of the server."""
        return [
            CarriedPrewarmed(
                id=prewarmed.id,
                agent=prewarmed.spec.agent,
                cwd=prewarmed.spec.cwd,
                elicitation=prewarmed.spec.elicitation,
                messages=prewarmed.messages,
                client_capabilities=prewarmed.spec.client_capabilities,
            )
            for prewarmed in self.agents
            if prewarmed.is_ready
        ]

    async def restore(self, carried: CarriedPrewarmed) -> None:
        """Restore a prewarmed agent of an earlier version of the server."""
        announced = Announcement(carried.elicitation, carried.client_capabilities)
        spec = _spec(carried.id, carried.agent, carried.cwd, announced)
        if self._count and self._backend.has_process(carried.id):
            prewarmed = PrewarmedAgent(self, self._backend, spec)
            self._recent_announcements.append(announced)
            self._slots.restore(prewarmed)
            await self._backend.restore(carried.id)
            for message in carried.messages:
                prewarmed.notification_received(message)
            prewarmed.is_ready = True
            self.agents.append(prewarmed)

    def fill(self) -> None:
        """Start the missing agents one after another, while slots are free.

        An agent that the newest sessions did not want is replaced.
        """
        wanted = Counter(self._recent_announcements)
        for prewarmed in tuple(self.agents):
            if wanted[prewarmed.announced] > 0:
                wanted[prewarmed.announced] -= 1
            elif prewarmed.can_hibernate:
                logger.info("prewarmed agent %s dropped: new sessions need others", prewarmed.id)
                self.agents.remove(prewarmed)
                self._tasks.spawn(self._replace(prewarmed), f"prewarm-end-{prewarmed.id}")
        is_filling = self._filling is not None and not self._filling.done()
        if self.missing and not is_filling and not self._is_draining():
            self._filling = self._tasks.spawn(self._fill(), "prewarm")

    async def _replace(self, prewarmed: PrewarmedAgent) -> None:
        await self.end(prewarmed)
        self.fill()  # its slot is free

    async def _fill(self) -> None:
        while self.missing and not self._is_draining():
            try:
                if not await self._start_one(await self._choose_agent(None)):
                    return
            except Error as error:  # the next session or sweep calls fill() again
                logger.warning("no agent can be prewarmed: %s", error.message)
                return

    async def _start_one(self, agent: str) -> bool:
        """Start one more agent; False if no slot is free."""
        session_id = str(uuid.uuid4())
        folder = self._workspaces.path(session_id)
        wanted = Counter(self._recent_announcements)
        wanted.subtract(prewarmed.announced for prewarmed in self.agents)
        spec = _spec(
            session_id, agent, str(folder), max(wanted, key=lambda announced: wanted[announced])
        )
        prewarmed = PrewarmedAgent(self, self._backend, spec)
        if not self._slots.try_acquire(prewarmed):
            return False
        self.agents.append(prewarmed)
        try:
            await self._writer.commit([statements.insert_prewarmed(session_id)])
            await self._workspaces.create(session_id)
            await prewarmed.agent.start()
        except Exception:
            self.drop(prewarmed, "the agent does not start")
            raise
        prewarmed.is_ready = True
        self._slots.reconsider()
        return True

    def drop(self, prewarmed: PrewarmedAgent, reason: str) -> None:
        """End an agent that cannot be used, unless a session has taken it over."""
        if prewarmed in self.agents and not self._is_draining():
            logger.info("prewarmed agent %s dropped: %s", prewarmed.id, reason)
            self.agents.remove(prewarmed)
            self._tasks.spawn(self.end(prewarmed), f"prewarm-end-{prewarmed.id}")

    async def end(self, prewarmed: PrewarmedAgent, grace: float = GRACE_SECS) -> None:
        """End an agent and delete its data."""
        prewarmed.is_ready = False
        if prewarmed in self.agents:
            self.agents.remove(prewarmed)
        await prewarmed.agent.hibernate(grace)
        self._slots.release(prewarmed)
        await self.delete_data([prewarmed.id])

    async def delete_data(self, ids: list[str]) -> None:
        """Delete the data of prewarmed agents, or of forks, that have not become sessions."""
        for session_id in ids:
            await self._workspaces.delete_agent_data(session_id)
            await self._workspaces.delete_snapshots(session_id)
            await self._writer.commit([statements.delete_prewarmed(session_id)])
