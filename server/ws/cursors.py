"""The sessions whose entries one socket sends: a cursor in the log of each."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import DatabaseError
from ..sessions.remote_session import ViewedSession
from . import framing

TURN_BYTES = 64 << 10
"""After this many bytes of one session, the next session has its turn."""


class SessionCursor:
    """The position of one client in the log of one session.

    It is itself the subscriber of the log: a bound method for each session would take more memory
    than the cursor.

    Args:
        position: of the last entry that the client has.
        on_due: called with this object when the log has new entries.
    """

    __slots__ = ("_on_due", "is_held", "position", "session")

    def __init__(
        self, session: ViewedSession, position: int, on_due: Callable[[SessionCursor], None]
    ) -> None:
        self.session = session
        self.position = position
        self.is_held = False
        self._on_due = on_due

    def start(self) -> None:
        self.session.subscribers += 1
        self.session.log.subscribe(self)
        if self.is_behind or self.is_at_end:
            self._on_due(self)

    def stop(self) -> None:
        self.session.log.unsubscribe(self)
        self.session.subscribers -= 1

    def __call__(self) -> None:
        self._on_due(self)

    @property
    def is_behind(self) -> bool:
        """Whether the log has entries that the client does not have."""
        return self.position < self.session.log.head

    @property
    def is_at_end(self) -> bool:
        """Whether the client has every entry of a closed session."""
        return self.session.is_log_complete and self.position >= self.session.log.last

    async def read(self, limit: int) -> list[bytes]:
        """Return the WebSocket frames of the next entries, and move to the last of them.

        Args:
            limit: bytes after which no further batch is added.
        """
        if not self.is_behind:
            return []
        frames: list[bytes] = []
        size = 0
        for batch in await self.session.log.read(self.position):
            frames.append(framing.addressed_frames(batch, self.session.id))
            self.position = batch.last
            size += len(frames[-1])
            if size >= limit:
                break
        return frames


class SessionCursors:
    """The sessions that one socket follows. Sessions with new entries are served in turn.

    Args:
        wake: called when a session has new entries.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._on_due = self._set_due  # one bound method for all cursors
        self._cursors: dict[str, SessionCursor] = {}
        self._due: dict[SessionCursor, None] = {}

    def __len__(self) -> int:
        return len(self._cursors)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._cursors

    @property
    def is_due(self) -> bool:
        """Whether a session has entries to send."""
        return bool(self._due)

    @property
    def lag(self) -> int:
        """The most entries of one session that are yet unsent."""
        cursors = self._cursors.values()
        return max((cursor.session.log.head - cursor.position for cursor in cursors), default=0)

    def add(self, session: ViewedSession, position: int) -> None:
        """Follow *session* from a position; from there again if it is followed already."""
        self.remove(session.id)
        cursor = self._cursors[session.id] = SessionCursor(session, position, self._on_due)
        cursor.start()

    def remove(self, session_id: str) -> None:
        """Follow a session no longer, if it is followed."""
        cursor = self._cursors.pop(session_id, None)
        if cursor is not None:
            cursor.stop()
            self._due.pop(cursor, None)

    def hold(self, session_id: str, is_held: bool) -> None:
        """Send no entries of a session for a moment, or send them again."""
        cursor = self._cursors.get(session_id)
        if cursor is None:
            return
        cursor.is_held = is_held
        if is_held:
            self._due.pop(cursor, None)
        elif cursor.is_behind or cursor.is_at_end:
            self._set_due(cursor)

    def clear(self) -> None:
        for session_id in tuple(self._cursors):
            self.remove(session_id)

    async def read(self, limit: int) -> tuple[list[bytes], list[str]]:
        """Return the next frames, about *limit* bytes of them, and the sessions that have ended.

        An ended session is followed no longer.
        """
        frames: list[bytes] = []
        ended: list[str] = []
        size = 0
        while self._due and size < limit:
            cursor = next(iter(self._due))
            del self._due[cursor]
            try:
                new = await cursor.read(TURN_BYTES)
            except DatabaseError as error:
                if error.is_transient:
                    raise
                new, is_deleted = [], True
            else:
                is_deleted = False
            frames += new
            size += sum(map(len, new))
            if self._cursors.get(cursor.session.id) is not cursor:
                continue  # removed or replaced during the read
            if cursor.is_behind and not is_deleted:
                self._set_due(cursor)
            elif is_deleted or cursor.is_at_end:
                self.remove(cursor.session.id)
                ended.append(cursor.session.id)
        return frames, ended

    def _set_due(self, cursor: SessionCursor) -> None:
        if not cursor.is_held:
            self._due[cursor] = None
            self._wake()
