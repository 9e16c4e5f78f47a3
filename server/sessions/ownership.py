"""Which sessions this node of the cluster owns: taken over, handed over, released.

Everything here follows from the tables, not from events: each round finds what an earlier one, or
another node, has left half done.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from ..cluster.node import ClusterNode
from ..errors import DatabaseError, Error
from ..storage.schema import Statement
from .release import SessionReleaser

if TYPE_CHECKING:
    from .registry import SessionRegistry
    from .session import Session

logger = logging.getLogger(__name__)

ROUND_SECS = 0.8
"""The longest time between two looks at the tables: a revocation that no notification has reported
takes effect within a second."""
PROOF_ROUNDS = 3
"""The connection for notifications is tried once in so many rounds."""
LOOK_UPS_AT_ONCE = 8
STORE_SECS = 10.0
"""The time for which a node that stops waits at least for a database that is out of reach."""
STORE_AGAIN_SECS = 0.2
COUNT_SECS = 4.0
WAITING = "waiting"
"""The event that tells the other nodes of released sessions in which turns wait."""


class SessionOwnership:
    """Keeps the sessions of a registry in accordance with the cluster's tables."""

    def __init__(self, sessions: SessionRegistry, node: ClusterNode) -> None:
        self._sessions = sessions
        self._node = node
        self._releaser = SessionReleaser(sessions, node)
        self._is_due = asyncio.Event()
        node.on_event[WAITING] = lambda _: self.run_soon()
        node.free_slots = lambda: sessions.slots.free

    def run_soon(self) -> None:
        """Begin a round now: something has changed."""
        self._is_due.set()

    async def run(self) -> None:
        """Begin rounds, and one when another node has released sessions; forever."""
        for number in itertools.count():
            self._is_due.clear()
            try:
                async with asyncio.timeout(min(self._node.beat_secs, ROUND_SECS)):
                    await self._is_due.wait()
            except TimeoutError:
                pass
            try:
                if number % PROOF_ROUNDS == 0:
                    await self._node.bus.prove_listener()
                await self._node.bus.sweep()
                idle = await self.take_over_work()
                if not self._node.is_draining:
                    await self._releaser.release_unused(idle)
            except (DatabaseError, Error) as error:
                logger.warning("the cluster's tables cannot be read: %s", error)

    async def count_sessions(self) -> None:
        """Read the number of open sessions on all nodes again and again, forever."""
        sessions = self._sessions
        while True:
            try:
                sessions.quotas.set_open_sessions(await sessions.queries.open_counts())
            except DatabaseError as error:
                logger.debug("open sessions cannot be counted: %s", error)
            await asyncio.sleep(COUNT_SECS)

    async def take_over_work(self) -> list[str]:
        """Take over what is left of other nodes, once.

        Returns:
            The sessions of this node without unfinished work in the database.
        """
        state = await self._node.look()
        if state.has_orphans:
            await self._node.take_over_sessions()
            state = await self._node.look()
        if not self._node.is_draining:
            left = [session_id for session_id, has_work in state.owned if has_work]
            await self._look_up_all(
                [*(one for one in left if one not in self._sessions.memory), *state.waiting]
            )
        return [session_id for session_id, has_work in state.owned if not has_work]

    async def _look_up_all(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), LOOK_UPS_AT_ONCE):
            several = ids[start : start + LOOK_UPS_AT_ONCE]
            await asyncio.gather(*(self._look_up(session_id) for session_id in several))

    async def _look_up(self, session_id: str) -> None:
        """Load a session, which ends or continues what was left in it."""
        try:
            await self._sessions.find(session_id)
        except Error:
            pass  # another node was faster; otherwise the next round tries again
        except Exception:
            logger.exception("a session cannot be taken over", extra={"session": session_id})

    async def hand_over(self, timeout: float) -> None:
        """Release all sessions. Running turns have *timeout* seconds to end.

        For as long it also waits for a database that is out of reach. Sessions that it cannot
        release are taken over by another node.
        """
        self._node.is_draining = True
        try:
            await self._hand_over_all(timeout, time.monotonic() + max(timeout, STORE_SECS))
        except (DatabaseError, Error) as error:
            logger.error("not all sessions were handed over; others take them over: %s", error)

    async def _hand_over_all(self, timeout: float, deadline: float) -> None:
        await self._until_stored(self._node.announce_draining, deadline)
        for session_id in tuple(self._sessions.uses.releasing):
            await self._sessions.uses.wait_released(session_id)
        # A session that is being loaded may take up a turn.
        await asyncio.gather(*self._sessions.loading.values(), return_exceptions=True)
        await self._hand_over_several(self._sessions.memory.all(), timeout, deadline)
        owned = (await self._node.look()).owned
        rest = [one for name, _ in owned if (one := self._sessions.memory.get(name)) is not None]
        await self._hand_over_several(rest, timeout, deadline)
        await self._release([self._release_rest()], deadline)
        await self._node.notify_all(WAITING)

    async def _hand_over_several(
        self, sessions: Sequence[Session], timeout: float, deadline: float
    ) -> None:
        """Hand sessions over at the same time. A failure for one does not affect the others."""
        results = await asyncio.gather(
            *(self._hand_over_one(session, timeout, deadline) for session in sessions),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _hand_over_one(self, session: Session, timeout: float, deadline: float) -> None:
        has_waiting = await session.succession.hand_over(timeout)
        await session.agent.end()
        await session.log.reach(session.log.last)
        self._sessions.memory.hide(session.id)
        self._sessions.memory.unhide(session.id)
        await self._release([self._node.owner_statement(session.row.n, None)], deadline)
        if has_waiting:
            await self._node.notify_all(WAITING)

    async def _release(self, statements: Sequence[Statement], deadline: float) -> None:
        await self._until_stored(lambda: self._sessions.writer.commit(statements), deadline)

    async def _until_stored(self, store: Callable[[], Awaitable[None]], deadline: float) -> None:
        """Change the database, and try again while it is out of reach.

        Args:
            deadline: on the monotonic clock. Afterwards the error of the last attempt is raised.
        """
        while True:
            try:
                return await store()
            except (DatabaseError, Error):
                if self._sessions.writer.is_over or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(STORE_AGAIN_SECS)

    def _release_rest(self) -> Statement:
        """The statement that releases the sessions that are not in memory."""
        return "UPDATE sessions SET owner = NULL WHERE owner = ?", (self._node.number,)
