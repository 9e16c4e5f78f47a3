"""The single writer of the database, with group commit.

Everything that arrives while a transaction runs is committed by the next one: log entries of all
sessions, statements, and commits that a caller waits for. So they share the cost of a commit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from ..errors import DatabaseError, Error, not_stored
from ..metrics import Metrics
from ..tasks import Supervisor, Tasks
from . import statements
from .checkpoints import Checkpointer, CheckpointPolicy
from .database import Database
from .drivers.base import FencedError
from .schema import LogRow, Statement

logger = logging.getLogger(__name__)

FINAL_FLUSH_SECS = 5.0


class WriterLimits(msgspec.Struct, frozen=True):
    """The writer's limits for a database that is slow or takes no writes.

    Attributes:
        backlog_bytes: uncommitted entries above which agents' output is left in their pipes.
        large_bytes: the same for one entry. While it is stored it takes several times its size.
        retry_secs: pauses between the attempts to write; the last one repeats.
    """

    backlog_bytes: int = 16 << 20
    large_bytes: int = 1 << 20
    retry_secs: Sequence[float] = (0.05, 0.1, 0.25, 0.5, 1.0)


class LogBuffer(Protocol):
    """A log with entries that are not committed yet."""

    def take_pending(self) -> list[LogRow]:
        """Return the uncommitted entries as rows; they are the writer's now."""

    def publish(self, rows: Sequence[LogRow]) -> None:
        """Make rows visible, because they are committed.

        No rows: the writer has failed, and nothing more will be committed.
        """


class _Commit(NamedTuple):
    """A transaction that a caller waits for."""

    transaction: Sequence[Statement]
    done: asyncio.Future[None]


