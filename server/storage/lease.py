"""The lease of this node on its sessions: the beats, and the states after missing beats.

All times are fractions of the lease. They count from the moment at which the last successful beat
was sent, on this machine's monotonic clock; whether another node is late is decided by the
engine's clock alone.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import DatabaseError
from ..states import StateMachine, Transitions
from .drivers.base import LostTailError

if TYPE_CHECKING:
    from .nodes import NodeRow, NodeTable

logger = logging.getLogger(__name__)

BEAT_SHARE = 0.1
"""A beat is sent twice in the time after which a missing one makes the node unready."""
LATE_SHARE = 0.2
FREEZE_SHARE = 0.7
GAP_SHARE = 0.5
"""A longer pause between two beats is a gap: perhaps no node could reach the engine meanwhile."""
SWEEP_SECS = 60.0


class LeaseState(enum.Enum):
    """The states of a lease.

    ``LATE``: the last beat is too old for new clients. ``FROZEN``: the agents are stopped, because
    another node may take over soon. ``LOST``: another node has taken over.
    """

    HELD = "held"
    LATE = "late"
    FROZEN = "frozen"
    LOST = "lost"


LEASE_TRANSITIONS: Transitions[LeaseState] = {
    LeaseState.HELD: {LeaseState.LATE, LeaseState.FROZEN, LeaseState.LOST},
    LeaseState.LATE: {LeaseState.HELD, LeaseState.FROZEN, LeaseState.LOST},
    LeaseState.FROZEN: {LeaseState.HELD, LeaseState.LOST},
    LeaseState.LOST: set(),
}


class Lease:
    """The lease of one node.

    Args:
        number: of the node.
        secs: its length.
        clock: a monotonic clock.

    Attributes:
        nodes: the nodes that are not gone, as the last beat found them.
        takeovers: the nodes that this one has set to gone.
        is_replaced: a server that has the name of this node has started, so the lease was lost.
        followers: called with each new state.
        on_beat: called with the time at which a successful beat was sent.
        on_gone: called with the numbers of nodes that this node has set to gone.
        on_nodes: called with the nodes that a beat has found.
        on_engine_time: called with unix seconds by the engine's clock, which it has returned just
            now, and the time at which the beat was sent.
        load: returns the limit and the number of this node's agents.
    """

    def __init__(
        self,
        table: NodeTable,
        number: int,
        secs: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.secs = secs
        self.nodes: list[NodeRow] = []
        self.takeovers = 0
        self.is_replaced = False
        self.followers: list[Callable[[LeaseState], None]] = []
        self.on_beat: Callable[[float], None] = lambda sent_at: None
        self.on_gone: Callable[[list[int]], None] = lambda numbers: None
        self.on_nodes: Callable[[list[NodeRow]], None] = lambda nodes: None
        self.on_engine_time: Callable[[float, float], None] = lambda engine_secs, sent_at: None
        self.load: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._table = table
        self._clock = clock
        self._machine = StateMachine(LEASE_TRANSITIONS, LeaseState.HELD)
        self._last_beat = self._streak_from = self._last_sweep = clock()
        self._has_beaten = asyncio.Event()

    @property
    def state(self) -> LeaseState:
        return self._machine.current

    @property
    def age(self) -> float:
        """Seconds since the last successful beat was sent."""
        return self._clock() - self._last_beat

    async def run(self) -> None:
        """Beat until the lease is lost or the task is cancelled."""
        while self.state is not LeaseState.LOST:
            sent_at = self._clock()
            await self.beat()
            await asyncio.sleep(max(0.0, sent_at + BEAT_SHARE * self.secs - self._clock()))

    async def watch(self) -> None:
        """Follow the age of the last beat, until the lease is lost or the task is cancelled."""
        while self.state is not LeaseState.LOST:
            age = self.age
            if age >= FREEZE_SHARE * self.secs:
                self._move_to(LeaseState.FROZEN)
                await self._has_beaten.wait()
            elif age >= LATE_SHARE * self.secs:
                self._move_to(LeaseState.LATE)
                await asyncio.sleep(FREEZE_SHARE * self.secs - age)
            else:
                await asyncio.sleep(LATE_SHARE * self.secs - age)
            self._has_beaten.clear()

    async def beat(self) -> None:
        """Renew the lease once, and take over the nodes whose leases have ended."""
        sent_at = self._clock()
        slots, live = self.load()
        try:
            beat = await self._table.beat(
                self.number, slots=slots, live=live, timeout=LATE_SHARE * self.secs
            )
        except DatabaseError as error:
            logger.log(
                logging.WARNING if self.state is LeaseState.HELD else logging.DEBUG,
                "the lease of this node was not renewed: %s",
                error,
            )
            return
        if beat.engine_secs is not None:
            self.on_engine_time(beat.engine_secs, sent_at)
        if not await self._has_tail() or not beat.has_lease:
            names = {node.name for node in self.nodes if node.number == self.number}
            self.is_replaced = any(node.name in names for node in beat.nodes)
            self._move_to(LeaseState.LOST)
            self._has_beaten.set()
            return
        if sent_at - self._last_beat > GAP_SHARE * self.secs:
            self._streak_from = sent_at
        self._last_beat = sent_at
        self.nodes = beat.nodes
        self.on_beat(sent_at)
        self.on_nodes(beat.nodes)
        self._move_to(LeaseState.HELD)
        self._has_beaten.set()
        try:
            await self._take_late_nodes()
            if sent_at - self._last_sweep > SWEEP_SECS:
                self._last_sweep = sent_at
                await self._table.sweep(self.number)
        except DatabaseError as error:
            logger.warning("late nodes were not taken over; retrying: %s", error)

    async def _has_tail(self) -> bool:
        try:
            await self._table.check_tail()
        except LostTailError as error:
            logger.error("%s", error)
            return False
        except DatabaseError:
            pass  # the next beat asks again
        return True

    async def _take_late_nodes(self) -> None:
        if self._last_beat - self._streak_from < self.secs:
            return  # an outage of the engine makes no node late
        late = [node for node in self.nodes if node.number != self.number and node.age >= self.secs]
        gone = [node for node in late if await self._table.take(node.number, self.secs)]
        for node in gone:
            logger.warning(
                "took over from node %s (%s): its lease has ended", node.name, node.number
            )
        if gone:
            self.takeovers += len(gone)
            self.on_gone([node.number for node in gone])

    def _move_to(self, state: LeaseState) -> None:
        if state is self.state:
            return
        if state is not LeaseState.LATE:  # a late beat happens, and its failure is logged
            logger.warning("the lease of this node is %s", state.value)
        self._machine.move_to(state)
        for follow in self.followers:
            follow(state)
