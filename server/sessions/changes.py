"""Tells the followers of an app's list of sessions which sessions have changed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session

logger = logging.getLogger(__name__)

DELAY_SECS = 0.02
"""Changes of this time are reported together: a turn changes its session several times at once."""

Notify = Callable[[Collection["Session"]], None]


class SessionChanges:
    """Gathers the changes of all sessions, and reports them to the followers of each app.

    An app without a follower costs nothing but a look-up.
    """

    def __init__(self) -> None:
        self._followers: defaultdict[str, set[Notify]] = defaultdict(set)
        self._changed: dict[str, dict[Session, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def follow(self, app_name: str, notify: Notify) -> None:
        """Call *notify* with the app's sessions that may have changed, soon after the change."""
        self._followers[app_name].add(notify)

    def unfollow(self, app_name: str, notify: Notify) -> None:
        followers = self._followers[app_name]
        followers.discard(notify)
        if not followers:
            del self._followers[app_name]

    def add(self, session: Session) -> None:
        """Report that *session* was opened or closed, or that its state may have changed."""
        app_name = session.row.app_name
        if app_name not in self._followers:
            return
        self._changed.setdefault(app_name, {})[session] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_SECS, self._report)

    def _report(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        for app_name, sessions in changed.items():
            for notify in tuple(self._followers.get(app_name, ())):
                try:
                    notify(sessions)
                except Exception:
                    logger.exception("a follower of the list of sessions failed")
