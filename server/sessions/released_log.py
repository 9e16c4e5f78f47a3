"""The log of a session that this node has released, for the clients that it still has here."""

from __future__ import annotations

from typing import Protocol

from .event_log import SessionLog
from .followed_log import FollowedLog, LogFollower


class LogSource(Protocol):
    """The source of a log's entries after its session was released."""

    @property
    def is_complete(self) -> bool:
        """Whether ``session_closed`` is the last entry."""

    def start(self) -> None:
        """Bring the log up to date, from now until :meth:`stop`."""

    def stop(self) -> None: ...


class ReleasedLog:
    """A :class:`LogSource`: follows the log as nodes do that do not own the session.

    Args:
        log: of the released session. Its clients read it as before.
        is_complete: whether ``session_closed`` is its last entry.
    """

    def __init__(
        self,
        session_id: str,
        number: int,
        log: SessionLog,
        follower: LogFollower,
        *,
        is_complete: bool,
    ) -> None:
        self.is_complete = is_complete
        self._session_id = session_id
        self._number = number
        self._log = log
        self._follower = follower
        self._followed: FollowedLog | None = None

    def start(self) -> None:
        log = self._follower.open(self._number, self._log.head, is_complete=self.is_complete)
        self._followed = log
        log.subscribe(self._copy)
        self._follower.follow(self._session_id, log, None)
        self._copy()

    def stop(self) -> None:
        if (log := self._followed) is not None:
            self._followed = None
            log.unsubscribe(self._copy)
            self._follower.unfollow(log)

    def _copy(self) -> None:
        """Let the clients of the log read what the followed one has."""
        if (followed := self._followed) is None:
            return
        self.is_complete = followed.is_complete
        if followed.is_deleted:
            self._log.mark_deleted()
        self._log.move_head(followed.head)
