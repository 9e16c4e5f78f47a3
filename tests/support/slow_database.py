"""A real database whose writes a test can delay or have fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from server.errors import DatabaseError
from server.storage.database import Database
from server.storage.schema import Statement


class SlowDatabase(Database):
    """A database with controlled writes.

    Attributes:
        is_full: whether writes fail, as on a full disk.
        writes: number of attempts to write.
        done: the transactions that were written.
    """

    is_full = False
    writes = 0

    def prepare(self) -> None:
        """Set up, after :meth:`open`."""
        self.done: list[list[Statement]] = []
        self._released = asyncio.Event()
        self._released.set()
        self._tried = asyncio.Event()

    async def write(self, transaction: Sequence[Statement]) -> None:
        self.writes += 1
        self._tried.set()
        await self._released.wait()
        if self.is_full:
            raise DatabaseError("database or disk is full", is_transient=True)
        await super().write(transaction)
        self.done.append(list(transaction))

    def hold(self) -> None:
        """Delay writes until :meth:`release`."""
        self._released.clear()
        self._tried.clear()

    def release(self) -> None:
        self._released.set()

    async def until_tried(self, times: int = 0) -> None:
        """Wait for a write after :meth:`hold`, or for a number of writes."""
        while not self._tried.is_set() or self.writes < times:
            self._tried.clear()
            await self._tried.wait()


@contextlib.asynccontextmanager
async def slow_database(source: Path | str) -> AsyncIterator[SlowDatabase]:
    """Open a file, or connect to the PostgreSQL database with a URL."""
    opened = await (
        SlowDatabase.open(source)
        if isinstance(source, Path)
        else SlowDatabase.connect(source, name="test")
    )
    assert isinstance(opened, SlowDatabase)
    opened.prepare()
    try:
        yield opened
    finally:
        await opened.close()
