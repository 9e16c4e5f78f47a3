"""The time until an entry is durable, of many sessions in several processes on one database.

Each process has the server's log writer, and the logs of its part of the sessions; it has no
agents and no clients, of which a machine could not run a thousand.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from lifecycle import UPDATE
from measure import Samples

from server.metrics import Metrics
from server.serving import tune_gc
from server.sessions.entries import event_fields
from server.sessions.event_log import EventLogs, SessionLog
from server.storage.database import Database
from server.storage.drivers.postgres import PostgresDriver
from server.storage.nodes import NodeTable
from server.storage.queries import Queries
from server.storage.schema import LogRow
from server.storage.writer import DatabaseWriter

SESSIONS, RATE, NODES = 1000, 5000, 3
PAUSE_SECS = 0.0005
WARM_UP_SECS = 0.5
BARRIER_SECS = 60


class TimedLog(SessionLog):
    """A log that measures the milliseconds from an entry's :meth:`append_now` to its durability."""

    def __init__(self, shared: EventLogs, number: int, delays: list[float]) -> None:
        super().__init__(shared, number, 0, lambda: None)
        self._delays = delays
        self._appended: deque[float] = deque()

    def append_now(self, fields: bytes) -> None:
        self._appended.append(time.perf_counter())
        self.append("event", 1, fields)

    def publish(self, rows: Sequence[LogRow]) -> None:
        super().publish(rows)
        now = time.perf_counter()
        for row in rows:
            for _ in range(row.first_seq, row.last_seq + 1):
                self._delays.append((now - self._appended.popleft()) * 1000)


def on_postgres(url: str, *, secs: float) -> Samples:
    """Milliseconds per entry, of the processes of three nodes together."""
    context = multiprocessing.get_context("spawn")
    both = (context.Barrier(NODES),)
    with ProcessPoolExecutor(NODES, context, initializer=_share, initargs=both) as processes:
        parts = [processes.submit(_run_node, url, number, secs) for number in range(NODES)]
        return Samples(delay for part in parts for delay in part.result())


def on_sqlite(path: Path, *, secs: float) -> Samples:
    """The same of a single server, which has all sessions."""

    async def run() -> list[float]:
        database = await Database.open(path)
        return await _append(database, range(SESSIONS), RATE, secs)

    return Samples(asyncio.run(run()))


_begin: Any = None
"""The barrier at which the processes of the nodes wait for each other."""


def _share(begin: Any) -> None:
    global _begin
    _begin = begin


def _run_node(url: str, number: int, secs: float) -> list[float]:
    async def run() -> list[float]:
        database = await Database.connect(url, name=f"bench-{number}")
        assert isinstance(database.driver, PostgresDriver)
        await NodeTable(database.driver).register(f"node-{number}", "bench")
        await asyncio.to_thread(_begin.wait, BARRIER_SECS)
        return await _append(database, range(number, SESSIONS, NODES), RATE / NODES, secs)

    return asyncio.run(run())


async def _append(
    database: Database, numbers: Sequence[int], rate: float, secs: float
) -> list[float]:
    """Append entries to these sessions' logs in turn, *rate* per second, and close the database."""
    tune_gc()  # as in a server
    writer = DatabaseWriter(database, Metrics())
    writer.start()
    shared = EventLogs(writer, Queries(database))
    delays: list[float] = []
    logs = itertools.cycle([TimedLog(shared, 1 + number, delays) for number in numbers])
    fields = event_fields(UPDATE)
    try:
        for part_secs in (WARM_UP_SECS, secs):
            delays.clear()
            began, count = time.perf_counter(), 0
            while (now := time.perf_counter() - began) < part_secs:
                while count < now * rate:
                    next(logs).append_now(fields)
                    count += 1
                await asyncio.sleep(PAUSE_SECS)
            await writer.flush()
        return delays
    finally:
        await writer.stop()
        await database.close()
