"""The agent of one session and its slot: starts, hibernation and the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from ..agents.agent_settings import NO_SETTINGS, AgentSettings
from ..agents.agent_state import AgentState, Presence
from ..agents.base import GRACE_SECS, URGENT_GRACE_SECS, Agent, AgentObserver
from ..agents.prompt_handle import PromptHandle
from ..codec import dumps, loads
from ..errors import Error, session_closed
from ..storage import statements
from .agent_requests import WaitingRequests
from .agent_spec import agent_spec
from .core import SessionCore
from .prewarm import PrewarmedAgent
from .turns import CurrentTurn

logger = logging.getLogger(__name__)


class CarriedAgent(msgspec.Struct, kw_only=True):
    """The agent of a session for the next version of the server.

    Attributes:
        starts: it was being started, which the next version does again.
    """

    last_used: float
    is_prewarmed: bool
    starts: bool


class SessionAgent:
    """The agent of one session, which holds an agent slot while its process runs.

    Args:
        is_working: whether a turn runs or waits, or a setting is being changed.

    Attributes:
        last_used: unix seconds of the last time at which a turn ended or a setting was changed.
    """

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        requests: WaitingRequests,
        is_working: Callable[[], bool],
    ) -> None:
        self.id = core.id
        self.last_used = core.context.clock()
        self._core = core
        self._current = current
        self._requests = requests
        self._is_working = is_working
        self._agent: Agent | None = None
        self._was_prewarmed = False
        self._is_hibernating = False
        self._starting: asyncio.Task[None] | None = None
        self._start_error: Error | None = None

    @property
    def app_name(self) -> str:
        """The app that the slot is counted for."""
        return self._core.row.app_name

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
        """Whether the agent has opened its conversation, and with it reported its settings."""
        agent = self._agent
        return (
            agent is not None
            and agent.state is not AgentState.STARTING
            and agent.settings != NO_SETTINGS
        )

    @property
    def presence(self) -> Presence:
        """Whether the agent runs, as clients see it."""
        if self._agent is None or not self._agent.state.is_live:
            return "hibernated"
        has_had_turn = self._current.turn is not None or self._current.last_sent_index
        if self._was_prewarmed and not has_had_turn:
            return "prewarmed"
        return "waking" if self._agent.state is AgentState.STARTING else "live"

    @property
    def is_in_use(self) -> bool:
        """Whether a turn runs or waits, a setting is being changed, or a request is pending."""
        return bool(self._is_working() or self._requests)

    @property
    def can_hibernate(self) -> bool:
        return not (self.is_in_use or self._is_hibernating) and self._core.is_open

    @property
    def backend_agent(self) -> Agent:
        """The backend's agent. Before its process is used, the session must have a slot.

        Raises:
            Error: ``session_closed``; the session was closed before it was loaded.
        """
        if self._agent is None:
            raise session_closed()
        return self._agent

    # Starting

    def create(self, observer: AgentObserver) -> None:
        """Create the agent of a session that is open or opened again. Its process starts later."""
        self._start_error = None
        stored = self._core.row.agent_state
        reported = AgentSettings.from_dict(loads(stored)) if stored else NO_SETTINGS
        self._agent = self._core.context.backend.agent(agent_spec(self._core), observer, reported)

    def adopt(self, prewarmed: PrewarmedAgent, observer: AgentObserver) -> None:
        """Use a prewarmed agent and its slot."""
        self._agent = prewarmed.transfer_to(agent_spec(self._core), observer)
        self._was_prewarmed = self._agent.state.is_live
        self._core.context.slots.transfer(prewarmed, self)
        self.store_reported()
        self.release_unused_slot()

    def start(self) -> None:
        """Start the process in the background if a slot is free, and apply the wanted settings."""
        if self._core.context.slots.try_acquire(self):
            self.start_in_slot()

    def start_in_slot(self) -> None:
        """Start the process, which has a slot; a running process only gets the wanted settings."""
        self._starting = self._core.context.tasks.spawn(self._start(), f"wake-{self.id}")
        self._core.notify_changed()

    async def _start(self) -> None:
        try:
            await self.backend_agent.start()
        except Error as error:
            if self._starting is not None:  # otherwise hibernate() has interrupted the start
                # The first turn reports it to the client.
                logger.info(
                    "the agent does not start: %s", error.code, extra=self._core.log_extra()
                )
                self._start_error = error
        finally:
            self._starting = None
            self.store_reported()
            self.release_unused_slot()

    async def wait_started(self) -> None:
        """Wait for the start that began when the session was created, if there was one.

        Raises:
            Error: the agent does not start.
        """
        if self._starting is not None:
            await asyncio.wait({self._starting})
        if self._start_error is not None:
            raise self._start_error

    # A reload of the server

    def suspend(self) -> bool:
        """Give up a start that is in progress. Return whether there was one."""
        was_starting, self._starting = self._starting is not None, None
        return was_starting

    def pack(self, *, starts: bool) -> CarriedAgent:
        starts = starts or self._starting is not None
        is_prewarmed = self._was_prewarmed and self.is_live
        return CarriedAgent(last_used=self.last_used, is_prewarmed=is_prewarmed, starts=starts)

    async def restore(self, carried: CarriedAgent) -> PromptHandle | None:
        """Restore the agent with the process that an earlier version of the server has left.

        Returns:
            The prompt that the agent works on, if any.
        """
        self.last_used = carried.last_used
        backend = self._core.context.backend
        if not backend.has_process(self.id):
            if carried.starts:
                self.start()
            return None
        self._core.context.slots.restore(self)
        self._was_prewarmed = carried.is_prewarmed
        return await backend.restore(self.id)

    # In use

    async def reload(self) -> None:
        """End the process, whose slot the session keeps, so that the next prompt starts another."""
        self._starting = None  # an interrupted start is not a failure of the agent
        await self.backend_agent.hibernate(URGENT_GRACE_SECS)

    def store_reported(self) -> None:
        """Store the settings that the agent reported, to show them while it does not run."""
        self._core.notify_changed()
        row, reported = self._core.row, self.reported.to_dict()
        text = dumps(reported).decode()
        if reported != NO_SETTINGS.to_dict() and text != row.agent_state:
            row.agent_state = text
            self._core.context.writer.add([statements.set_reported_settings(row.n, text)])

    # Ending

    async def hibernate(self, grace: float = GRACE_SECS) -> bool:
        """End the process until the next prompt. Return False if the agent is in use."""
        if not self.can_hibernate or self._agent is None:
            return False
        self._is_hibernating = True
        self._starting = None  # an interrupted start is not a failure of the agent
        try:
            await self._agent.hibernate(grace)
        finally:
            self._is_hibernating = False
        self.release_unused_slot()
        return True

    async def end(self, grace: float = GRACE_SECS) -> None:
        """End the process and release the slot. A purged session's agent forgets the session."""
        if self._agent is not None:
            if self._core.row.removed_at is not None:
                self._agent.delete_conversation()
            await self._agent.hibernate(grace)
        self._core.context.slots.release(self)

    def kill(self) -> None:
        """Kill the process in the background."""
        self._core.context.tasks.spawn(self.backend_agent.kill(), f"kill-{self.id}")

    def note_ended(self) -> None:
        """Note that the process has ended, and release its slot unless another is starting."""
        self._was_prewarmed = False
        self.store_reported()
        self.release_unused_slot()

    def release_unused_slot(self) -> None:
        """Release the slot if no process runs and none is about to start."""
        if not (self.is_live or self._starting or self._is_working()):
            self._core.context.slots.release(self)
