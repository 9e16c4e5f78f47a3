"""The work of a session that one server leaves and another finds."""

from __future__ import annotations

import asyncio

from .agent_requests import WaitingRequests
from .core import SessionCore
from .turn_queue import TurnQueue
from .turn_recorder import TurnRecorder
from .turn_runner import TurnRunner
from .turns import CancelCause, CurrentTurn, Turn
from .undo_notices import log_finished_undo

INTERRUPTED_SECS = 1.0
"""The time that a turn has to end by itself after the server has interrupted it."""


class Succession:
    """Ends or continues the work of an earlier server, and leaves work to a later one."""

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        requests: WaitingRequests,
        *,
        recorder: TurnRecorder,
        runner: TurnRunner,
        turns: TurnQueue,
    ) -> None:
        self._core = core
        self._current = current
        self._requests = requests
        self._recorder = recorder
        self._runner = runner
        self._turns = turns

    async def drain(self, timeout: float) -> None:
        """End the waiting turns now, and the running turn after *timeout* seconds at the latest."""
        await self._turns.end_waiting(CancelCause.RESTART)
        await self._finish_turn(timeout)

    async def hand_over(self, timeout: float) -> bool:
        """Leave the waiting turns in the database, and let the running turn end.

        Returns:
            Whether a turn waits for the next owner of the session.
        """
        has_waiting = await self._turns.end_waiting(None)
        await self._finish_turn(timeout)
        return has_waiting

    async def _finish_turn(self, timeout: float) -> None:
        turn = self._current.running
        if turn is not None:
            try:
                async with asyncio.timeout(timeout):
                    await turn.wait_ended()
            except TimeoutError:
                self._runner.interrupt(turn, CancelCause.RESTART, INTERRUPTED_SECS)
                await turn.wait_ended()
        await self._turns.steering.finish(INTERRUPTED_SECS)

    async def recover(self) -> None:
        """End the agent's requests, turns and prompts that an earlier server left unfinished."""
        await self._settle(runs_waiting=False)

    async def continue_waiting(self) -> None:
        """Run the waiting turns that another node has left; end its running turn and requests."""
        await self._settle(runs_waiting=True)

    async def log_undo(self) -> None:
        """Log the undo that an earlier server has left unfinished."""
        await log_finished_undo(self._core)

    async def _settle(self, *, runs_waiting: bool) -> None:
        """End what was left, except the waiting turns if *runs_waiting*."""
        core = self._core
        queries, number = core.context.queries, core.row.n
        await self.log_undo()
        await self._requests.recover(core.row, queries)
        waiting: list[Turn] = []
        for row in await queries.unfinished_turns(number):
            turn = Turn.from_row(row)
            if runs_waiting and core.is_open and not turn.has_started:
                waiting.append(turn)
                continue
            turn.cancel_cause = CancelCause.RESTART
            if turn.has_started:
                core.snapshots.after_turn(turn.index)
            self._recorder.end(turn)
        self._turns.continue_turns(waiting, await queries.undecided_steers(number))
