"""Notifies the followers of an app's list of sessions which sessions have changed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .remote_lists import ListedSession
    from .session import Session

logger = logging.getLogger(__name__)

DELAY_SECS = 0.02
"""Changes of this time are reported together: a turn changes its session several times at once."""

Notify = Callable[[Collection["Session | ListedSession"]], None]


class SessionChanges:
    """Gathers the changes of all sessions, and reports them to the followers of each app.

    An app without a follower costs nothing but a look-up.

    Attributes:
        on_followed: called when the apps may have changed whose changes on other nodes are wanted.
    """

    def __init__(self) -> None:
        self.on_followed: Callable[[], None] = lambda: None
        self._followers: defaultdict[str, set[Notify]] = defaultdict(set)
        self._local: defaultdict[str, set[Notify]] = defaultdict(set)
        self._changed: dict[str, dict[Session, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def follow(self, app_name: str, notify: Notify, *, is_local: bool = True) -> None:
        """Call *notify* with the app's sessions that may have changed, soon after the change.

        Args:
            is_local: whether it also wants the changes of other nodes of the cluster.
        """
        self._followers[app_name].add(notify)
        if is_local:
            self._local[app_name].add(notify)
            self.on_followed()

    def followed_apps(self) -> list[str]:
        """The apps whose changes on other nodes are wanted here."""
        return list(self._local)

    def report(self, app_name: str, sessions: Collection[ListedSession]) -> None:
        """Report changed sessions of another node."""
        for notify in tuple(self._local.get(app_name, ())):
            notify(sessions)

    def unfollow(self, app_name: str, notify: Notify) -> None:
        for by_app in (self._followers, self._local):
            by_app[app_name].discard(notify)
            if not by_app[app_name]:
                del by_app[app_name]
        self.on_followed()

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
