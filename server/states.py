"""State machines: the current state of an object and the table of its legal transitions.

A class that has a life cycle declares an enum of its states and one table::

    class LampState(enum.Enum):
        OFF = "off"
        BROKEN = "broken"

    LAMP_TRANSITIONS: Transitions[LampState] = {
        LampState.OFF: {LampState.BROKEN},
        LampState.BROKEN: set(),
    }
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from typing import Generic, TypeVar

State = TypeVar("State", bound=enum.Enum)

Transitions = Mapping[State, Set[State]]
"""The states that may follow each state. Every state has an entry; a final state's is empty."""


class IllegalTransitionError(Exception):
    """A transition that the table does not list: a defect of the server."""


class StateMachine(Generic[State]):
    """The current state of one object. It changes only as its table allows.

    Attributes:
        current: the state. Only :meth:`move_to` changes it.
    """

    __slots__ = ("_transitions", "current")

    def __init__(self, transitions: Transitions[State], initial: State) -> None:
        self._transitions = transitions
        self.current = initial

    def can_move_to(self, state: State) -> bool:
        """Whether *state* may follow the current state."""
        return state in self._transitions[self.current]

    def move_to(self, state: State) -> None:
        """Change to *state*.

        Raises:
            IllegalTransitionError: the table does not list it. The state is unchanged.
        """
        if not self.can_move_to(state):
            name = type(state).__name__
            raise IllegalTransitionError(f"{name}: {self.current.name} -> {state.name}")
        self.current = state
