"""Lists of an app's sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ..errors import Error
from .session import Session

if TYPE_CHECKING:
    from .registry import SessionRegistry

LIST_PAGE = 50
"""Rows that a listing reads at once."""


class SessionListing:
    """Lists the sessions of a registry."""

    def __init__(self, sessions: SessionRegistry) -> None:
        self._sessions = sessions

    async def open_sessions(self, app_name: str) -> AsyncIterator[Session]:
        """The app's open sessions, the newest first, read page by page."""
        before: int | None = None
        while rows := await self._sessions.queries.session_page(
            app_name, before=before, limit=LIST_PAGE, cwd=None, include_closed=False
        ):
            for row in rows:
                before = row.n
                session = await self._sessions.find(row.id)
                if session is not None and not session.is_closed:
                    yield session

    async def views(self, app_name: str, *, include_closed: bool) -> AsyncIterator[dict[str, Any]]:
        """The states of the app's sessions, the newest first, read page by page."""
        before: int | None = None
        while rows := await self._sessions.queries.session_page(
            app_name, before=before, limit=LIST_PAGE, cwd=None, include_closed=include_closed
        ):
            for row in rows:
                before = row.n
                session = await self._sessions.for_listing(row)
                if session is not None and (include_closed or not session.is_closed):
                    yield session.view()

    async def sessions(self, app_name: str, *, include_closed: bool) -> list[Session]:
        """The app's sessions, the newest first."""
        rows = await self._sessions.queries.sessions(app_name, include_closed=include_closed)
        found = []
        for row in rows:
            try:
                found.append(await self._sessions.get(row.id, app_name))
            except Error:
                continue  # deleted since the query
        return [session for session in found if include_closed or not session.is_closed]
