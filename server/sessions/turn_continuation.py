"""The unfinished turns of a session during a reload: packed, and restored by the next version."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import msgspec

from ..agents.base import AGENT_GONE, agent_failed
from ..agents.prompt_handle import PromptHandle
from ..errors import Error
from .client_ids import ClientIds
from .core import SessionCore
from .session_settings import SessionSettings
from .settings import SettingChange
from .steering import CarriedSteer, Steering
from .turn_recorder import TurnRecorder
from .turn_runner import TurnRunner
from .turns import Acceptance, CarriedTurn, CurrentTurn, Turn
from .waiting_turns import WaitingTurns


class CarriedTurns(msgspec.Struct, kw_only=True):
    """The unfinished turns of a session for the next version of the server.

    Attributes:
        current: the turn that the agent works on.
    """

    current: CarriedTurn | None
    waiting: list[CarriedTurn]
    steered: list[CarriedSteer]


class TurnContinuation:
    """Packs the turns of one session, and restores those of an earlier version of the server."""

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        waiting: WaitingTurns,
        steering: Steering,
        ids: ClientIds,
        settings: SessionSettings,
        recorder: TurnRecorder,
        runner: TurnRunner,
    ) -> None:
        self._core = core
        self._current = current
        self._waiting = waiting
        self._steering = steering
        self._ids = ids
        self._settings = settings
        self._recorder = recorder
        self._runner = runner

    def pack(self) -> CarriedTurns:
        turn, changes, waiting = self._current.turn, self._settings.changes, [*self._waiting]
        if turn is not None and not (turn.is_sent or turn.has_ended):
            waiting.insert(0, turn)  # it could not be suspended in time
            turn = None
        return CarriedTurns(
            current=turn.pack(changes) if turn is not None else None,
            waiting=[one.pack(changes) for one in waiting],
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
            turn.restore(state, changes)
            with contextlib.suppress(Error):  # the limit may be smaller now
                turn.reserve(self._core.context.quotas.waiting_bytes, self._core.row.app_name)
            self._waiting.append(turn)
            self._ids.add(turn.client_id, Acceptance(turn))
        if carried.current is None or carried.current.index not in turns:
            return
        turn = turns[carried.current.index]
        turn.restore(carried.current, changes)
        self._current.turn = turn
        self._ids.add(turn.client_id, Acceptance(turn))
        if handle is not None:
            self._runner.restore(turn, handle)
        elif not turn.has_ended:  # the agent has ended during the reload
            self._recorder.end(turn, error=agent_failed(AGENT_GONE))
        self._steering.restore(turn, carried.steered)
