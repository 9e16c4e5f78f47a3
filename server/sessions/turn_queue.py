"""The queue of a session's turns: accepts prompts, finds and cancels turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from ..errors import Error
from ..storage import statements
from ..storage.schema import SteerRow
from ..tasks import to_completion
from .agent_requests import WaitingRequests
from .client_ids import ClientIds
from .core import SessionCore
from .session_agent import SessionAgent
from .session_settings import SessionSettings
from .steering import NotSteeredError, SteeredPrompt, Steering, SteerRequest
from .turn_continuation import TurnContinuation
from .turn_loop import TurnLoop
from .turn_recorder import TurnRecorder
from .turn_runner import TurnRunner
from .turns import Acceptance, CancelCause, CurrentTurn, Turn
from .waiting_turns import WaitingTurns


class TurnQueue:
    """Accepts the prompts of a session, and cancels its turns. Its length is the number that wait.

    Args:
        last_turn_index: the index of the newest accepted turn; 0 if there is none.

    Attributes:
        current: the turn that has the agent.
        waiting: the turns that wait.
        steering: the prompts that are being added to the running turn.
        continuation: suspends and packs the turns for a reload, and restores them after it.
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
        self.current = self._current = current
        self._agent = agent
        self._settings = settings
        self._recorder = recorder
        self._runner = runner
        self._next_index = last_turn_index + 1
        self.waiting = WaitingTurns(core, current)
        self._ids = ClientIds(core)
        self.steering = Steering(
            core, current, agent, ids=self._ids, accept_as_turn=self._accept_as_turn
        )
        self.note_new_id = self._ids.note_new
        self.interrupt = runner.interrupt
        self.disk_refusal: Error | None = None
        """The error with which prompts are refused while the session's folders are too large."""
        self._accept_lock = asyncio.Lock()
        turns = current, self.waiting, self.steering
        self._loop = TurnLoop(
            core, *turns, agent=agent, settings=settings, requests=requests, runner=runner
        )
        self.continuation = TurnContinuation(
            core,
            *turns,
            ids=self._ids,
            settings=settings,
            recorder=recorder,
            runner=runner,
            loop=self._loop,
            is_accepting=self._accept_lock.locked,
        )

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
        is_accepting = self._accept_lock.locked() or bool(self.steering)
        return is_running or bool(self.waiting) or is_accepting

    # Accepting

    async def accept(
        self,
        blocks: bytes,
        *,
        request_id: str | None = None,
        client_id: str | None = None,
        timeout: float | None = None,
        steer: SteerRequest | None = None,
    ) -> Acceptance:
        """Accept a prompt; see :meth:`Session.prompt`."""
        async with self._accepting():
            if (known := await self._ids.find(client_id)) is not None:
                return known
            steered = self.steering.find(client_id)
            is_duplicate = steered is not None
            if steered is None:
                await self._check_accepts_prompts()
                running = self.steering.turn if steer is not None else None
                if steer is None or running is None:
                    if steer is not None and not steer.or_queue:
                        raise NotSteeredError
                    turn = Turn(self._next_index, client_id, blocks, timeout, request_id)
                    self._reserve_capacity(turn)
                    return await self._accept_turn(turn)
                steered = SteeredPrompt(
                    running, steer, blocks, client_id, timeout=timeout, request_id=request_id
                )
                await self.steering.begin(steered)
        # The lock is released: the agent may take long to respond to a steered prompt.
        if steer is not None:
            steer.ordered.set()
        acceptance = await steered.wait()
        return acceptance._replace(is_duplicate=True) if is_duplicate else acceptance

    async def _check_accepts_prompts(self) -> None:
        """Check everything that can refuse a prompt, whether it becomes a turn or is steered."""
        await self._core.check_accepts_prompts()
        if self.disk_refusal is not None:
            raise self.disk_refusal

    def _reserve_capacity(self, turn: Turn) -> None:
        """Check the limits on waiting turns and on agents, and reserve the prompt's bytes."""
        self.waiting.check_capacity()
        self._core.context.slots.check_own_limit(self._agent)
        turn.reserve(self._core.context.quotas.waiting_bytes, self._core.row.app_name)

    async def _accept_turn(
        self, turn: Turn, *, steered: SteeredPrompt | None = None, error: Error | None = None
    ) -> Acceptance:
        """Store a turn, and run it or queue it.

        Args:
            steered: the prompt that becomes this turn.
            error: end the turn with it.
        """
        turn.changes = self._settings.changes
        runs_at_once = error is None and self._may_run_at_once()
        try:
            if runs_at_once:
                # The prompt passes through acpx while it is being stored. The proxy holds it.
                self._current.turn = turn
                self._runner.send(turn)
            await self._store(turn, steered)
        except BaseException:
            self._refuse(turn)
            raise
        self._next_index += 1
        acceptance = Acceptance(turn)
        self._ids.add(turn.client_id, acceptance)
        if error is None:
            self._accept_stored(turn, is_queued=not runs_at_once)
        else:
            turn.mark_stored(is_queued=True)
            turn.cancel_cause = self._ending_cause()
            self._recorder.end(turn, error=error)
        return acceptance

    async def _accept_as_turn(self, prompt: SteeredPrompt, error: Error | None) -> Acceptance:
        """Accept a prompt that was not added to the running turn; see :class:`Steering`."""
        async with self._accepting():
            if error is None:
                self._core.context.accounts.check(self._core.row.app_name)
                self.waiting.check_capacity()
            turn = Turn(
                self._next_index,
                prompt.client_id,
                prompt.blocks,
                prompt.timeout,
                prompt.request_id,
            )
            turn.reserved_bytes, prompt.reserved_bytes = prompt.reserved_bytes, 0
            return await self._accept_turn(turn, steered=prompt, error=error)

    @contextlib.asynccontextmanager
    async def _accepting(self) -> AsyncIterator[None]:
        """Accept one prompt at a time. Afterwards the agent may have become evictable.

        It is not evictable while a prompt is being accepted, and a duplicate or refused prompt
        starts no turn.
        """
        try:
            async with self._accept_lock:
                yield
        finally:
            self._core.context.slots.reconsider()

    def _may_run_at_once(self) -> bool:
        context = self._core.context
        is_open = self._core.is_open and not (context.is_draining or context.is_reloading)
        is_idle = not (self._loop.is_running or self._settings.is_changing)
        is_idle = is_idle and not self._core.row.needs_history
        may_send = is_open and is_idle and context.slots.has_slot(self._agent)
        return may_send and not self._agent.backend_agent.is_outdated

    async def _store(self, turn: Turn, steered: SteeredPrompt | None) -> None:
        row = turn.to_row(self._core.row.n)
        # The outcome of the commit decides, also if the caller is cancelled: a prompt is never
        # both stored and refused.
        transaction = [statements.insert_turn(row)]
        if steered is not None:
            transaction.append(statements.delete_steer(steered.id))
        await to_completion(self._core.context.writer.commit(transaction))

    def _refuse(self, turn: Turn) -> None:
        self._recorder.release_prompt(turn)
        turn.withdraw(CancelCause.CANCEL)
        turn.refuse()
        if self._current.turn is turn:
            self._loop.start()

    def _accept_stored(self, turn: Turn, *, is_queued: bool) -> None:
        """Queue a turn that has been stored, or let its prompt reach the agent."""
        turn.mark_stored(is_queued=is_queued)
        if is_queued:
            self.waiting.append(turn)
        if (cause := self._ending_cause()) is not None:  # since it was checked
            turn.withdraw(cause)
            self._end_waiting(cause)
        self._runner.admit(turn)
        self._loop.start()

    def _ending_cause(self) -> CancelCause | None:
        """The reason for which the session runs no more turns; None if it does."""
        if not self._core.is_open:
            return CancelCause.CANCEL
        return CancelCause.RESTART if self._core.context.ends_waiting_turns else None

    # Finding

    async def find(self, client_id: str | None) -> Acceptance | None:
        """Return the acceptance of the prompt with that client id, or None."""
        async with self._accepting():  # waits for a prompt that is being accepted
            known = await self._ids.find(client_id)
            steered = self.steering.find(client_id)
        if steered is None:
            return known
        return (await steered.wait())._replace(is_duplicate=True)

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
                self._end_turn(turn, CancelCause.CANCEL)
                return True
        return False

    def withdraw(self, turn_index: int) -> None:
        """Cancel a waiting turn.

        Raises:
            Error: ``not_found`` if no such turn waits; ``conflict`` if it is running.
        """
        turn = self.waiting.get(turn_index)
        self.waiting.remove(turn)
        self._end_turn(turn, CancelCause.CANCEL)

    def cancel_all(self) -> None:
        """Cancel the running turn and every waiting one."""
        self._end_waiting(CancelCause.CANCEL)
        self.cancel()

    async def end_waiting(self, cause: CancelCause | None) -> bool:
        """End every waiting turn, after a prompt that is being accepted is stored or refused.

        Args:
            cause: None to forget the turns, which stay in the database.

        Returns:
            Whether there were any.
        """
        async with self._accept_lock:
            has_waiting = bool(self.waiting)
            while cause is None and self.waiting:
                self._recorder.release_prompt(self.waiting.pop_first())
            self._end_waiting(cause or CancelCause.RESTART)
        return has_waiting

    def continue_turns(self, turns: Iterable[Turn], steers: Iterable[SteerRow]) -> None:
        """Run the turns that another server has accepted, in their order.

        Each steered prompt that it has left becomes a turn of its own, which ends at once.
        """
        for row in steers if self._core.is_open else ():
            turn = Turn(self._next_index, row.client_id, row.prompt or b"[]", None)
            turn.mark_stored(is_queued=True)
            self._next_index += 1
            stored = turn.to_row(self._core.row.n)
            self._core.context.writer.add(
                [statements.insert_turn(stored), statements.delete_steer(row.id)]
            )
            self._end_turn(turn, CancelCause.RESTART)
        for turn in turns:
            with contextlib.suppress(Error):  # it was accepted, whatever the limit is here
                turn.reserve(self._core.context.quotas.waiting_bytes, self._core.row.app_name)
            self._ids.add(turn.client_id, Acceptance(turn))
            self.waiting.append(turn)
        self._loop.start()

    def _end_waiting(self, cause: CancelCause) -> None:
        while self.waiting:
            self._end_turn(self.waiting.pop_first(), cause)

    def _end_turn(self, turn: Turn, cause: CancelCause) -> None:
        turn.cancel_cause = cause
        self._recorder.end(turn)
