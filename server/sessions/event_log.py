"""A session's log: entries are durable before they are visible, and are read by position.

:meth:`SessionLog.append` numbers an entry and encodes it. The :class:`DatabaseWriter` commits it
with the entries of all sessions. After the commit :meth:`SessionLog.publish` adds the entries to
the log's ring, moves its head and notifies its subscribers. So a subscriber never sees an entry
that a killed server would lose.

A reader is a cursor: :meth:`LogReader.recent` returns the entries after a position from the ring,
:meth:`LogReader.read` falls back to the database. Replay, live updates and slow readers use the
same loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import DatabaseError, not_found, not_stored
from ..storage.queries import Queries
from ..storage.schema import LogRow
from ..storage.writer import DatabaseWriter
from . import entries
from .log_pages import Batch, LogLimits, PageCache

if TYPE_CHECKING:
    from .released_log import LogSource

logger = logging.getLogger(__name__)


class EventLogs:
    """The objects that all logs share: the writer, the page cache and the budget of the rings.

    Attributes:
        time_ns: returns unix nanoseconds, for the times of entries.
    """

    def __init__(
        self,
        writer: DatabaseWriter,
        queries: Queries,
        limits: LogLimits = LogLimits(),  # noqa: B008 - immutable
    ) -> None:
        self.writer = writer
        self.limits = limits
        self.pages = PageCache(queries, limits)
        self.rings = RingBudget(limits.rings_bytes)
        self.time_ns: Callable[[], int] = time.time_ns

    def open(
        self, number: int, head: int, on_change: Callable[[], None] = lambda: None
    ) -> SessionLog:
        """The log of a session.

        Args:
            number: of the session.
            head: the last stored position of its log.
            on_change: called after each entry that is not an event of the agent.
        """
        return SessionLog(self, number, head, on_change)


class LogReader:
    """The part of a session's log that readers use: its head, its recent entries and its pages.

    Attributes:
        head: position of the last visible entry.
    """

    def __init__(self, shared: EventLogs, number: int, head: int) -> None:
        self.head = head
        self._shared = shared
        self._limits = shared.limits
        self._number = number
        self._ring: deque[Batch] = deque()
        self._ring_bytes = 0
        self._subscribers: set[Callable[[], None]] = set()
        self._is_deleted = False
        self._unread: asyncio.Event | None = None

    @property
    def last(self) -> int:
        """The position of the last known entry, which may not be visible yet."""
        return self.head

    async def follow(
        self, after: int, idle: Callable[[], Awaitable[None]], *, idle_secs: float = 15
    ) -> AsyncIterator[Batch]:
        """All batches after a position: first the existing ones, then each new one, without end.

        Args:
            idle: called whenever there was no batch for *idle_secs*.
        """
        moved = asyncio.Event()
        self.subscribe(moved.set)
        try:
            while True:
                moved.clear()
                for batch in await self.read(after):
                    after = batch.last
                    yield batch
                if after >= self.head:
                    try:
                        async with asyncio.timeout(idle_secs):
                            await moved.wait()
                    except TimeoutError:
                        await idle()
        finally:
            self.unsubscribe(moved.set)

    async def reach(self, position: int) -> None:
        """Wait until the entry at *position* is durable.

        Raises:
            Error: ``internal``; the writer has ended, so the entry will never be durable.
        """
        if self.head >= position:
            return
        moved = asyncio.Event()
        self.subscribe(moved.set)
        try:
            while self.head < position:
                if self._shared.writer.is_over:
                    raise not_stored()
                moved.clear()
                await moved.wait()
        finally:
            self.unsubscribe(moved.set)

    @property
    def has_subscribers(self) -> bool:
        """Whether a socket or a stream follows the log."""
        return bool(self._subscribers)

    def subscribe(self, notify: Callable[[], None]) -> None:
        """Call *notify* whenever the head has moved."""
        self._subscribers.add(notify)

    def unsubscribe(self, notify: Callable[[], None]) -> None:
        """Stop calling *notify*. Without a subscriber the ring is dropped."""
        self._subscribers.discard(notify)
        if not self._subscribers:
            self.drop_ring()
            if self._unread is not None:
                self._unread.set()

    async def wait_unread(self) -> None:
        """Wait until no socket or stream follows the log."""
        self._unread = asyncio.Event()
        while self._subscribers:
            self._unread.clear()
            await self._unread.wait()

    def mark_deleted(self) -> None:
        """Note that the log is being deleted. Its readers get ``not_found``."""
        self._is_deleted = True
        self._notify()

    @property
    def is_deleted(self) -> bool:
        """Whether the log is being deleted."""
        return self._is_deleted

    @property
    def has_gone_back(self) -> bool:
        """Whether the database has lost entries of this log, so that nobody may follow it here."""
        return False

    def recent(self, after: int) -> list[Batch] | None:
        """The batches after a position from the ring; None if the ring begins later."""
        if after >= self.head:
            return []
        batches: list[Batch] = []
        for batch in reversed(self._ring):
            batches.append(batch)
            if batch.first <= after + 1:
                batches.reverse()
                batches[0] = batches[0].after(after)
                return batches
        return None

    async def read(self, after: int) -> list[Batch]:
        """The next batches after a position: all from the ring, or a page from the database.

        Raises:
            DatabaseError: the database cannot be read, or the log was deleted.
            Error: ``not_found``; the session is purged.
        """
        if self._is_deleted:
            raise not_found()
        batches = self.recent(after)
        if batches is not None:
            return batches
        batches = await self._shared.pages.read(self._number, after)
        if not batches:
            # The head is after *after*, so the log was deleted. Otherwise readers retry forever.
            raise DatabaseError("the log is deleted", is_transient=False)
        return batches

    def publish(self, rows: Sequence[LogRow]) -> None:
        """Make committed rows visible, and notify the subscribers.

        Without rows it only notifies: the writer has failed, which :meth:`reach` must notice.
        """
        try:
            self._extend_ring(rows)
        except Exception:
            logger.exception("the ring of a session's log failed; readers use the database")
            self.drop_ring()
        if rows:
            self.head = rows[-1].last_seq
        self._notify()

    def _extend_ring(self, rows: Sequence[LogRow]) -> None:
        if not self._subscribers:
            return
        for row in rows:
            self._ring.append(Batch(row.first_seq, row.last_seq, row.body))
            self._ring_bytes += len(row.body)
        limits = self._limits
        while len(self._ring) > 1 and (
            self._ring_bytes > limits.ring_bytes or len(self._ring) > limits.ring_batches
        ):
            self._ring_bytes -= len(self._ring.popleft().body)
        self._shared.rings.note(self, self._ring_bytes)

    def _notify(self) -> None:
        """Notify all subscribers; the failure of one does not affect the others."""
        for notify in tuple(self._subscribers):
            try:
                notify()
            except Exception:
                logger.exception("a subscriber of a session's log failed")

    def drop_ring(self) -> None:
        """Free the ring's memory; readers use the database."""
        self._ring.clear()
        self._ring_bytes = 0
        self._shared.rings.remove(self)


