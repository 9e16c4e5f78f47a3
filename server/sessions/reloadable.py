"""All sessions during a reload: suspended, packed, and restored by the next version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from ..reload.state import Inherited, PassedDescriptors
from ..storage.schema import SessionRow
from .context import SessionContext
from .prewarm import CarriedPrewarmed
from .session_continuation import CarriedSession

if TYPE_CHECKING:
    from .registry import SessionRegistry
    from .session import Session

logger = logging.getLogger(__name__)

SUSPEND_SECS = 2.0
"""The time for unfinished steps, such as a commit. Then the sessions are packed as they are."""
SUSPEND_POLL_SECS = 0.002


class CarriedSessions(msgspec.Struct, kw_only=True):
    """The sessions with a running agent or with unfinished work, for the next version."""

    sessions: list[CarriedSession]
    prewarmed: list[CarriedPrewarmed]


class ReloadableSessions:
    """A ``Carrier``: the sessions in memory."""

    name = "sessions"

    def __init__(self, registry: SessionRegistry, context: SessionContext) -> None:
        self._registry = registry
        self._context = context

    def is_settled(self) -> bool:
        registry = self._registry
        is_quiet = registry.closing.is_empty and registry.snapshots.is_idle
        loaded = registry.memory.all()
        return is_quiet and all(session.continuation.is_settled for session in loaded)

    async def freeze(self) -> None:
        registry = self._registry
        self._context.is_reloading = registry.slots.is_frozen = True
        for session in registry.memory.all():
            session.continuation.suspend()
        try:
            async with asyncio.timeout(SUSPEND_SECS):
                while not self._is_suspended():  # noqa: ASYNC110 - for milliseconds
                    await asyncio.sleep(SUSPEND_POLL_SECS)
        except TimeoutError:
            logger.warning("some sessions could not be suspended; their turns begin again")

    def _is_suspended(self) -> bool:
        return all(session.continuation.is_suspended for session in self._registry.memory.all())

    def thaw(self) -> None:
        registry = self._registry
        self._context.is_reloading = registry.slots.is_frozen = False
        for session in registry.memory.all():
            session.continuation.resume()
        registry.slots.reconsider()

    def pack(self, passed: PassedDescriptors) -> CarriedSessions:
        registry = self._registry
        needed = [session for session in registry.memory.all() if session.continuation.is_needed]
        return CarriedSessions(
            sessions=[session.continuation.pack() for session in needed],
            prewarmed=registry.prewarmer.pack(),
        )

    def children(self) -> Sequence[int]:
        return []

    async def recover(self, inherited: Inherited | None, rows: Iterable[SessionRow]) -> None:
        """Continue the sessions of an earlier version; end what others have left unfinished.

        Args:
            rows: the sessions with unfinished turns or requests.
        """
        carried = await self._restore_prewarmed(inherited) if inherited is not None else {}
        for row in rows:
            session = await self._registry.load(row)
            if (state := carried.pop(row.id, None)) is None:
                await session.succession.recover()
            else:
                await self._continue(session, state)
        for session_id, state in carried.items():
            stored = await self._registry.queries.session(session_id)
            if stored is not None and stored.closed_at is None:
                await self._continue(await self._registry.load(stored), state)
        for session_id in tuple(self._registry.snapshots.finished):  # those without other work
            if (restored := await self._registry.find(session_id)) is not None:
                await restored.succession.log_undo()
        backend = self._registry.backend
        backend.resume()
        await backend.end_unclaimed()

    async def _restore_prewarmed(self, inherited: Inherited) -> dict[str, CarriedSession]:
        """Restore the prewarmed agents. Return the packed sessions by their ids."""
        carried = inherited.part(self.name, CarriedSessions)
        if carried is None:
            return {}
        for agent in carried.prewarmed:
            await self._registry.prewarmer.restore(agent)
        return {session.id: session for session in carried.sessions}

    async def _continue(self, session: Session, carried: CarriedSession) -> None:
        """Continue a session, and close it if the earlier version was closing it."""
        await session.continuation.restore(carried)
        if carried.closing is not None:
            closing = self._close(session, carried.closing)
            self._registry.closing.spawn(closing, f"close-{session.id}")

    async def _close(self, session: Session, reason: str) -> None:
        await self._registry.close(session, reason)
