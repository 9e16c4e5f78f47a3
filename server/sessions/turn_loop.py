"""Runs the turns of a session, one at a time."""

from __future__ import annotations

import asyncio

from ..agents.base import URGENT_GRACE_SECS
from .agent_requests import WaitingRequests
from .core import SessionCore
from .session_agent import SessionAgent
from .session_settings import SessionSettings
from .steering import Steering
from .turn_runner import TurnRunner
from .turns import CurrentTurn, TurnState
from .waiting_turns import WaitingTurns


class TurnLoop:
    """Runs the current turn of a session, and then the waiting turns in their order.

    Its task ends when no turn is left, or when the server is being reloaded.
    """

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        waiting: WaitingTurns,
        steering: Steering,
        *,
        agent: SessionAgent,
        settings: SessionSettings,
        requests: WaitingRequests,
        runner: TurnRunner,
    ) -> None:
        self._core = core
        self._current = current
        self._waiting = waiting
        self._steering = steering
        self._agent = agent
        self._settings = settings
        self._requests = requests
        self._runner = runner
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        """Run the turns, if there are any, unless they are running."""
        if self._task is None and (self._current.turn is not None or self._waiting):
            self._task = self._core.context.tasks.spawn(self._run(), f"turns-{self._core.id}")

    async def _run(self) -> None:
        context, current, waiting = self._core.context, self._current, self._waiting
        try:
            while (current.turn is not None or waiting) and not context.is_reloading:
                if current.turn is None:
                    current.turn = waiting.pop_first()
                    current.turn.prepare()
                if not current.turn.has_ended:
                    await self._runner.run(current.turn)
                if current.turn.state is TurnState.PREPARING:  # suspended
                    break
                if self._steering:
                    await self._steering.settle(context.settings.cancel_grace_secs)
                current.turn = None
                if waiting and context.slots.must_yield(self._agent):
                    await self._yield_slot()
        finally:
            turn = current.turn
            if context.is_reloading and turn is not None and turn.state is TurnState.PREPARING:
                turn.requeue()
                waiting.prepend(turn)
            current.turn = None
            self._task = None
            self._agent.last_used = context.clock()
            self._agent.release_unused_slot()
            context.slots.reconsider()

    async def _yield_slot(self) -> None:
        """End the agent between two turns, so that an app with fewer agents gets its slot."""
        if not (self._requests or self._settings.is_changing):
            await self._agent.end(URGENT_GRACE_SECS)