class ReleasedLogError(Exception):
    """An entry for the log of a session that this node has released: a defect of the server."""


class SessionLog(LogReader):
    """The log of a session that this process runs: it also has entries that are not committed yet.

    Args:
        on_change: called after each entry that is not an event of the agent.

    Attributes:
        time_ns: returns unix nanoseconds by the clock of the entries.
        source: the source of further entries, once another node of a cluster may write them.
    """

    def __init__(
        self, shared: EventLogs, number: int, head: int, on_change: Callable[[], None]
    ) -> None:
        super().__init__(shared, number, head)
        self._on_change = on_change
        self._writer = shared.writer
        self.time_ns = shared.time_ns
        self._next = head + 1
        self._pending: list[bytes] = []
        self.source: LogSource | None = None

    @property
    def last(self) -> int:
        """The position of the last appended entry, which may not be committed yet."""
        return self._next - 1

    # After the release of the session

    def release(self, source: LogSource) -> None:
        """Append nothing any more, and get further entries from *source* while anybody reads."""
        self.source = source
        if self._subscribers:
            source.start()

    def subscribe(self, notify: Callable[[], None]) -> None:
        is_first = not self._subscribers
        super().subscribe(notify)
        if is_first and self.source is not None:
            self.source.start()

    def unsubscribe(self, notify: Callable[[], None]) -> None:
        had_any = bool(self._subscribers)
        super().unsubscribe(notify)
        if had_any and not self._subscribers and self.source is not None:
            self.source.stop()

    def move_head(self, head: int) -> None:
        """Make the stored entries up to *head* visible, and notify the subscribers."""
        if head > self.head:
            self.drop_ring()
            self.head = head
            self._next = head + 1
        self._notify()

    # Entries of this node

    def append(self, kind: str, turn_index: int, fields: bytes) -> int:
        """Append an entry. It becomes visible when it is durable.

        Args:
            kind: the entry's ``type``.
            fields: the entry's own fields, JSON without the outer braces.

        Returns:
            The entry's position.

        Raises:
            ReleasedLogError: another node may append to it.
        """
        if self.source is not None:
            raise ReleasedLogError
        seq = self._next
        self._next += 1
        line = entries.entry(kind, seq, self.time_ns() // 1_000_000, turn_index, fields)
        self._pending.append(line)
        self._writer.gather(self, len(line))
        if kind != "event":
            self._on_change()
        return seq

    def take_pending(self) -> list[LogRow]:
        """Return the uncommitted entries as rows of limited size; they are the writer's now."""
        pending, self._pending = self._pending, []
        limits = self._limits
        first = self._next - len(pending)
        rows: list[LogRow] = []
        start = size = 0
        for index, line in enumerate(pending):
            size += len(line)
            count = index - start + 1
            is_full = size >= limits.row_bytes or count >= limits.row_entries
            if is_full or index == len(pending) - 1:
                body = b"\n".join(pending[start : index + 1])
                rows.append(LogRow(self._number, first + start, first + index, body))
                start, size = index + 1, 0
        return rows


class RingBudget:
    """The memory that the rings of all logs may use together.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._logs: OrderedDict[LogReader, int] = OrderedDict()
        self._bytes = 0

    def note(self, log: LogReader, size: int) -> None:
        """Note the size of a log's ring in bytes, and drop rings above the limit."""
        self.remove(log)
        self._logs[log] = size
        self._bytes += size
        while self._bytes > self._limit and len(self._logs) > 1:
            next(iter(self._logs)).drop_ring()

    def remove(self, log: LogReader) -> None:
        """Count a log's ring no longer."""
        self._bytes -= self._logs.pop(log, 0)
