"""The queue of a session's turns: accepts prompts, and runs one turn at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ..agents.base import URGENT_GRACE_SECS
from ..errors import Error, ErrorCode, draining, session_closed
from ..storage import statements
from ..storage.schema import TurnRow
from ..tasks import to_completion
from .agent_requests import WaitingRequests
from .core import SessionCore
from .session_agent import SessionAgent
from .session_settings import SessionSettings
from .turn_recorder import TurnRecorder
from .turn_runner import TurnRunner
from .turns import CancelCause, CurrentTurn, Turn
from .waiting_turns import WaitingTurns


class TurnQueue:
    """Accepts the prompts of a session and runs its turns. Its length is the number that wait.

    Args:
        last_turn_index: the index of the newest accepted turn; 0 if there is none.

    Attributes:
        waiting: the turns that wait.
    """

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        *,
        agent: SessionAgent,
        settings: SessionSettings,
        requests: WaitingRequests,
        recorder: TurnRecorder,
        runner: TurnRunner,
        last_turn_index: int,
    ) -> None:
        self._core = core
        self._current = current
        self._agent = agent
        self._settings = settings
        self._requests = requests
        self._recorder = recorder
        self._runner = runner
        self._next_index = last_turn_index + 1
        self.waiting = WaitingTurns(core, current)
        self._by_client_id: dict[str, Turn] = {}
        self._accept_lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def last_index(self) -> int:
        """The index of the newest accepted turn; 0 if there is none."""
        return self._next_index - 1

    @property
    def is_busy(self) -> bool:
        """Whether a turn runs, waits, or is being accepted."""
        is_running = self._current.turn is not None
        return is_running or bool(self.waiting) or self._accept_lock.locked()

    # Accepting

    async def accept(
        self,
        blocks: bytes,
        *,
        request_id: str | None = None,
        client_id: str | None = None,
        timeout: float | None = None,
    ) -> tuple[Turn, bool]:
        """Accept a prompt; see :meth:`Session.prompt`."""
        async with self._acceptance():
            if (known := await self._find(client_id)) is not None:
                return known, True
            await self._core.context.disk.check()
            self._check_may_accept()
            turn = Turn(self._next_index, client_id, blocks, timeout, request_id)
            turn.changes = self._settings.changes
            self._core.context.quotas.waiting_bytes.acquire(self._core.row.app_name, len(blocks))
            turn.reserved_bytes = len(blocks)
            runs_at_once = self._may_run_at_once()
            try:
                if runs_at_once:
                    # The prompt passes through acpx while it is being stored. The proxy holds it.
                    self._current.turn = turn
                    self._runner.send(turn)
                await self._store(turn)
            except BaseException:
                self._refuse(turn)
                raise
            self._next_index += 1
            if client_id is not None:
                self._by_client_id[client_id] = turn
            self._accept_stored(turn, is_queued=not runs_at_once)
            return turn, False

    @contextlib.asynccontextmanager
    async def _acceptance(self) -> AsyncIterator[None]:
        """Accept one prompt at a time. Afterwards the agent may have become evictable.

        It is not evictable while a prompt is being accepted, and a duplicate or refused prompt
        starts no turn.
        """
        try:
            async with self._accept_lock:
                yield
        finally:
            self._core.context.slots.reconsider()

    def _check_may_accept(self) -> None:
        context = self._core.context
        if not self._core.is_open:
            raise session_closed()
        if context.is_draining:
            raise draining()
        context.quotas.check_prompt_rate(self._core.row.app_name)
        limit = context.settings.max_queued_turns
        if len(self.waiting) + (self._current.running is not None) > limit:
            raise Error(
                ErrorCode.QUEUE_FULL,
                f"{limit} prompts are waiting already; retry after one has run",
            )

    def _may_run_at_once(self) -> bool:
        context = self._core.context
        is_open = self._core.is_open and not context.is_draining
        is_idle = self._task is None and not self._settings.is_changing
        may_send = is_open and is_idle and context.slots.has_slot(self._agent)
        return may_send and not self._agent.backend_agent.is_outdated

    async def _store(self, turn: Turn) -> None:
        row = TurnRow(
            self._core.row.n,
            turn.index,
            turn.client_id,
            turn.blocks,
            turn.timeout,
            None,
            None,
            None,
            None,
            None,
        )
        # The outcome of the commit decides, also if the caller is cancelled: a prompt is never
        # both stored and refused.
        await to_completion(self._core.context.writer.commit([statements.insert_turn(row)]))

    def _refuse(self, turn: Turn) -> None:
        self._recorder.release_prompt(turn)
        turn.withdraw(CancelCause.CANCEL)
        turn.refuse()
        if self._current.turn is turn:
            self._start_running()

    def _accept_stored(self, turn: Turn, *, is_queued: bool) -> None:
        """Queue a turn that has been stored, or let its prompt reach the agent."""
        turn.mark_stored(is_queued=is_queued)
        if is_queued:
            self.waiting.append(turn)
        if not self._core.is_open or self._core.context.is_draining:  # since it was checked
            cause = CancelCause.RESTART if self._core.is_open else CancelCause.CANCEL
            turn.withdraw(cause)
            self._end_waiting(cause)
        self._runner.admit(turn)
        if self._task is None and (not is_queued or self.waiting):
            self._start_running()

    # Finding

    async def find(self, client_id: str | None) -> Turn | None:
        """Return the turn that was accepted under that client id, or None."""
        async with self._acceptance():  # waits for a prompt that is being accepted
            return await self._find(client_id)

    async def _find(self, client_id: str | None) -> Turn | None:
        if client_id is None:
            return None
        # Turns that have not ended durably exist only in memory.
        self._by_client_id = {
            known: turn
            for known, turn in self._by_client_id.items()
            if turn.last_seq is None or turn.last_seq > self._core.log.head
        }
        if (turn := self._by_client_id.get(client_id)) is not None:
            return turn
        row = await self._core.context.queries.turn_by_client_id(self._core.row.n, client_id)
        return Turn.from_row(row) if row is not None else None

    def must_wait(self, turn: Turn) -> bool:
        """Whether *turn* waits for earlier turns of the session, or for another session's agent."""
        if turn not in self.waiting:
            return False
        is_next = self._current.running is None and self.waiting.first is turn
        return not is_next or self._core.context.slots.must_wait(self._agent)

    # Ending

    def cancel(self, turn_index: int | None = None) -> bool:
        """Cancel the running turn, or the turn of that index, running or waiting.

        Without a running turn and an index, the first waiting turn is cancelled.

        Returns:
            False if there is no such turn.
        """
        running = self._current.running
        if running is not None and turn_index in (None, running.index):
            grace = self._core.context.settings.cancel_grace_secs
            self._runner.interrupt(running, CancelCause.CANCEL, grace)
            return True
        for turn in self.waiting:
            if turn.index == turn_index or (turn_index is None and running is None):
                self.waiting.remove(turn)
                self._end(turn, CancelCause.CANCEL)
                return True
        return False

    def withdraw(self, turn_index: int) -> None:
        """Cancel a waiting turn.

        Raises:
            Error: ``not_found`` if no such turn waits; ``conflict`` if it is running.
        """
        turn = self.waiting.get(turn_index)
        self.waiting.remove(turn)
        self._end(turn, CancelCause.CANCEL)

    def cancel_all(self) -> None:
        """Cancel the running turn and every waiting one."""
        self._end_waiting(CancelCause.CANCEL)
        self.cancel()

    async def end_waiting(self, cause: CancelCause) -> None:
        """End every waiting turn, after a prompt that is being accepted is stored or refused."""
        async with self._accept_lock:
            self._end_waiting(cause)

    def _end_waiting(self, cause: CancelCause) -> None:
        while self.waiting:
            self._end(self.waiting.pop_first(), cause)

    def _end(self, turn: Turn, cause: CancelCause) -> None:
        turn.cancel_cause = cause
        self._recorder.end(turn)

    # Running

    def _start_running(self) -> None:
        self._task = self._core.context.tasks.spawn(self._run(), f"turns-{self._core.id}")

    async def _run(self) -> None:
        """Run the current turn and then the waiting ones."""
        slots = self._core.context.slots
        try:
            while self._current.turn is not None or self.waiting:
                if self._current.turn is None:
                    self._current.turn = self.waiting.pop_first()
                    self._current.turn.prepare()
                await self._runner.run(self._current.turn)
                self._current.turn = None
                if self.waiting and slots.must_yield(self._agent):
                    await self._yield_slot()
        finally:
            self._current.turn = None
            self._task = None
            self._agent.last_used = self._core.context.clock()
            self._agent.release_unused_slot()
            slots.reconsider()

    async def _yield_slot(self) -> None:
        """End the agent between two turns, so that an app with fewer agents gets its slot."""
        if not (self._requests or self._settings.is_changing):
            await self._agent.end(URGENT_GRACE_SECS)
