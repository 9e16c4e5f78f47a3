"""The sessions in memory, by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from .session import Session


class LoadedSessions:
    """The sessions in memory, and the ids that no look-up may find.

    Only the cache keeps a session alive, but as long as anything refers to a session, a look-up
    must return the same object. A session may run a turn without being cached.
    """

    def __init__(self) -> None:
        self._loaded: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._cache: dict[str, Session] = {}
        self._hidden: set[str] = set()

    @property
    def cached(self) -> Mapping[str, Session]:
        """The sessions that stay in memory without being used, by their ids."""
        return self._cache

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._loaded

    def get(self, session_id: str) -> Session | None:
        """The session of that id if it is in memory; otherwise None."""
        return self._loaded.get(session_id)

    def all(self) -> list[Session]:
        """The sessions in memory, cached or not."""
        return list(self._loaded.values())

    def add(self, session: Session) -> None:
        """Let look-ups find a session."""
        self._loaded[session.id] = self._cache[session.id] = session

    def cache(self, session: Session) -> None:
        """Keep a session that is in memory, even if nothing uses it."""
        self._cache[session.id] = session

    def uncache(self, session_id: str) -> None:
        """Keep a session only as long as something uses it."""
        self._cache.pop(session_id, None)

    def forget(self, session_id: str) -> None:
        """Let look-ups load a session again."""
        self._loaded.pop(session_id, None)
        self._cache.pop(session_id, None)

    def hide(self, session_id: str) -> None:
        """Let no look-up find a session: it is being created, or deleted."""
        self._hidden.add(session_id)
        self.forget(session_id)

    def unhide(self, session_id: str) -> None:
        self._hidden.discard(session_id)

    def is_hidden(self, session_id: str) -> bool:
        return session_id in self._hidden

    def uncache_unused(self) -> None:
        """Let go of the stored sessions that have no subscriber, turn or agent."""
        for session_id, session in tuple(self._cache.items()):
            in_use = session.is_busy or session.subscribers or session.agent.is_live
            if session.is_stored and not in_use:
                del self._cache[session_id]
