"""Agents that are started before anyone asks for them.

Each is all of a session but its owner: an id, a folder of its own, and an agent
that has opened an ACP session there and has been asked nothing. A new session
that wants just such an agent becomes its owner, once and for good, id and folder
included. So the agent works in the session's own folder, and nothing of one
app's can come to another.

They count as live agents, and are the first to make room for one that is needed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .. import safe_files
from ..agents.base import (
    GRACE_SECS,
    Agent,
    AgentObserver,
    AgentSettings,
    AgentSpec,
    Backend,
    Context,
    Wanted,
)
from ..errors import Error
from ..storage import database
from ..tasks import Tasks
from .event_log import DatabaseWriter

logger = logging.getLogger(__name__)

HEARD_BYTES = 1 << 20
"""An agent that says more than this before it is asked anything is not kept."""


class Slots(Protocol):
    """The bound on running agents, as far as it is needed here."""

    def try_acquire(self, holder: Prewarmed) -> bool: ...

    def release(self, holder: Prewarmed) -> None: ...

    def idle(self, holder: Prewarmed) -> None: ...


class House(Protocol):
    """What is needed of the house."""

    backend: Backend
    writer: DatabaseWriter
    tasks: Tasks
    is_draining: bool

    @property
    def slots(self) -> Slots: ...

    def workspace(self, session_id: str) -> Path: ...

    def place_of(self, session_id: str) -> tuple[Path, *tuple[str, ...]]: ...

    async def choose_agent(self, name: str | None) -> str: ...

    async def leave_nothing(self, session_id: str, folder: Path) -> None: ...


class Prewarmed:
    """One agent without an owner; it listens to it until it has one.

    Attributes:
        last_used: never, so that it is the first that is put to sleep.
    """

    last_used = -math.inf

    def __init__(self, pool: Prewarmer, backend: Backend, spec: AgentSpec) -> None:
        self.id = spec.key
        self.spec = spec
        self.agent: Agent = backend.agent(spec, self)
        self.ready = False
        self._pool = pool
        self._taken = False
        self._heard: list[bytes] = []
        self._heard_bytes = 0

    # As a holder of a slot.

    @property
    def agent_state(self) -> str:
        return "prewarmed" if self.ready else "waking"

    @property
    def can_hibernate(self) -> bool:
        return self.ready and not self._taken

    async def hibernate(self, grace: float = GRACE_SECS) -> bool:
        """Make room: end the agent, of which nothing need remain."""
        if not self.can_hibernate:
            return False
        await self._pool.end(self, grace)
        return True

    def take(self) -> None:
        """Keep it for the session that is being created."""
        self._taken = True

    def hand_over(self, spec: AgentSpec, listener: AgentObserver) -> Agent:
        """Let *listener* hear what the agent has said, and will say."""
        self.agent.rebind(spec, listener)
        for message in self._heard:
            listener.notification_received(message)
        return self.agent

    # As a listener.

    wanted = Wanted()
    owes_preface = False

    def setting_restored(self, setting: str, value: str) -> None: ...

    def settings_changed(self, before: AgentSettings, after: AgentSettings) -> None: ...

    def tool_call_updated(self, update: Mapping[str, Any]) -> None: ...

    def prompt_sent(self, context: Context) -> None: ...

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None: ...

    def notification_received(self, message: bytes) -> None:
        self._heard.append(message)
        self._heard_bytes += len(message)
        if self._heard_bytes > HEARD_BYTES:
            self._heard.clear()
            self._pool.drop(self, "it talks unasked")

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        self.agent.answer_permission(raw_id, {"outcome": "cancelled"})

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None: ...

    def agent_ended(self) -> None:
        self._pool.drop(self, "it has ended")


class Prewarmer:
    """Keeps so many agents of the default kind ready."""

    def __init__(self, count: int, house: House) -> None:
        self._count = count
        self._house = house
        self.spares: list[Prewarmed] = []
        self._filling: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many there are, those that are starting included."""
        return len(self.spares)

    @property
    def missing(self) -> int:
        return max(0, self._count - len(self.spares))

    def start(self, left: list[str]) -> None:
        """Begin; *left* are the ids of those that an earlier server left."""
        if left:
            self._house.tasks.spawn(self._clear(left), "prewarm-clear")
        self.fill()

    def take(self, agent: str) -> Prewarmed | None:
        """One of that kind, for good; the caller gives it an owner, or calls :meth:`end`."""
        for spare in self.spares:
            if spare.spec.agent == agent and spare.can_hibernate:
                spare.take()
                self.spares.remove(spare)
                return spare
        return None

    def fill(self) -> None:
        """Start what is missing, one behind the other, as long as there are free slots."""
        idle = self._filling is None or self._filling.done()
        if self.missing and idle and not self._house.is_draining:
            self._filling = self._house.tasks.spawn(self._fill(), "prewarm")

    async def _fill(self) -> None:
        while self.missing and not self._house.is_draining:
            try:
                agent = await self._house.choose_agent(None)
                if not await self._add(agent):
                    return
            except Error as error:  # the next creation, or sweep, tries again
                logger.warning("no agent can be prewarmed: %s", error.message)
                return

    async def _add(self, agent: str) -> bool:
        """Start one more; False where there is no slot for it."""
        session_id = str(uuid.uuid4())
        folder = self._house.workspace(session_id)
        spec = AgentSpec(session_id, agent, str(folder), None, None, "deny-all")
        spare = Prewarmed(self, self._house.backend, spec)
        if not self._house.slots.try_acquire(spare):
            return False
        self.spares.append(spare)
        try:
            await self._house.writer.commit([database.insert_prewarmed(session_id)])
            await asyncio.to_thread(safe_files.make_folder, *self._house.place_of(session_id))
            await spare.agent.start()
        except Exception:
            self.drop(spare, "it does not start")
            raise
        spare.ready = True
        self._house.slots.idle(spare)
        return True

    def drop(self, spare: Prewarmed, why: str) -> None:
        """Do without *spare*, if it has no owner yet."""
        if spare in self.spares and not self._house.is_draining:
            logger.info("prewarmed agent %s: %s", spare.id, why)
            self.spares.remove(spare)
            self._house.tasks.spawn(self.end(spare), f"prewarm-end-{spare.id}")

    async def end(self, spare: Prewarmed, grace: float = GRACE_SECS) -> None:
        """End it and all that it left."""
        spare.ready = False
        if spare in self.spares:
            self.spares.remove(spare)
        await spare.agent.hibernate(grace)
        self._house.slots.release(spare)
        await self._clear([spare.id])

    async def _clear(self, ids: list[str]) -> None:
        for session_id in ids:
            await self._house.leave_nothing(session_id, self._house.workspace(session_id))
            await self._house.writer.commit([database.delete_prewarmed(session_id)])
