"""Which sessions this node of the cluster owns: taken over, handed over, released.

Everything here follows from the tables, not from events: each round finds what an earlier one, or
another node, has left half done.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
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

        If the database takes nothing more from this node, another one takes the sessions over.
        """
        try:
            await self._hand_over_all(timeout)
        except (DatabaseError, Error) as error:
            logger.error("the sessions of this node were not handed over: %s", error)

    async def _hand_over_all(self, timeout: float) -> None:
        self._node.is_draining = True
        await self._node.announce_draining()
        for session_id in tuple(self._sessions.uses.releasing):
            await self._sessions.uses.wait_released(session_id)
        # A session that is being loaded may take up a turn.
        await asyncio.gather(*self._sessions.loading.values(), return_exceptions=True)
        sessions = tuple(self._sessions.memory.all())
        await asyncio.gather(*(self._hand_over_one(session, timeout) for session in sessions))
        for session_id, _ in (await self._node.look()).owned:
            if (session := self._sessions.memory.get(session_id)) is not None:
                await self._hand_over_one(session, timeout)
        await self._sessions.writer.commit([self._release_rest()])
        await self._node.notify_all(WAITING)

    async def _hand_over_one(self, session: Session, timeout: float) -> None:
        has_waiting = await session.succession.hand_over(timeout)
        await session.agent.end()
        await session.log.reach(session.log.last)
        self._sessions.memory.hide(session.id)
        self._sessions.memory.unhide(session.id)
        release = self._node.owner_statement(session.row.n, None)
        await self._sessions.writer.commit([release])
        if has_waiting:
            await self._node.notify_all(WAITING)

    def _release_rest(self) -> Statement:
        """The statement that releases the sessions that are not in memory."""
        return "UPDATE sessions SET owner = NULL WHERE owner = ?", (self._node.number,)
