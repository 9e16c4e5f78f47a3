"""Every table of transitions, walked pair by pair."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from server.agents.agent_state import AGENT_TRANSITIONS
from server.agents.prompt_handle import PROMPT_TRANSITIONS
from server.sessions.core import SESSION_TRANSITIONS
from server.sessions.tenure import TENURE_TRANSITIONS
from server.sessions.turns import TURN_TRANSITIONS
from server.states import IllegalTransitionError, StateMachine, Transitions


class Lamp(enum.Enum):
    OFF = "off"
    ON = "on"
    BROKEN = "broken"


LAMP_TRANSITIONS: Transitions[Lamp] = {
    Lamp.OFF: {Lamp.ON},
    Lamp.ON: {Lamp.OFF, Lamp.BROKEN},
    Lamp.BROKEN: set(),
}

TABLES: list[Transitions[Any]] = [
    LAMP_TRANSITIONS,
    AGENT_TRANSITIONS,
    PROMPT_TRANSITIONS,
    TURN_TRANSITIONS,
    SESSION_TRANSITIONS,
    TENURE_TRANSITIONS,
]
PAIRS = [
    pytest.param(table, before, after, id=f"{type(before).__name__}-{before.name}-{after.name}")
    for table in TABLES
    for before in table
    for after in type(before)
]


@pytest.mark.parametrize(("table", "before", "after"), PAIRS)
def test_transition_is_made_if_legal_and_raises_if_not(
    table: Transitions[Any], before: enum.Enum, after: enum.Enum
) -> None:
    machine = StateMachine(table, before)
    is_legal = after in table[before]
    assert machine.can_move_to(after) == is_legal
    if is_legal:
        machine.move_to(after)
        assert machine.current is after
    else:
        with pytest.raises(IllegalTransitionError):
            machine.move_to(after)
        assert machine.current is before


@pytest.mark.parametrize("table", TABLES)
def test_table_has_an_entry_for_every_state(table: Transitions[Any]) -> None:
    states: type[enum.Enum] = type(next(iter(table)))
    assert set(table) == set(states)


@pytest.mark.parametrize("table", TABLES)
def test_every_state_except_the_first_can_be_reached(table: Transitions[Any]) -> None:
    first, *others = table
    followers: set[Any] = set().union(*table.values())
    assert set(others) <= followers | {first}
