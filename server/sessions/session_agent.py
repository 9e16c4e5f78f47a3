"""The agent of one session: its process, its slot, and when it starts and hibernates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..agents.agent_settings import NO_SETTINGS, AgentSettings
from ..agents.base import GRACE_SECS, Agent, AgentObserver, AgentSpec, AgentState, Presence
from ..agents.traits import AgentTraits
from ..codec import dumps, loads
from ..errors import Error, session_closed
from ..storage import statements
from .core import SessionCore
from .permissions import Permissions
from .prewarm import PrewarmedAgent
from .turns import CurrentTurn

logger = logging.getLogger(__name__)


class SessionAgent:
    """The agent of one session; the holder of its agent slot.

    Args:
        is_working: whether a turn runs or waits, or a setting is being changed.

    Attributes:
        last_used: unix seconds of the newest end of a turn or change of a setting.
    """

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        permissions: Permissions,
        is_working: Callable[[], bool],
    ) -> None:
        self.last_used = core.context.clock()
        self._core = core
        self._current = current
        self._permissions = permissions
        self._is_working = is_working
        self._agent: Agent | None = None
        self._was_prewarmed = False
        self._is_hibernating = False
        self._starting: asyncio.Task[None] | None = None
        self._start_error: Error | None = None

    @property
    def id(self) -> str:
        return self._core.id

    @property
    def app_name(self) -> str:
        """The app whose share of the slots the agent counts towards."""
        return self._core.row.app_name

    @property
    def spec(self) -> AgentSpec:
        """The agent that the session was created for."""
        row = self._core.row
        preface = row.system if self.system_delivery == "prompt" else None
        return AgentSpec(
            row.id, row.agent, row.cwd, row.model, row.system, row.permission, preface, row.app_name
        )

    @property
    def traits(self) -> AgentTraits:
        return self._core.context.backend.traits(self._core.row.agent)

    @property
    def system_delivery(self) -> str | None:
        """The way of the system prompt: ``agent``, or ``prompt``: before the first prompt."""
        if self._core.row.system is None:
            return None
        return "agent" if self.traits.takes_system else "prompt"

    @property
    def is_live(self) -> bool:
        """Whether a process runs or starts."""
        return self._agent is not None and self._agent.state.is_live

    @property
    def reported(self) -> AgentSettings:
        """The settings that the agent reported last."""
        return self._agent.settings if self._agent is not None else NO_SETTINGS

    @property
    def has_reported_all(self) -> bool:
        """Whether the agent has opened its conversation, and so reported what it offers."""
        agent = self._agent
        return (
            agent is not None
            and agent.state is not AgentState.STARTING
            and agent.settings != NO_SETTINGS
        )

    @property
    def agent_state(self) -> Presence:
        """Whether the agent runs, as clients see it."""
        if self._agent is None or not self._agent.state.is_live:
            return "hibernated"
        has_had_turn = self._current.turn is not None or self._current.last_sent_index
        if self._was_prewarmed and not has_had_turn:
            return "prewarmed"
        return "waking" if self._agent.state is AgentState.STARTING else "live"

    @property
    def can_hibernate(self) -> bool:
        in_use = self._is_working() or self._permissions
        return not (in_use or self._is_hibernating) and self._core.is_open

    @property
    def process(self) -> Agent:
        """The agent, for which the session must have a slot.

        Raises:
            Error: ``session_closed``; the session was closed when it was loaded.
        """
        if self._agent is None:
            raise session_closed()
        return self._agent

    # Starting

    def create(self, observer: AgentObserver) -> None:
        """Create the agent of an open session. Its process starts later."""
        stored = self._core.row.agent_state
        reported = AgentSettings.from_dict(loads(stored)) if stored else NO_SETTINGS
        self._agent = self._core.context.backend.agent(self.spec, observer, reported)

    def take_over(self, prewarmed: PrewarmedAgent, observer: AgentObserver) -> None:
        """Take over a prewarmed agent and its slot."""
        self._agent = prewarmed.transfer_to(self.spec, observer)
        self._was_prewarmed = self._agent.state.is_live
        self._core.context.slots.transfer(prewarmed, self)
        self.store_reported()
        self.release_if_gone()

    def start(self) -> None:
        """Start the agent's process in the background if a slot is free, and set what is wanted."""
        if self._core.context.slots.try_acquire(self):
            self.start_in_slot()

    def start_in_slot(self) -> None:
        """Start the process, or change the settings of the one that runs, in the slot it has."""
        self._starting = self._core.context.tasks.spawn(self._start(), f"wake-{self.id}")

    async def _start(self) -> None:
        try:
            await self.process.start()
        except Error as error:
            if self._starting is not None:  # else hibernate() has interrupted the start
                # The first turn reports it to the client.
                logger.info(
                    "the agent does not start: %s", error.code, extra=self._core.log_extra()
                )
                self._start_error = error
        finally:
            self._starting = None
            self.store_reported()
            self.release_if_gone()

    async def wait_started(self) -> None:
        """Wait for the start that creating the session has begun, if it has.

        Raises:
            Error: the agent does not start.
        """
        if self._starting is not None:
            await asyncio.wait({self._starting})
        if self._start_error is not None:
            raise self._start_error

    # In use

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        if self._agent is not None:
            self._agent.answer_permission(raw_id, outcome)

    def store_reported(self) -> None:
        """Store the settings that the agent reported, for when it does not run."""
        row, reported = self._core.row, self.reported.to_dict()
        text = dumps(reported).decode()
        if reported != NO_SETTINGS.to_dict() and text != row.agent_state:
            row.agent_state = text
            self._core.context.writer.add([statements.set_agent_state(row.n, text)])

    # Ending

    async def hibernate(self, grace: float = GRACE_SECS) -> bool:
        """End the process until the next prompt; False if it is in use."""
        if not self.can_hibernate or self._agent is None:
            return False
        self._is_hibernating = True
        self._starting = None  # a start that this interrupts is no failure of the agent
        try:
            await self._agent.hibernate(grace)
        finally:
            self._is_hibernating = False
        self.release_if_gone()
        return True

    async def end(self, grace: float = GRACE_SECS) -> None:
        """End the process and give the slot back."""
        if self._agent is not None:
            await self._agent.hibernate(grace)
        self._core.context.slots.release(self)

    def kill(self) -> None:
        """Kill the process in the background."""
        self._core.context.tasks.spawn(self.process.kill(), f"kill-{self.id}")

    def note_ended(self) -> None:
        """Give the slot of a process that has ended back, unless it is about to start again."""
        self._was_prewarmed = False
        self.store_reported()
        self.release_if_gone()

    def release_if_gone(self) -> None:
        """Give the slot back if no process runs, and none is about to start."""
        if not (self.is_live or self._starting or self._is_working()):
            self._core.context.slots.release(self)
