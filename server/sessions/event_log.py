"""The session's log: durable before visible, and read by position.

Down one way: :meth:`SessionLog.append` numbers an entry and frames it; the
:class:`DatabaseWriter` commits whatever has gathered while its last transaction
ran, of all sessions at once; only then do the entries join the log's ring, the
head moves and the watchers are told. So no reader can see what a killed server
would forget, and the cost of a commit is shared by all that wait for it.

A reader is a position: :meth:`SessionLog.recent` gives what the ring has after
it, :meth:`SessionLog.read` falls back to the database. Replay, live and slow
are the same loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from ..errors import Error, not_stored
from ..metrics import Metrics
from ..storage import database as store
from ..storage.database import Database, DatabaseError, Statement
from ..storage.schema import LogRow
from ..tasks import Supervisor, Tasks
from . import entries

logger = logging.getLogger(__name__)

RING_BYTES = 1 << 20
RING_BATCHES = 1024
ROW_BYTES = 256 << 10
ROW_ENTRIES = 1024
PAGE_BYTES = 256 << 10
PAGES = 8
KEPT_PAGE_BYTES = 1 << 20
"""A page with an entry of megabytes is not kept for others."""
RINGS_BYTES = 32 << 20
"""What the rings of all logs hold together; above it the one that moved longest ago is dropped."""
PAGES_AT_ONCE = 2
BACKLOG_BYTES = 16 << 20
"""Above this much uncommitted text the agents' output is left in their pipes."""
CHECKPOINT_SECS = 1.0
CHECKPOINT_BYTES = 16 << 20
CHECKPOINT_LATEST_SECS = 10.0
"""What was committed is written back from the WAL after a second without a commit, or when it is
so much, or after ten seconds: whoever commits meanwhile may wait for the disk."""
RETRY_SECS = (0.05, 0.1, 0.25, 0.5, 1.0)


class Batch:
    """Consecutive entries, as they were committed together.

    Attributes:
        first, last: positions of the first and the last entry.
        body: the entries' JSON, one a line.
        frames: the entries as WebSocket frames, once a subscriber has encoded them.
    """

    __slots__ = ("body", "first", "frames", "last")

    def __init__(self, first: int, last: int, body: bytes) -> None:
        self.first = first
        self.last = last
        self.body = body
        self.frames: bytes | None = None

    def lines(self) -> list[bytes]:
        return self.body.split(b"\n")

    def after(self, position: int) -> Batch:
        """The part of this batch behind *position*."""
        if position < self.first:
            return self
        rest = self.body.split(b"\n", position - self.first + 1)[-1]
        return Batch(position + 1, self.last, rest)


