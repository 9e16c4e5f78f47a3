"""The app's list of sessions as one client knows it, and the frames that keep it current."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

from ..codec import dumps
from ..sessions.registry import SessionRegistry
from ..sessions.remote_lists import ListedSession
from ..sessions.session import Session
from . import protocol

UNLISTED = frozenset({"head", "sockets", "unread"})
"""Fields that change without a new frame: they change with every entry of the log. A change of the
read mark, which also changes ``unread``, has a frame."""


class ListFollower:
    """The app's open sessions, as one client knows them.

    Args:
        fields: the fields of a session's state that the client wants besides ``session_id``; None
            if it wants all.
        wake: called when :meth:`take` has new frames.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        app_name: str,
        fields: frozenset[str] | None,
        wake: Callable[[], None],
    ) -> None:
        self._sessions = sessions
        self._app_name = app_name
        self._fields = fields
        self._wake = wake
        self._changed: dict[Session | ListedSession, None] = {}
        # The session's id, and a hash of the fields that the client has.
        self._known: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Whether :meth:`take` has frames, unless nothing that the client sees has changed."""
        return bool(self._changed)

    async def open(self) -> bytes:
        """Follow the list, and return the ``ready`` frame."""
        self._sessions.changes.follow(self._app_name, self._note_changed)
        views = [view async for view in self._views()]
        return protocol.frame("ready", protocol=protocol.PROTOCOL, sessions=views)

    def close(self) -> None:
        self._sessions.changes.unfollow(self._app_name, self._note_changed)

    def take(self, is_subscribed: Callable[[str], bool] = lambda _: False) -> list[bytes]:
        """Return the frames for all changes since the last call.

        Args:
            is_subscribed: tells of which sessions the end is not reported here, because the client
                has not received all of their entries yet.
        """
        changed, self._changed = self._changed, {}
        frames = []
        for session in changed:
            if not session.is_closed:
                if (view := self._changed_view(session)) is not None:
                    frames.append(protocol.frame("session", session=view))
            elif session.id in self._known and not is_subscribed(session.id):
                frames.append(self.remove(session.id))
        return frames

    def remove(self, session_id: str) -> bytes:
        """Remove a session that was closed or deleted, and return its last frame."""
        self._known.pop(session_id, None)
        return protocol.frame("session_gone", session_id=session_id)

    def _note_changed(self, sessions: Collection[Session | ListedSession]) -> None:
        self._changed.update(dict.fromkeys(sessions))
        self._wake()

    async def _views(self) -> AsyncIterator[dict[str, Any]]:
        async for session in self._sessions.listing.open_sessions(self._app_name):
            if (view := self._changed_view(session)) is not None:
                yield view

    def _changed_view(self, session: Session | ListedSession) -> dict[str, Any] | None:
        """Return the session's state, or None if the client knows it."""
        state = session.view()
        view = self._selected_fields(state)
        listed = {name: value for name, value in view.items() if name not in UNLISTED}
        if "unread" in view:
            listed["unread"] = state["head"] - state["unread"]
        digest = hash(dumps(listed))
        if self._known.get(session.id) == digest:
            return None
        self._known[session.id] = digest
        return view

    def _selected_fields(self, view: Mapping[str, Any]) -> dict[str, Any]:
        fields = self._fields
        return {
            name: value
            for name, value in view.items()
            if fields is None or name in fields or name == "session_id"
        }
