"""The unfinished turns of a session during a reload: packed, and restored by the next version."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ..agents.base import AGENT_GONE, agent_failed
from ..agents.prompt_handle import PromptHandle
from ..errors import Error
from .client_ids import ClientIds
from .core import SessionCore
from .session_settings import SessionSettings
from .settings import SettingChange
from .steering import CarriedSteer, Steering
from .turn_loop import TurnLoop
from .turn_recorder import TurnRecorder
from .turn_runner import TurnRunner
from .turns import Acceptance, CancelCause, CurrentTurn, Turn
from .waiting_turns import WaitingTurns


class CarriedTurn(msgspec.Struct, kw_only=True):
    """The part of an unfinished turn that the database lacks, for the next version of the server.

    Attributes:
        changes: the positions of :attr:`Turn.changes` among the session's changes.
    """

    index: int
    request_id: str | None
    accepted_at: float
    dispatched_at: float
    first_update_at: float
    runs_since: float
    is_sent: bool
    cancel_cause: CancelCause | None
    changes: list[int]


class CarriedTurns(msgspec.Struct, kw_only=True):
    """The unfinished turns of a session for the next version of the server.

    Attributes:
        current: the turn that the agent works on.
    """

    current: CarriedTurn | None
    waiting: list[CarriedTurn]
    steered: list[CarriedSteer]


class TurnContinuation:
    """Packs the turns of one session, and restores those of an earlier version of the server.

    Args:
        is_accepting: whether a prompt is being accepted.
    """

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        waiting: WaitingTurns,
        steering: Steering,
        *,
        ids: ClientIds,
        settings: SessionSettings,
        recorder: TurnRecorder,
        runner: TurnRunner,
        loop: TurnLoop,
        is_accepting: Callable[[], bool],
    ) -> None:
        self._core = core
        self._current = current
        self._waiting = waiting
        self._steering = steering
        self._ids = ids
        self._settings = settings
        self._recorder = recorder
        self._runner = runner
        self._loop = loop
        self._is_accepting = is_accepting

    @property
    def is_half_done(self) -> bool:
        """Whether a prompt is on its way to the agent."""
        turn = self._current.turn
        is_on_way = turn is not None and turn.handle is not None and not turn.is_sent
        return is_on_way or self._is_accepting() or not self._steering.is_settled

    def suspend(self) -> None:
        """Withdraw the current turn if the agent does not have its prompt. No turn begins."""
        turn = self._current.turn
        if turn is not None and not turn.is_sent:
            turn.suspend()

    @property
    def is_suspended(self) -> bool:
        """Whether the agent has the prompt of the current turn, if there is one."""
        turn = self._current.turn
        is_quiet = not self._is_accepting() and self._steering.is_settled
        return is_quiet and (turn is None or turn.is_sent)

    def resume(self) -> None:
        """Run the turns after a reload, or after one that was given up."""
        self._loop.start()

    def pack(self) -> CarriedTurns:
        turn, changes, waiting = self._current.turn, self._settings.changes, [*self._waiting]
        if turn is not None and not (turn.is_sent or turn.has_ended):
            waiting.insert(0, turn)  # it could not be suspended in time
            turn = None
        return CarriedTurns(
            current=_pack_turn(turn, changes) if turn is not None else None,
            waiting=[_pack_turn(turn, changes) for turn in waiting],
            steered=self._steering.pack(),
        )

    async def turn_of(self, turn_index: int) -> Turn | None:
        """The turn of that index, in memory or in the database."""
        turns: list[Turn | None] = [self._current.turn, *self._waiting]
        for turn in turns:
            if turn is not None and turn.index == turn_index:
                return turn
        row = await self._core.context.queries.turn(self._core.row.n, turn_index)
        return Turn.from_row(row) if row is not None else None

    def restore(
        self,
        carried: CarriedTurns,
        turns: Mapping[int, Turn],
        handle: PromptHandle | None,
        changes: Sequence[SettingChange],
    ) -> None:
        """Restore the turns of an earlier version of the server.

        Args:
            turns: those turns, by their indexes.
            handle: the prompt that the agent works on.
            changes: the session's changes that are not made yet.
        """
        for state in carried.waiting:
            if state.index not in turns:  # it was not stored yet
                continue
            turn = turns[state.index]
            _restore_turn(turn, state, changes)
            with contextlib.suppress(Error):  # the limit may be smaller now
                turn.reserve(self._core.context.quotas.waiting_bytes, self._core.row.app_name)
            self._waiting.append(turn)
            self._ids.add(turn.client_id, Acceptance(turn))
        if carried.current is None or carried.current.index not in turns:
            return
        turn = turns[carried.current.index]
        _restore_turn(turn, carried.current, changes)
        self._current.turn = turn
        self._ids.add(turn.client_id, Acceptance(turn))
        if handle is not None:
            self._runner.restore(turn, handle)
        elif not turn.has_ended:  # the agent has ended during the reload
            self._recorder.end(turn, error=agent_failed(AGENT_GONE))
        self._steering.restore(turn, carried.steered)


def _pack_turn(turn: Turn, changes: Sequence[SettingChange]) -> CarriedTurn:
    """Return the state of *turn*; *changes* are the session's changes that are not made yet."""
    return CarriedTurn(
        index=turn.index,
        request_id=turn.request_id,
        accepted_at=turn.accepted_at,
        dispatched_at=turn.dispatched_at,
        first_update_at=turn.first_update_at,
        runs_since=turn.runs_since,
        is_sent=turn.is_sent,
        cancel_cause=turn.cancel_cause,
        changes=[changes.index(change) for change in turn.changes if change in changes],
    )


def _restore_turn(turn: Turn, carried: CarriedTurn, changes: Sequence[SettingChange]) -> None:
    turn.request_id = carried.request_id
    turn.accepted_at, turn.dispatched_at = carried.accepted_at, carried.dispatched_at
    turn.first_update_at, turn.runs_since = carried.first_update_at, carried.runs_since
    turn.is_sent, turn.cancel_cause = carried.is_sent, carried.cancel_cause
    turn.changes = [changes[n] for n in carried.changes]
