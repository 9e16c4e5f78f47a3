"""Deleting sessions with all their data, also across a kill of the server.

The first step stores that the deletion has begun. From then on the session is not found, and
the next server completes a deletion that was interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..cluster.membership import OtherNodeError
from ..codec import dumps
from ..errors import not_found
from ..storage import statements
from ..storage.schema import SessionRow, Statement
from ..tasks import to_completion

if TYPE_CHECKING:
    from .registry import SessionRegistry
    from .session import Session

logger = logging.getLogger(__name__)

_CLOSE_DETAIL = {"reason": "client"}
READERS_SECS = 2.0
"""The time for the readers of a purged session to receive its last entries."""

RemovalStep = Callable[[SessionRow, bool], Awaitable[None]]
"""Deletes data of a session outside of this package. It may be repeated after a kill. The flag says
whether the session was purged rather than kept for its time."""


class SessionRemover:
    """Deletes the sessions of a registry.

    Attributes:
        steps: the deletion of data that other packages keep.
    """

    def __init__(self, sessions: SessionRegistry) -> None:
        self.steps: list[RemovalStep] = []
        self._sessions = sessions
        self._removing: set[int] = set()

    async def resume(self) -> None:
        """Complete the deletions that were interrupted or have failed."""
        for row in await self._sessions.queries.removed_sessions():
            with self._sessions.uses.using(row.id):
                if row.n in self._removing or await self._claimed(row) is None:
                    continue
                try:
                    await self._remove(row, is_purge=True)
                except Exception:
                    logger.exception(
                        "a session cannot be deleted; the next sweep retries",
                        extra={"session": row.id, "app": row.app_name},
                    )

    async def _claimed(self, row: SessionRow) -> SessionRow | None:
        """The row as it is now; None if it is deleted, or another node has the session.

        The session must be in use here, so that it is not released after the claim.
        """
        sessions = self._sessions
        if sessions.cluster.number is None:
            return row
        await sessions.uses.wait_released(row.id)
        try:
            await sessions.cluster.claim(row.id)
        except OtherNodeError:
            return None
        return await sessions.queries.session(row.id)

    async def delete(self, row: SessionRow) -> None:
        """Delete a session that has been closed for its time, except its audit records.

        A session that is being read or has been reopened, or that another node of a cluster has, is
        skipped; a later sweep deletes it.
        """
        with self._sessions.uses.using(row.id):
            claimed = await self._claimed(row)
            # Another node may have opened it again since the query.
            if claimed is not None and claimed.closed_at == row.closed_at:
                await self._delete(claimed)

    async def _delete(self, row: SessionRow) -> None:
        session = self._sessions.memory.get(row.id)
        if row.id in self._sessions.loading or (session is not None and _is_in_use(session)):
            return
        self._sessions.memory.hide(row.id)
        try:
            await self._store_begin(row)
        except BaseException:
            self._sessions.memory.unhide(row.id)
            raise
        await self._remove(row, is_purge=False)

    async def purge(self, session: Session) -> bool:
        """Close *session* and delete it now, even if the caller is cancelled.

        Returns:
            False if it was closed already.

        Raises:
            Error: ``not_found``; it is being deleted.
        """
        loaded = self._sessions.memory.get(session.id)
        if session.row.removed_at is not None or loaded is not session:
            raise not_found()
        is_first = not session.is_closed
        await to_completion(self._purge(session))
        return is_first

    async def _purge(self, session: Session) -> None:
        row = session.row
        self._removing.add(row.n)
        await self._store_begin(row)
        try:
            await self._sessions.close(session, "client")
            await self._end_readers(session)
            async with session.fork_lock:
                pass
        except BaseException:
            self._removing.discard(row.n)  # the next sweep completes it
            raise
        await self._remove(row, is_purge=True)

    async def _store_begin(self, row: SessionRow) -> None:
        row.removed_at = self._sessions.clock()
        try:
            statement = statements.begin_removal(row.n, row.removed_at)
            await to_completion(self._sessions.writer.commit([statement]))
        except BaseException:
            row.removed_at = None
            self._removing.discard(row.n)
            raise

    async def _remove(self, row: SessionRow, *, is_purge: bool) -> None:
        """Delete the data of a closed session, and its row last."""
        sessions = self._sessions
        sessions.memory.hide(row.id)  # until its row is deleted, also if that fails now
        self._removing.add(row.n)
        try:
            await sessions.workspaces.delete_agent_data(row.id, Path(row.cwd))
            for step in self.steps:
                await step(row, is_purge)
            detail = dumps({"agent": row.agent, "turn_count": row.turn_count}).decode()
            now = sessions.clock()
            deletion = [
                *(await self._close(row, now) if row.closed_at is None else ()),
                *statements.delete_session(row.n, await sessions.queries.log_owners(row.n)),
                statements.insert_audit_event(row.id, row.app_name, "hard_delete", now, detail),
            ]
            await to_completion(sessions.writer.commit(deletion))
            sessions.memory.unhide(row.id)
        finally:
            self._removing.discard(row.n)

    async def _close(self, row: SessionRow, now: float) -> list[Statement]:
        """Raise the alert, and return the audit record, of the close that a kill has prevented."""
        queries = self._sessions.queries
        seq, turn_index = await queries.log_head(row.n), await queries.last_turn_index(row.n)
        row.closed_at, row.close_reason = now, "client"
        self._sessions.alerts.of_session(row, "session_closed", seq, turn_index, _CLOSE_DETAIL)
        detail = dumps({**_CLOSE_DETAIL, "turn_count": row.turn_count}).decode()
        return [statements.insert_audit_event(row.id, row.app_name, "close", now, detail)]

    async def _end_readers(self, session: Session) -> None:
        """Let the sockets and streams of a closed session receive its end, and end the others."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READERS_SECS):
                await session.log.wait_unread()
        session.log.mark_deleted()


def _is_in_use(session: Session) -> bool:
    """Whether a closed session is being read, forked, or opened again."""
    is_used = session.is_reopening or session.fork_lock.locked() or session.log.has_subscribers
    return is_used or not session.is_closed
