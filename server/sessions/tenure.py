"""Whether this node of a cluster has a session: the states of its release, and what prevents it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

from ..limits import decrement
from ..states import Transitions


class TenureState(enum.Enum):
    """The states of a session in the memory of a server. Without a cluster it stays OWNED."""

    OWNED = "owned"
    """This server runs the session whenever it has work."""
    RELEASING = "releasing"
    """The release is being stored. Look-ups wait for its outcome."""
    RELEASED = "released"
    """Any node may claim the session. This object only shows its log to the clients that it has."""


TENURE_TRANSITIONS: Transitions[TenureState] = {
    TenureState.OWNED: {TenureState.RELEASING},
    TenureState.RELEASING: {TenureState.OWNED, TenureState.RELEASED},
    TenureState.RELEASED: set(),
}


class UseScope:
    """A request, which uses the sessions that it looks up until it ends."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.is_over = False


_use_scope: ContextVar[UseScope | None] = ContextVar("use-scope", default=None)


class SessionUses:
    """The sessions that requests and commands use, by their ids. None of them is released.

    Attributes:
        releasing: done when a release has been stored or has failed, by the id of the session.
    """

    def __init__(self) -> None:
        self.releasing: dict[str, asyncio.Future[None]] = {}
        self._counts: Counter[str] = Counter()
        self._recent: set[str] = set()

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._counts or session_id in self._recent

    async def wait_released(self, session_id: str) -> None:
        """Wait until no release of the session is in progress."""
        while (release := self.releasing.get(session_id)) is not None:
            await asyncio.wait({release})

    @contextlib.contextmanager
    def using(self, session_id: str) -> Iterator[None]:
        """A block in which a session is in use."""
        self._counts[session_id] += 1
        try:
            yield
        finally:
            decrement(self._counts, session_id)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """A block until whose end the sessions are in use that are looked up in it."""
        scope = UseScope()
        token = _use_scope.set(scope)
        try:
            yield
        finally:
            scope.is_over = True
            _use_scope.reset(token)
            for session_id in scope.ids:
                decrement(self._counts, session_id)

    def note_lookup(self, session_id: str) -> None:
        """Note that a session was looked up, perhaps in a scope."""
        self._recent.add(session_id)
        scope = _use_scope.get()
        if scope is not None and not scope.is_over and session_id not in scope.ids:
            scope.ids.add(session_id)
            self._counts[session_id] += 1

    def begin_round(self) -> None:
        """Forget what was looked up before; a look-up since the last round delays a release."""
        self._recent.clear()