class DatabaseWriter:
    """Commits log entries and statements in groups.

    Attributes:
        checkpointer: learns of every commit. Its :meth:`Checkpointer.run` must be run as a task.
        commits: the number of groups that were committed.
        on_fenced: called if another node has taken over. It stops the server.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        supervisor: Supervisor | None = None,
        *,
        limits: WriterLimits = WriterLimits(),  # noqa: B008 - immutable
        checkpoints: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008 - immutable
    ) -> None:
        self.checkpointer = Checkpointer(database, checkpoints)
        self.commits = 0
        self._database = database
        self._metrics = metrics
        self._limits = limits
        self._dirty: dict[LogBuffer, None] = {}
        self._statements: list[Statement] = []
        self._awaited: list[_Commit] = []
        self._backlog = 0
        self._has_large_entry = False
        self._gathering_since = 0.0
        self._work = asyncio.Event()
        self._has_capacity = asyncio.Event()
        self._has_capacity.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._supervisor = supervisor or Supervisor()
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None
        self.on_fenced: Callable[[FencedError], Awaitable[None]] = self._stop_server
        self._is_over = False
        self._is_suspended = False
        # Of the group that is being committed.
        self._committing: dict[LogBuffer, list[LogRow]] = {}
        self._committing_awaited: list[_Commit] = []

    def start(self) -> None:
        """Begin to commit.

        An unexpected exception ends the server, because it is unknown how much of the last group
        is stored.
        """
        self._task = self._supervisor.spawn(self._tasks, "log-writer", self._run, critical=True)
        self._task.add_done_callback(lambda _: self._end())

    @property
    def is_over(self) -> bool:
        """Whether the writer has ended, so that nothing more will be stored."""
        return self._is_over

    @property
    def is_suspended(self) -> bool:
        """Whether commits are refused, because another node may take over soon.

        The entries of agents are kept, and committed if this node can go on.
        """
        return self._is_suspended

    @is_suspended.setter
    def is_suspended(self, is_suspended: bool) -> None:
        self._is_suspended = is_suspended
        if is_suspended:  # the group that is being committed has an unknown outcome, and waits
            _resolve(self._awaited, not_stored())
            self._awaited = []

    def _end(self) -> None:
        """Fail all waiting commits, and notify the readers of the logs."""
        self._is_over = True
        _resolve([*self._committing_awaited, *self._awaited], not_stored())
        self._committing_awaited, self._awaited = [], []
        for log in {**self._committing, **self._dirty}:
            log.publish(())
        self._idle.set()

    async def stop(self) -> None:
        """Commit the pending entries and statements, for a few seconds at most, and end."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(FINAL_FLUSH_SECS):
                await self.flush()
        except TimeoutError:
            logger.error("database writes are failing; %d bytes are lost", self._backlog)
        if self._is_over and self._backlog:
            logger.error("the log writer has failed; %d bytes are lost", self._backlog)
        self._database.abandon()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def gather(self, log: LogBuffer, size: int) -> None:
        """Commit the pending entries of *log* with the next group.

        Args:
            size: bytes of the entry that *log* has just added.
        """
        if not self._dirty:
            self._gathering_since = time.monotonic()
            self._notify()
        self._dirty[log] = None
        self._backlog += size
        if size > self._limits.large_bytes:
            self._has_large_entry = True
        if self._has_large_entry or self._backlog > self._limits.backlog_bytes:
            self._has_capacity.clear()

    def add(self, transaction: Sequence[Statement]) -> None:
        """Commit statements together with the entries that were gathered before the next await.

        They are retried until the database accepts them.
        """
        self._statements.extend(transaction)
        self._notify()

    async def commit(self, transaction: Sequence[Statement]) -> None:
        """Commit statements with the next group, all or none of them, and wait for it.

        Raises:
            Error: ``internal``; none of the statements was stored.
        """
        if self._is_over or self._is_suspended:
            raise not_stored()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.append(_Commit(transaction, done))
        self._notify()
        await done

    @property
    def backlog(self) -> int:
        """Bytes of entries that are not yet durable."""
        return self._backlog

    async def wait_for_capacity(self) -> None:
        """Wait until the backlog is below its limit, and no large entry is in it."""
        await self._has_capacity.wait()

    @property
    def has_capacity(self) -> bool:
        """Whether the backlog is below its limit, and no large entry is in it."""
        return self._has_capacity.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether everything is committed."""
        return self._idle.is_set()

    async def flush(self) -> None:
        """Wait until everything that was pending is committed."""
        await self._idle.wait()

    async def _stop_server(self, error: FencedError) -> None:
        self._supervisor.fail(str(error))

    def _notify(self) -> None:
        if not self._is_over:
            self._idle.clear()
        self._work.set()

    async def _run(self) -> None:
        while True:
            if not (self._dirty or self._statements or self._awaited):
                self._idle.set()
            await self._work.wait()
            self._work.clear()
            try:
                await self._commit_group()
            except FencedError as error:
                await self.on_fenced(error)
                return

    async def _commit_group(self) -> None:
        for log in self._dirty:
            self._committing[log] = log.take_pending()
        self._dirty.clear()
        since = self._gathering_since
        size, self._backlog = self._backlog, 0
        self._has_large_entry = False
        pending, self._statements = self._statements, []
        rows = [row for taken in self._committing.values() for row in taken]
        awaited = await self._write_group([*statements.insert_log(rows), *pending], size)
        if self._backlog <= self._limits.backlog_bytes and not self._has_large_entry:
            self._has_capacity.set()
        self.commits += 1
        self.checkpointer.note_commit(size)
        for log, taken in self._committing.items():
            log.publish(taken)
        self._committing.clear()
        _resolve(awaited, None)
        self._committing_awaited = []
        if rows:
            # After the readers were notified and the next group was started.
            secs = time.monotonic() - since
            asyncio.get_running_loop().call_soon(self._measure, rows, size, secs)

    async def _write_group(self, retained: list[Statement], size: int) -> list[_Commit]:
        """Write a group, and retry while writes fail.

        Args:
            retained: statements that are retried until they are stored.
            size: bytes of the entries among them.

        Returns:
            The awaited commits that were written.
        """
        attempt = 0
        while True:
            awaited = self._committing_awaited = self._awaited
            self._awaited = []
            try:
                group = [statement for commit in awaited for statement in commit.transaction]
                await self._database.write([*retained, *group])
                break
            except FencedError:
                raise
            except DatabaseError as error:
                if not error.is_transient:
                    logger.error("the database rejects a statement: %s", error)
                    for commit in awaited:
                        await self._commit_individually(commit)
                    retained = await self._write_individually(retained)
                    continue
                # Callers that wait are refused now. Entries of agents are kept and retried.
                _resolve(awaited, not_stored())
                if not retained:
                    # The rest of the group may be written already, one by one: publish it.
                    logger.error("database writes are failing: %s", error)
                    break
                if attempt == 0:
                    logger.error("database writes are failing, retrying: %s", error)
                    self._backlog += size
                pauses = self._limits.retry_secs
                await asyncio.sleep(pauses[min(attempt, len(pauses) - 1)])
                attempt += 1
        if attempt:
            self._backlog -= size
            logger.warning("database writes succeed again")
        return awaited

    def _measure(self, rows: Sequence[LogRow], size: int, secs: float) -> None:
        self._metrics.log_append.observe(secs)
        self._metrics.log_batch.observe(sum(row.last_seq + 1 - row.first_seq for row in rows))
        self._metrics.log_bytes.inc(size)

    async def _commit_individually(self, commit: _Commit) -> None:
        """Commit one transaction by itself, so that its failure affects its caller only."""
        error = None
        try:
            await self._database.write(commit.transaction)
        except DatabaseError:
            error = not_stored()
        _resolve([commit], error)

    async def _write_individually(self, retained: Iterable[Statement]) -> list[Statement]:
        """Write each statement by itself, and drop those that the database rejects.

        Otherwise a rejected statement would be retried forever, and block every later write.

        Returns:
            The statements that could not be written now and are retried.
        """
        rest: list[Statement] = []
        for statement in retained:
            try:
                await self._database.write([statement])
            except DatabaseError as error:
                if error.is_transient:
                    rest.append(statement)
                else:
                    logger.error("statement rejected; dropped: %s: %s", error, statement[0])
        return rest


def _resolve(commits: Iterable[_Commit], error: Error | None) -> None:
    for _, done in commits:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
