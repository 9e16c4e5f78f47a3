"""The limits on incomplete messages of agents, which the server must keep in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable

from ...limits import ByteBudget, Reservation
from ..output_limits import MessageLimits

UNCOUNTED_BYTES = 256 << 10
"""Incomplete messages up to this size are not counted."""
EXCLUSIVE_BYTES = 1 << 20
"""An agent with a larger incomplete message waits until it is its turn."""


class IncompleteMessages:
    """Counts the bytes of the incomplete messages of each app's agents.

    Attributes:
        large_budget: the memory for one large message. The apps use it in turn.
        max_message_bytes: of the largest message.
        large_secs: the time for a large message, without the wait.
    """

    def __init__(self, limits: MessageLimits) -> None:
        self.max_message_bytes = limits.message_bytes
        self.large_secs = limits.large_secs
        self.large_budget = ByteBudget(limits.message_bytes, limits.message_bytes)
        self._limit = limits.bytes_per_app
        self._sizes: dict[Hashable, tuple[str, int]] = {}
        self._totals: Counter[str] = Counter()

    def update(self, agent: Hashable, owner: str, size: int) -> None:
        """Set the size of *agent*'s incomplete message; *owner* is its app.

        Raises:
            OverflowError: the app's limit is reached.
        """
        former_owner, former_size = self._sizes.pop(agent, (owner, 0))
        self._totals[former_owner] -= former_size
        if size > UNCOUNTED_BYTES:
            if self._totals[owner] + size > self._limit:
                raise OverflowError("the app's incomplete messages exceed their limit")
            self._totals[owner] += size
            self._sizes[agent] = owner, size
        if not self._totals[former_owner]:
            del self._totals[former_owner]


class MessageMemory:
    """The memory that the incomplete message of one agent uses.

    A large message uses several times its size while it is parsed and stored. So only one is read
    at a time, and an agent with another one waits until it may send the rest.

    Args:
        incomplete: counts for all agents.
        owner: returns the app that the agent works for.
        pause: stops reading from the agent.
        resume: continues reading.
        on_expired: called if the agent does not complete its large message in time.
    """

    def __init__(
        self,
        incomplete: IncompleteMessages,
        owner: Callable[[], str],
        *,
        pause: Callable[[], None],
        resume: Callable[[], None],
        on_expired: Callable[[], None],
    ) -> None:
        self._incomplete = incomplete
        self._owner = owner
        self._pause = pause
        self._resume = resume
        self._on_expired = on_expired
        self._is_counted = False
        self._is_large = False
        self._reservation: Reservation | None = None
        self._timer: asyncio.TimerHandle | None = None

    def update(self, size: int) -> None:
        """Set the size of the incomplete message.

        Raises:
            OverflowError: the limit of the agent's app is reached.
        """
        if not self._is_counted and size <= UNCOUNTED_BYTES:
            return
        self._is_counted = size > UNCOUNTED_BYTES
        self._incomplete.update(self, self._owner(), size)
        self._is_large = size > EXCLUSIVE_BYTES
        if self._is_large and self._reservation is None:
            self._reservation = self._incomplete.large_budget.request(
                self._owner(), self._incomplete.max_message_bytes
            )
            if self._reservation.done():
                self._start_timer()
            else:
                self._pause()
                self._reservation.add_done_callback(self._on_granted)

    def message_stored(self) -> None:
        """Let another agent send its large message, if this one's is complete and stored."""
        if not self._is_large:
            self._release()

    def close(self) -> None:
        """Free the memory of an agent that has ended."""
        self._incomplete.update(self, "", 0)
        self._release()

    def _on_granted(self, reservation: asyncio.Future[None]) -> None:
        if not reservation.cancelled() and reservation is self._reservation:
            self._start_timer()
            self._resume()

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._incomplete.large_secs, self._on_expired)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reservation is not None:
            self._incomplete.large_budget.release(self._reservation)
            self._reservation = None
