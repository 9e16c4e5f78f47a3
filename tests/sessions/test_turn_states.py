"""The states of one turn: the marks that it gets on its way, and its one end."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import Error
from server.sessions.turns import CancelCause, CurrentTurn, Turn, TurnState, resolve_end
from server.states import IllegalTransitionError
from server.storage.schema import TurnRow

BLOCKS = b'[{"type":"text","text":"hi"}]'


def new_turn() -> Turn:
    return Turn(1, None, BLOCKS, None)


async def test_turn_ends_once() -> None:
    turn = new_turn()
    turn.mark_stored(is_queued=True)
    turn.prepare()
    turn.start(5)
    turn.end(7, "end_turn", None)
    with pytest.raises(IllegalTransitionError):
        turn.end(9, "cancelled", None)
    assert (turn.state, turn.last_seq, turn.stop_reason) == (TurnState.ENDED, 7, "end_turn")


async def test_turn_cannot_end_before_its_start_is_logged() -> None:
    turn = new_turn()
    turn.mark_stored(is_queued=False)
    with pytest.raises(IllegalTransitionError):
        turn.end(7, "end_turn", None)
    assert not turn.has_ended


async def test_refused_turn_cannot_start() -> None:
    turn = new_turn()
    waiting = asyncio.create_task(turn.wait_stored())
    turn.refuse()
    assert await waiting is False
    with pytest.raises(IllegalTransitionError):
        turn.start(5)


@pytest.mark.parametrize(
    ("first_seq", "last_seq", "state"),
    [
        (None, None, TurnState.QUEUED),
        (3, None, TurnState.STARTED),
        (3, 8, TurnState.ENDED),
    ],
)
async def test_state_of_a_stored_turn_follows_from_its_row(
    first_seq: int | None, last_seq: int | None, state: TurnState
) -> None:
    row = TurnRow(1, 2, None, BLOCKS, None, first_seq, last_seq)
    turn = Turn.from_row(row)
    assert (turn.state, turn.is_stored) == (state, True)
    assert (turn.has_started, turn.has_ended) == (first_seq is not None, last_seq is not None)


@pytest.mark.parametrize(
    ("cause", "stop_reason", "expected"),
    [
        (None, "end_turn", ("end_turn", None)),
        (None, None, ("error", "agent_failed")),
        (CancelCause.CANCEL, "end_turn", ("cancelled", None)),
        (CancelCause.TIMEOUT, "end_turn", ("error", "agent_timeout")),
        (CancelCause.RESTART, "cancelled", ("error", "server_restarted")),
        (CancelCause.RESTART, "end_turn", ("end_turn", None)),
    ],
)
async def test_end_of_a_turn_depends_on_its_cancel_cause(
    cause: CancelCause | None, stop_reason: str | None, expected: tuple[str, str | None]
) -> None:
    turn = new_turn()
    turn.cancel_cause = cause
    reason, error = resolve_end(turn, stop_reason, None)
    assert (reason, error.code if isinstance(error, Error) else None) == expected


async def test_entry_after_a_turn_belongs_to_the_turn_that_was_sent_last() -> None:
    current = CurrentTurn(last_turn_index=4)
    assert current.entry_turn_index() == 4
    current.turn = turn = Turn(6, None, BLOCKS, None)
    turn.mark_stored(is_queued=False)
    assert current.entry_turn_index() == 4
    turn.start(9)
    assert current.entry_turn_index() == 6


async def test_turn_is_running_from_its_storage_to_its_end() -> None:
    current = CurrentTurn(last_turn_index=0)
    running = [current.running]
    current.turn = turn = new_turn()
    running.append(current.running)
    turn.mark_stored(is_queued=False)
    running.append(current.running)
    turn.start(1)
    turn.end(2, "end_turn", None)
    running.append(current.running)
    assert running == [None, None, turn, None]
