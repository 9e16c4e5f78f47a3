"""Lists of an app's sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from ..errors import Error
from ..storage.schema import SessionRow
from .remote_lists import ListedSession
from .session import Session

if TYPE_CHECKING:
    from .registry import SessionRegistry

LIST_PAGE = 50
"""Rows that a listing reads at once."""
OPEN = frozenset({"idle", "running"})


class SessionFilter(msgspec.Struct, frozen=True):
    """The sessions that a list contains.

    Attributes:
        states: ``idle``, ``running`` and ``closed``, or some of them.
        title: a text in the title, or None.
    """

    states: frozenset[str] = OPEN
    title: str | None = None


class SessionListing:
    """Lists the sessions of a registry."""

    def __init__(self, sessions: SessionRegistry) -> None:
        self._sessions = sessions

    async def open_sessions(self, app_name: str) -> AsyncIterator[Session | ListedSession]:
        """The app's open sessions, the newest first, read page by page."""
        before: int | None = None
        while rows := await self._sessions.queries.session_page(
            app_name, before=before, limit=LIST_PAGE, cwd=None, include_closed=False
        ):
            before = rows[-1].n
            async for session in self._sessions_of(rows):
                if not session.is_closed:
                    yield session

    async def close_all(self, app_name: str, reason: str) -> int:
        """Close the app's open sessions. Returns their number."""
        closed = 0
        while sessions := await self.sessions(app_name, include_closed=False):
            results = await asyncio.gather(
                *(self._sessions.close(session, reason) for session in sessions)
            )
            closed += sum(results)
        return closed

    async def page(
        self, app_name: str, wanted: SessionFilter, *, before: int | None, limit: int | None
    ) -> AsyncIterator[Session | ListedSession]:
        """The sessions that match, the newest first, read page by page.

        Args:
            before: only sessions with smaller numbers.
            limit: the number of sessions; None for all.
        """
        while limit is None or limit > 0:
            rows = await self._sessions.queries.session_page(
                app_name,
                before=before,
                limit=LIST_PAGE if limit is None else min(LIST_PAGE, limit),
                include_closed="closed" in wanted.states,
                include_open=wanted.states != {"closed"},
                title=wanted.title,
            )
            if not rows:
                return
            before = rows[-1].n
            async for session in self._sessions_of(rows):
                if session.state_name in wanted.states:
                    yield session
                    limit = None if limit is None else limit - 1

    async def _sessions_of(
        self, rows: Sequence[SessionRow]
    ) -> AsyncIterator[Session | ListedSession]:
        if self._sessions.remote is not None:
            async for listed in self._sessions.remote.lists.listed(rows):
                yield listed
            return
        for row in rows:
            session = await self._sessions.listed_session(row)
            if session is not None:
                yield session

    async def sessions(self, app_name: str, *, include_closed: bool) -> list[Session]:
        """The app's sessions, the newest first."""
        rows = await self._sessions.queries.sessions(app_name, include_closed=include_closed)
        sessions = []
        for row in rows:
            try:
                sessions.append(await self._sessions.get(row.id, app_name))
            except Error:
                continue  # deleted since the query
        return [session for session in sessions if include_closed or not session.is_closed]
