"""Checkpoints: they copy committed pages from the WAL to the database file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import msgspec

from ..errors import DatabaseError
from .database import Database

logger = logging.getLogger(__name__)


class CheckpointPolicy(msgspec.Struct, frozen=True):
    """The conditions for a checkpoint. A commit at the same time may wait for the disk.

    Attributes:
        quiet_secs: seconds without a commit.
        size: bytes committed since the last checkpoint.
        latest_secs: seconds since the first commit after the last checkpoint.
    """

    quiet_secs: float = 1.0
    size: int = 16 << 20
    latest_secs: float = 10.0


class Checkpointer:
    """Checkpoints the WAL in quiet moments, on a connection of its own.

    By default SQLite checkpoints during a commit, which then takes 15 ms longer.
    """

    def __init__(self, database: Database, policy: CheckpointPolicy) -> None:
        self._database = database
        self._policy = policy
        self._size = 0
        self._last_commit = 0.0
        self._committed = asyncio.Event()
        self._is_large = asyncio.Event()

    def note_commit(self, size: int) -> None:
        """Note that *size* bytes were committed."""
        self._size += size
        self._last_commit = time.monotonic()
        self._committed.set()
        if self._size >= self._policy.size:
            self._is_large.set()

    async def run(self) -> None:
        """Checkpoint until the task is cancelled."""
        while True:
            await self._committed.wait()
            await self._wait_until_due()
            self._size = 0
            self._committed.clear()
            self._is_large.clear()
            try:
                await self._database.checkpoint()
            except DatabaseError as error:
                # The WAL has everything. The next commit makes another checkpoint due.
                logger.info("checkpoint failed: %s", error)

    async def _wait_until_due(self) -> None:
        latest = time.monotonic() + self._policy.latest_secs
        while not self._is_large.is_set():
            due = min(self._last_commit + self._policy.quiet_secs, latest)
            if (rest := due - time.monotonic()) <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._is_large.wait()