class SessionLog:
    """One session's log in memory: what is not yet committed, and the newest that is."""

    def __init__(self, writer: DatabaseWriter, number: int, head: int) -> None:
        self.head = head
        self._writer = writer
        self._number = number
        self._next = head + 1
        self._pending: list[bytes] = []
        self._ring: deque[Batch] = deque()
        self._ring_bytes = 0
        self._watchers: set[Callable[[], None]] = set()

    @property
    def last(self) -> int:
        """The newest position given out, committed or not."""
        return self._next - 1

    def append(self, kind: str, turn_index: int, fields: bytes) -> int:
        """Add an entry; it becomes visible when it is durable.

        Args:
            kind: the frame's type.
            fields: its own fields, JSON without the outer braces.

        Returns:
            Its position.
        """
        seq = self._next
        self._next += 1
        frame = entries.entry(kind, seq, time.time_ns() // 1_000_000, turn_index, fields)
        self._pending.append(frame)
        self._writer.gather(self, len(frame))
        return seq

    async def follow(
        self, after: int, idle: Callable[[], Awaitable[None]], *, idle_secs: float = 15
    ) -> AsyncIterator[Batch]:
        """Batches behind *after*, for ever: first those that are there, then as they come.

        Args:
            idle: called each time that nothing has come for *idle_secs*.
        """
        moved = asyncio.Event()
        self.watch(moved.set)
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
            self.unwatch(moved.set)

    async def reach(self, position: int) -> None:
        """Wait until the entry at *position* is durable.

        Raises:
            Error: ``internal``; the writer has ended, so it never will be.
        """
        if self.head >= position:
            return
        moved = asyncio.Event()
        self.watch(moved.set)
        try:
            while self.head < position:
                if self._writer.is_over:
                    raise not_stored()
                moved.clear()
                await moved.wait()
        finally:
            self.unwatch(moved.set)

    @property
    def is_watched(self) -> bool:
        """Somebody follows it: a socket, a stream."""
        return bool(self._watchers)

    def watch(self, wake: Callable[[], None]) -> None:
        """Have *wake* called whenever the head has moved."""
        self._watchers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        self._watchers.discard(wake)
        if not self._watchers:
            self.drop_ring()

    def recent(self, after: int) -> list[Batch] | None:
        """What the ring has behind *after*, or None where it does not reach back so far."""
        if after >= self.head:
            return []
        found: list[Batch] = []
        for batch in reversed(self._ring):
            found.append(batch)
            if batch.first <= after + 1:
                found.reverse()
                found[0] = found[0].after(after)
                return found
        return None

    async def read(self, after: int) -> list[Batch]:
        """The next entries behind *after*: all of the ring's, or a page of the database's.

        Raises:
            StoreError: the database cannot be read, or the log was deleted meanwhile.
        """
        batches = self.recent(after)
        if batches is not None:
            return batches
        batches = await self._writer.pages.read(self._number, after)
        if not batches:  # there are entries behind *after*, or there were: no reader would end
            raise DatabaseError("the log is deleted")
        return batches

    def take_pending(self) -> list[LogRow]:
        """Hand the uncommitted entries over as rows of bounded size."""
        pending, self._pending = self._pending, []
        first = self._next - len(pending)
        rows: list[LogRow] = []
        start = size = 0
        for index, frame in enumerate(pending):
            size += len(frame)
            count = index - start + 1
            if size >= ROW_BYTES or count >= ROW_ENTRIES or index == len(pending) - 1:
                body = b"\n".join(pending[start : index + 1])
                rows.append(LogRow(self._number, first + start, first + index, body))
                start, size = index + 1, 0
        return rows

    def publish(self, rows: Iterable[LogRow]) -> None:
        """Make committed rows visible."""
        for row in rows:
            self.head = row.last_seq
            if self._watchers:
                self._ring.append(Batch(row.first_seq, row.last_seq, row.body))
                self._ring_bytes += len(row.body)
        while len(self._ring) > 1 and (
            self._ring_bytes > RING_BYTES or len(self._ring) > RING_BATCHES
        ):
            self._ring_bytes -= len(self._ring.popleft().body)
        if self._watchers:
            self._writer.rings.note(self, self._ring_bytes)
        self.wake()

    def publish_without_ring(self, rows: Sequence[LogRow]) -> None:
        """The same for readers that find the rows in the database."""
        self.drop_ring()
        if rows:
            self.head = rows[-1].last_seq
        self.wake()

    def wake(self) -> None:
        """Have all watchers look at the log; the failure of one does not reach the others."""
        for wake in tuple(self._watchers):
            try:
                wake()
            except Exception:
                logger.exception("a watcher of a session's log failed")

    def drop_ring(self) -> None:
        """Let readers read from the database."""
        self._ring.clear()
        self._ring_bytes = 0
        self._writer.rings.note(self, 0)


class Pages:
    """Pages of the stored logs; who replays the same as others did just now shares theirs."""

    def __init__(self, database: Database) -> None:
        self._store = database
        self._pages: OrderedDict[tuple[int, int], asyncio.Task[list[Batch]]] = OrderedDict()
        self._turns = asyncio.Semaphore(PAGES_AT_ONCE)

    async def read(self, session: int, after: int) -> list[Batch]:
        """The page behind *after*, which must not be the log's head.

        Raises:
            StoreError: the database cannot be read.
        """
        async with self._turns:
            # A few in one turn of the event loop, which who is live needs as well.
            await asyncio.sleep(0)
        key = session, after
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = asyncio.create_task(self._load(key), name="log-page")
            if len(self._pages) > PAGES:
                self._pages.popitem(last=False)
        return await asyncio.shield(page)

    async def _load(self, key: tuple[int, int]) -> list[Batch]:
        session, after = key
        try:
            rows = await self._store.read_log(session, after, PAGE_BYTES)
        except BaseException:
            self._pages.pop(key, None)
            raise
        if sum(len(row.body) for row in rows) > KEPT_PAGE_BYTES:
            self._pages.pop(key, None)
        batches = [Batch(row.first_seq, row.last_seq, row.body) for row in rows]
        if batches:
            batches[0] = batches[0].after(after)
        return batches


class Rings:
    """The rings of all logs, which together hold only so much."""

    def __init__(self) -> None:
        self._logs: OrderedDict[SessionLog, int] = OrderedDict()
        self._bytes = 0

    def note(self, log: SessionLog, size: int) -> None:
        """*log*'s ring has *size* bytes now."""
        self._bytes += size - self._logs.pop(log, 0)
        if size:
            self._logs[log] = size
        while self._bytes > RINGS_BYTES and len(self._logs) > 1:
            next(iter(self._logs)).drop_ring()


class DatabaseWriter:
    """The one writer: gathers entries and statements, and commits them in groups."""

    def __init__(
        self, database: Database, metrics: Metrics, supervisor: Supervisor | None = None
    ) -> None:
        self.store = database
        self.pages = Pages(database)
        self.rings = Rings()
        self._metrics = metrics
        self._dirty: dict[SessionLog, None] = {}
        self._statements: list[Statement] = []
        self._prompt: list[tuple[Sequence[Statement], asyncio.Future[None]]] = []
        self._backlog = 0
        self._gathering_since = 0.0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._supervisor = supervisor or Supervisor()
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        # Of the group that is being committed.
        self._committing: dict[SessionLog, list[LogRow]] = {}
        self._told: list[tuple[Sequence[Statement], asyncio.Future[None]]] = []
        self._to_write_back = 0
        self._last_commit = 0.0
        self._committed = asyncio.Event()
        self._committed_much = asyncio.Event()

    def start(self) -> None:
        """Begin to commit.

        An unexpected exception ends the server: nobody knows what of the last group is stored.
        """
        self._task = self._supervisor.spawn(self._tasks, "log-writer", self._run, critical=True)
        self._task.add_done_callback(lambda _: self._end())

    @property
    def is_over(self) -> bool:
        """Whether it has ended, so that nothing more will be stored."""
        return self._is_over

    def _end(self) -> None:
        """Let nobody wait any longer for what will not be stored."""
        self._is_over = True
        _settle([*self._told, *self._prompt], not_stored())
        self._told, self._prompt = [], []
        for log in {**self._committing, **self._dirty}:
            log.wake()
        self._idle.set()

    async def stop(self) -> None:
        """Commit what has gathered, and end.

        What cannot be committed within a few seconds is given up, loudly.
        """
        if self._task is None:
            return
        try:
            async with asyncio.timeout(5):
                await self.flush()
        except TimeoutError:
            logger.error("the database took no writes; %d bytes are lost", self._backlog)
        if self._is_over and self._backlog:
            logger.error("the log writer has failed; %d bytes are lost", self._backlog)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def write_back(self) -> None:
        """For ever, have what was committed written back from the WAL.

        If the writer did it, as SQLite has it by itself, some commits would take 15 ms.
        """
        while True:
            await self._committed.wait()
            await self._lull()
            self._to_write_back = 0
            self._committed.clear()
            self._committed_much.clear()
            try:
                await self.store.checkpoint()
            except DatabaseError as error:
                # The WAL has it all; it is tried again behind the next commit.
                logger.info("the WAL is not written back: %s", error)

    async def _lull(self) -> None:
        """Wait until it is time to write back what was committed."""
        latest = time.monotonic() + CHECKPOINT_LATEST_SECS
        while not self._committed_much.is_set():
            due = min(self._last_commit + CHECKPOINT_SECS, latest)
            if (rest := due - time.monotonic()) <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._committed_much.wait()

    def gather(self, log: SessionLog, size: int) -> None:
        """Note that *log* has something to commit."""
        if not self._dirty:
            self._gathering_since = time.monotonic()
        self._dirty[log] = None
        self._backlog += size
        if self._backlog > BACKLOG_BYTES:
            self._room.clear()
        self._wake()

    def add(self, statements: Sequence[Statement]) -> None:
        """Commit *statements* together with the entries appended in the same breath.

        They are tried again until the database takes them.
        """
        self._statements.extend(statements)
        self._wake()

    async def commit(self, statements: Sequence[Statement]) -> None:
        """Commit *statements*, all or none of them, with the next group, and wait for it.

        Raises:
            Error: ``internal``; the database does not take writes now, and none
                of *statements* was carried out.
        """
        if self._is_over:
            raise not_stored()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._prompt.append((statements, future))
        self._wake()
        await future

    @property
    def backlog(self) -> int:
        """Bytes of entries that are not yet durable."""
        return self._backlog

    async def room(self) -> None:
        """Wait until the uncommitted backlog is small enough to add to."""
        await self._room.wait()

    @property
    def has_room(self) -> bool:
        return self._room.is_set()

    async def flush(self) -> None:
        """Wait until everything that has gathered is committed."""
        await self._idle.wait()

    def _wake(self) -> None:
        if not self._is_over:
            self._idle.clear()
        self._work.set()

    async def _run(self) -> None:
        while True:
            if not (self._dirty or self._statements or self._prompt):
                self._idle.set()
            await self._work.wait()
            self._work.clear()
            await self._commit_group()

    async def _commit_group(self) -> None:
        for log in self._dirty:
            self._committing[log] = log.take_pending()
        self._dirty.clear()
        since = self._gathering_since
        size, self._backlog = self._backlog, 0
        statements, self._statements = self._statements, []
        rows = [row for taken in self._committing.values() for row in taken]
        durable = [*store.insert_log(rows), *statements]
        attempt = 0
        while True:
            prompt = self._told = self._prompt
            self._prompt = []
            try:
                await self.store.write([*durable, *(one for group, _ in prompt for one in group)])
                break
            except DatabaseError as error:
                if not store.may_pass(error):
                    logger.error("something can never be stored: %s", error)
                    for group, future in prompt:
                        await self._commit_alone(group, future)
                    durable = await self._without_the_impossible(durable)
                    continue
                # Who waits is told now; what agents have said is kept until it can be stored.
                _settle(prompt, not_stored())
                if not durable:  # what was committed one by one is still to be shown
                    logger.error("the database takes no writes: %s", error)
                    break
                if attempt == 0:
                    logger.error("the database takes no writes, trying again: %s", error)
                    self._backlog += size
                await asyncio.sleep(RETRY_SECS[min(attempt, len(RETRY_SECS) - 1)])
                attempt += 1
        if attempt:
            self._backlog -= size
            logger.warning("the database takes writes again")
        if self._backlog <= BACKLOG_BYTES:
            self._room.set()
        self._to_write_back += size
        self._last_commit = time.monotonic()
        self._committed.set()
        if self._to_write_back >= CHECKPOINT_BYTES:
            self._committed_much.set()
        for log, taken in self._committing.items():
            try:
                log.publish(taken)
            except Exception:
                logger.exception("a session's log is read from the database: its ring failed")
                log.publish_without_ring(taken)
        self._committing.clear()
        _settle(prompt, None)
        self._told = []
        if rows:
            # Behind the viewers, and the next group.
            secs = time.monotonic() - since
            asyncio.get_running_loop().call_soon(self._measure, rows, size, secs)

    def _measure(self, rows: Sequence[LogRow], size: int, secs: float) -> None:
        self._metrics.log_append.observe(secs)
        self._metrics.log_batch.observe(sum(row.last_seq + 1 - row.first_seq for row in rows))
        self._metrics.log_bytes.inc(size)

    async def _commit_alone(self, group: Sequence[Statement], future: asyncio.Future[None]) -> None:
        """Commit what somebody waits for; where that fails, it fails for that one alone."""
        error = None
        try:
            await self.store.write(group)
        except DatabaseError:
            error = not_stored()
        _settle([(group, future)], error)

    async def _without_the_impossible(self, durable: Iterable[Statement]) -> list[Statement]:
        """Commit each of *durable* by itself, and give up what can never be stored.

        Else it would be tried for ever, and hold up all that comes behind it.

        Returns:
            What could not be stored now, but may be later.
        """
        rest: list[Statement] = []
        for statement in durable:
            try:
                await self.store.write([statement])
            except DatabaseError as error:
                if store.may_pass(error):
                    rest.append(statement)
                else:
                    logger.error("given up: %s: %s", error, statement[0])
        return rest


def _settle(
    waiting: Iterable[tuple[Sequence[Statement], asyncio.Future[None]]], error: Error | None
) -> None:
    for _, future in waiting:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
