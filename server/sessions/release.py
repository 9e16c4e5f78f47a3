"""Releases the sessions of a node that nothing on it needs, so that any node may claim them.

A session is released in a commit after everything that it has written. Until the outcome is known,
look-ups wait. Afterwards the session's object is no longer found; the clients that it still has
follow the log like those of other nodes. A node that is killed has released the session or not: in
the latter case the node that takes over frees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..cluster.node import ClusterNode
from ..errors import Error
from ..tasks import to_completion
from .released_log import ReleasedLog
from .tenure import TenureState

if TYPE_CHECKING:
    from .registry import SessionRegistry
    from .session import Session

logger = logging.getLogger(__name__)


class SessionReleaser:
    """Releases the sessions of a registry."""

    def __init__(self, sessions: SessionRegistry, node: ClusterNode) -> None:
        self._sessions = sessions
        self._node = node

    async def release_unused(self, without_work: Iterable[str]) -> None:
        """Release the sessions that no agent, turn or request of this node needs.

        Args:
            without_work: ids of sessions that this node owned just now, and in which the database
                has no unfinished work. Those among them that are not in memory are released, too.
        """
        sessions = self._sessions
        if any(map(self._is_unused, sessions.memory.all())):
            try:
                await sessions.writer.commit(())  # what they have written is stored before
                await to_completion(self._release_loaded())
            except Error as error:
                logger.info("idle sessions were not released: %s", error.message)
        unloaded = [known for known in without_work if self._is_unloaded(known)]
        if unloaded:
            await to_completion(self._release_unloaded(unloaded))
        sessions.uses.begin_round()

    def _is_unused(self, session: Session) -> bool:
        is_closing = session.is_closed and not session.is_log_complete
        return not (
            session.is_busy
            or session.agent.is_live
            or session.agent.is_in_use
            or self._sessions.slots.has_slot(session.agent, also_evicted=True)
            or session.turns.disk_refusal is not None
            or is_closing
            or session.is_reopening
            or session.row.removed_at is not None
            or not session.is_stored
            or session.fork_lock.locked()
            or session.details.lock.locked()
            or session.snapshots.lock.locked()
            or session.id in self._sessions.uses
        )

    def _is_unloaded(self, session_id: str) -> bool:
        sessions = self._sessions
        return not (
            sessions.memory.get(session_id) is not None
            or session_id in sessions.loading
            or session_id in sessions.uses
            or session_id in sessions.uses.releasing
            or sessions.memory.is_hidden(session_id)
        )

    async def _release_loaded(self) -> None:
        # A session may have been used while the commit before was carried out.
        chosen = [session for session in self._sessions.memory.all() if self._is_unused(session)]
        if not chosen:
            return
        with self._releasing(session.id for session in chosen):
            for session in chosen:
                session.tenure.move_to(TenureState.RELEASING)
                self._sessions.memory.forget(session.id)
            release = [self._node.owner_statement(session.row.n, None) for session in chosen]
            try:
                await self._sessions.writer.commit(release)
            except BaseException:
                for session in chosen:
                    session.tenure.move_to(TenureState.OWNED)
                    self._sessions.add(session)
                raise
            for session in chosen:
                session.tenure.move_to(TenureState.RELEASED)
                self._follow_next_owner(session)

    def _follow_next_owner(self, session: Session) -> None:
        """Let the clients of a released session see what its next owner writes."""
        session.snapshots.note_changed()
        assert self._sessions.remote is not None
        source = ReleasedLog(
            session.id,
            session.row.n,
            session.log,
            self._sessions.remote.follower,
            is_complete=session.is_log_complete,
        )
        session.log.release(source)

    async def _release_unloaded(self, ids: list[str]) -> None:
        with self._releasing(ids):
            await self._node.release(ids)

    @contextlib.contextmanager
    def _releasing(self, ids: Iterable[str]) -> Iterator[None]:
        """A block during which look-ups of these sessions wait."""
        releasing = self._sessions.uses.releasing
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        registered = dict.fromkeys(ids, done)
        releasing.update(registered)
        try:
            yield
        finally:
            for session_id in registered:
                del releasing[session_id]
            done.set_result(None)
