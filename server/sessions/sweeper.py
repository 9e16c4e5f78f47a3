"""The sweeper: closes idle sessions, deletes old ones, and hibernates idle agents."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ..cluster.membership import OtherNodeError
from ..errors import Error
from .announcement import Announcement
from .lifetime import is_idle
from .options import SessionOptions

if TYPE_CHECKING:
    from .registry import SessionRegistry

logger = logging.getLogger(__name__)

HIBERNATIONS_AT_ONCE = 8


class Sweeper:
    """Sweeps the sessions of a registry.

    Attributes:
        close_timeout: seconds that a round waits for sessions to close. Slower ones close in the
            background.
    """

    def __init__(self, sessions: SessionRegistry) -> None:
        self.close_timeout = 5.0
        self._sessions = sessions
        self._has_started_prewarming = False
        self._made_at = time.time()

    async def run(self, *others: Callable[[], Awaitable[None]]) -> None:
        """Sweep forever, and call *others* in each round; log failures and continue."""
        while True:
            if (
                not self._has_started_prewarming and self._sessions.cluster.number is None
            ):  # retried in the next round if the database fails
                await _log_failure(self._start_prewarming())
            await asyncio.sleep(self._sessions.settings.sweep_interval_secs)
            for sweep in (self.sweep, *others):
                await _log_failure(sweep())

    async def sweep(self) -> None:
        """Sweep once. A failure for one session does not affect the others."""
        sessions = self._sessions
        now = sessions.clock()
        await _log_failure(self._close_idle(now))
        await _log_failure(self._delete_closed(now))
        await _log_failure(self._hibernate_idle(now))
        if sessions.cluster.number is not None:
            await _log_failure(self._delete_unfinished())
        sessions.unload_unused()
        sessions.quotas.forget_idle_apps()
        sessions.prewarmer.fill()
        if (groups := sessions.backend.sandbox.groups) is not None:
            await _log_failure(asyncio.to_thread(groups.remove_empty))

    async def _start_prewarming(self) -> None:
        sessions = self._sessions
        prewarmed = set(await sessions.queries.prewarmed())
        making = set(sessions.prewarmer.making)
        # Last: a fork whose row was stored since the first query is a session now.
        known = await sessions.queries.all_session_ids()
        sessions.prewarmer.start(sorted(prewarmed - making - known), await self._recent())
        self._has_started_prewarming = True
        await self._remove_empty_folders(prewarmed)

    async def _recent(self) -> list[Announcement]:
        """The announcements of the newest sessions of the default agent, the oldest first."""
        sessions, count = self._sessions, self._sessions.prewarmer.missing
        if not count:
            return []
        try:
            agent = await sessions.agents.choose(None)
        except Error:  # none is installed
            return []
        stored = await sessions.queries.newest_options(agent, count)
        options = map(SessionOptions.decode, reversed(stored))
        return [Announcement.of(option) for option in options if not option.has_agent_options]

    async def _delete_unfinished(self) -> None:
        """Delete what nodes of the cluster that have ended were making: forks and worktrees."""
        sessions = self._sessions
        await sessions.prewarmer.delete_data(await sessions.queries.prewarmed())

    async def _remove_empty_folders(self, prewarmed: set[str]) -> None:
        """Remove the folders of the sessions that a killed server was about to store."""
        workspaces = self._sessions.workspaces
        names = await asyncio.to_thread(workspaces.folder_names)
        unknown = set(names) - await self._sessions.queries.all_session_ids() - prewarmed
        await asyncio.to_thread(workspaces.remove_empty, unknown, self._made_at)

    async def _close_idle(self, now: float) -> None:
        """Close the sessions that have been idle for their time.

        Slow closes continue in the background: on a full disk every close waits for space, which
        the rest of the round may free.
        """
        closing = []
        default = self._sessions.settings.session_ttl_secs
        for session_id in await self._sessions.queries.idle_sessions(now, default):
            close = _log_failure(self._close_if_idle(session_id, now), session=session_id)
            closing.append(self._sessions.closing.spawn(close, f"close-idle-{session_id}"))
            await asyncio.sleep(0)  # one per iteration of the event loop
        if closing:
            await asyncio.wait(closing, timeout=self.close_timeout)

    async def _close_if_idle(self, session_id: str, now: float) -> None:
        try:
            session = await self._sessions.find(session_id)
        except OtherNodeError:
            return  # its own node closes it
        if session is None or session.is_closed or session.is_busy:
            return
        # A turn may have run since the query.
        if is_idle(session.row, self._sessions.settings, now):
            await self._sessions.close(session, "idle")

    async def _delete_closed(self, now: float) -> None:
        remover, default = self._sessions.remover, self._sessions.settings.session_hard_ttl_secs
        await remover.resume()
        for row in await self._sessions.queries.expired_sessions(now, default):
            await _log_failure(remover.delete(row), session=row.id, app=row.app_name)

    async def _hibernate_idle(self, now: float) -> None:
        """Hibernate idle agents; some of them earlier, to free slots for prewarmed agents."""
        settings, slots = self._sessions.settings, self._sessions.slots
        idle_secs = settings.agent_idle_secs
        unused_secs = min(idle_secs, settings.sweep_interval_secs)
        count = max(
            len(slots.idle_since(now - idle_secs)), self._sessions.prewarmer.missing - slots.free
        )
        unused = slots.idle_since(now - unused_secs)[:count]
        for start in range(0, len(unused), HIBERNATIONS_AT_ONCE):
            holders = unused[start : start + HIBERNATIONS_AT_ONCE]
            await asyncio.gather(
                *(_log_failure(holder.hibernate(), session=holder.id) for holder in holders)
            )


async def _log_failure(work: Awaitable[object], **about: str) -> None:
    """Await *work*; log its failure with the session and the app, and continue."""
    try:
        await work
    except Exception:
        logger.exception("the sweeper failed; it goes on", extra=about)
