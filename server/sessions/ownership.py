"""Which sessions this node of the cluster owns: taken over, handed over, released.

Everything here follows from the tables, not from events: each round finds what an earlier one, or
another node, has left half done.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ..cluster.node import ClusterNode
from ..errors import DatabaseError, Error
from ..storage.schema import Statement
from .release import SessionReleaser

if TYPE_CHECKING:
    from .registry import SessionRegistry
    from .session import Session

logger = logging.getLogger(__name__)

COUNT_SECS = 2.0
WAITING = "waiting"
"""The event that tells the other nodes of released sessions in which turns wait."""


class SessionOwnership:
    """Keeps the sessions of a registry in accordance with the cluster's tables."""

    def __init__(self, sessions: SessionRegistry, node: ClusterNode) -> None:
        self._sessions = sessions
        self._node = node
        self._releaser = SessionReleaser(sessions, node)
        self._is_due = asyncio.Event()
        node.on_event[WAITING] = lambda _: self.notice()
        node.free_slots = lambda: sessions.slots.free

    def notice(self) -> None:
        """Tend the sessions now: something has changed."""
        self._is_due.set()

    async def run(self) -> None:
        """Tend the sessions at each beat, and when another node has released some; forever."""
        while True:
            self._is_due.clear()
            try:
                async with asyncio.timeout(self._node.beat_secs):
                    await self._is_due.wait()
            except TimeoutError:
                pass
            try:
                await self._node.bus.prove_listener()
                idle = await self.tend()
                if not self._node.is_draining:
                    await self._releaser.release_unused(idle)
            except (DatabaseError, Error) as error:
                logger.warning("the cluster's tables cannot be read: %s", error)

    async def count(self) -> None:
        """Read the number of open sessions on all nodes again and again, forever."""
        sessions = self._sessions
        while True:
            try:
                sessions.quotas.set_open_sessions(await sessions.queries.open_counts())
            except DatabaseError as error:
                logger.debug("open sessions cannot be counted: %s", error)
            await asyncio.sleep(COUNT_SECS)

    async def tend(self) -> list[str]:
        """Take over what is left of other nodes, once.

        Returns:
            The sessions of this node without unfinished work in the database.
        """
        await self._node.find_nodes()
        await self._node.take_over_sessions()
        owned = await self._node.owned_sessions()
        for session_id, has_work in owned:
            if (
                has_work
                and not self._node.is_draining
                and self._sessions.loaded(session_id) is None
            ):
                await self._look_up(session_id)
        if not self._node.is_draining:
            for session_id in await self._node.waiting_sessions():
                await self._look_up(session_id)
        return [session_id for session_id, has_work in owned if not has_work]

    async def _look_up(self, session_id: str) -> None:
        """Load a session, which recovers or adopts it."""
        try:
            await self._sessions.find(session_id)
        except Error:
            pass  # another node was faster; otherwise the next round tries again
        except Exception:
            logger.exception("a session cannot be taken over", extra={"session": session_id})

    async def hand_over(self, timeout: float) -> None:
        """Release all sessions. Running turns have *timeout* seconds to end."""
        self._node.is_draining = True
        await self._node.announce_draining()
        for session_id in tuple(self._sessions.uses.releasing):
            await self._sessions.uses.wait_released(session_id)
        # A session that is being loaded may take up a turn.
        await asyncio.gather(*self._sessions.loading.values(), return_exceptions=True)
        sessions = tuple(self._sessions.in_memory())
        await asyncio.gather(*(self._hand_over_one(session, timeout) for session in sessions))
        for session_id, _ in await self._node.owned_sessions():
            if (session := self._sessions.loaded(session_id)) is not None:
                await self._hand_over_one(session, timeout)
        await self._sessions.writer.commit([self._release_rest()])
        await self._node.notify_all(WAITING)

    async def _hand_over_one(self, session: Session, timeout: float) -> None:
        has_waiting = await session.succession.hand_over(timeout)
        await session.agent.end()
        await session.log.reach(session.log.last)
        self._sessions.hide(session.id)
        self._sessions.unhide(session.id)
        release = self._node.owner_statement(session.row.n, None)
        await self._sessions.writer.commit([release])
        if has_waiting:
            await self._node.notify_all(WAITING)

    def _release_rest(self) -> Statement:
        """The statement that releases the sessions that are not in memory."""
        return "UPDATE sessions SET owner = NULL WHERE owner = ?", (self._node.number,)
