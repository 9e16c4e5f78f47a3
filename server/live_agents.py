"""The bound on running agents.

Any number of sessions is open, but only so many have a process; the longest
idle one makes room.
"""

from __future__ import annotations

import asyncio
from collections import deque

from .session import Session
from .tasks import Tasks


class LiveAgents:
    """Slots for running agents: given in order, taken back from the longest idle."""

    def __init__(self, limit: int, tasks: Tasks) -> None:
        self._limit = limit
        self._tasks = tasks
        self._holders: set[Session] = set()
        self._evicting: set[Session] = set()
        self._waiting: deque[tuple[Session, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def queued(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    async def acquire(self, session: Session) -> None:
        """Wait for a slot; a session that has one keeps it."""
        if session in self._holders and session not in self._evicting:
            return
        entry = (session, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._settle()
        try:
            await entry[1]
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def try_acquire(self, session: Session) -> bool:
        """Take a slot only where one is free."""
        if len(self._holders) >= self._limit or self._waiting:
            return False
        self._holders.add(session)
        return True

    def must_wait(self, session: Session) -> bool:
        """Whether no slot can be had for *session* but by waiting for a busy agent."""
        if session in self._holders or len(self._holders) < self._limit:
            return False
        return not any(holder.can_hibernate for holder in self._holders)

    def release(self, session: Session) -> None:
        self._holders.discard(session)
        self._settle()

    def idle(self, session: Session) -> None:
        """*session* has no turn any more: it could make room."""
        self._settle()

    def idle_since(self, before: float) -> list[Session]:
        """Holders that could hibernate and were last used before that time."""
        return [s for s in self._holders if s.can_hibernate and s.last_used <= before]

    def _settle(self) -> None:
        for entry in tuple(self._waiting):
            session, future = entry
            # Who has a slot needs no second; who falls asleep first has to end its agent.
            free = session in self._holders or len(self._holders) < self._limit
            if free and session not in self._evicting:
                self._waiting.remove(entry)
                if not future.done():
                    self._holders.add(session)
                    future.set_result(None)
        idle = [s for s in self._holders - self._evicting if s.can_hibernate]
        idle.sort(key=lambda session: session.last_used)
        for session in idle[: max(0, len(self._waiting) - len(self._evicting))]:
            self._evicting.add(session)
            self._tasks.spawn(self._evict(session), f"hibernate-{session.id}")

    async def _evict(self, session: Session) -> None:
        asleep = False
        try:
            asleep = await session.hibernate()
        finally:
            self._evicting.discard(session)
            if asleep:  # else a prompt came first
                self._holders.discard(session)
            self._settle()
