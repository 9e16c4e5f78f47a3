"""Pages of the logs, as readers get them from the database."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec

from ..storage.queries import Queries


class LogLimits(msgspec.Struct, frozen=True):
    """Sizes of the logs' rows, pages and rings, in bytes if not said otherwise.

    Attributes:
        row_bytes, row_entries: a row ends with the entry that reaches one of them.
        ring_bytes, ring_batches: of the ring of one log. Its newest batch is always kept.
        rings_bytes: of the rings of all logs. Above it the log that moved longest ago loses its
            ring.
        page_bytes: read from the database at a time.
        pages: number of pages in the cache.
        cached_page_bytes: a larger page, with an entry of megabytes, is not cached.
        reads_per_iteration: pages read in one iteration of the event loop, so that readers that
            replay do not delay live ones.
    """

    row_bytes: int = 256 << 10
    row_entries: int = 1024
    ring_bytes: int = 1 << 20
    ring_batches: int = 1024
    rings_bytes: int = 32 << 20
    page_bytes: int = 256 << 10
    pages: int = 8
    cached_page_bytes: int = 1 << 20
    reads_per_iteration: int = 2


class Batch:
    """Consecutive entries that were committed together.

    Attributes:
        first, last: positions of the first and the last entry.
        body: the entries' JSON, one per line.
        frames: the entries as WebSocket frames, once a subscriber has encoded them.
        addressed: the frames with the id of their session, for sockets on many sessions.
    """

    __slots__ = ("addressed", "body", "first", "frames", "last")

    def __init__(self, first: int, last: int, body: bytes) -> None:
        self.first = first
        self.last = last
        self.body = body
        self.frames: bytes | None = None
        self.addressed: bytes | None = None

    def lines(self) -> list[bytes]:
        """The JSON of each entry."""
        return self.body.split(b"\n")

    def after(self, position: int) -> Batch:
        """The entries of this batch after *position*."""
        if position < self.first:
            return self
        rest = self.body.split(b"\n", position - self.first + 1)[-1]
        return Batch(position + 1, self.last, rest)


class PageCache:
    """A cache of log pages, shared by readers that replay the same range."""

    def __init__(self, queries: Queries, limits: LogLimits) -> None:
        self._queries = queries
        self._limits = limits
        self._pages: OrderedDict[tuple[int, int], asyncio.Task[list[Batch]]] = OrderedDict()
        self._reads = asyncio.Semaphore(limits.reads_per_iteration)

    async def read(self, session: int, after: int) -> list[Batch]:
        """The page after a position, which must be smaller than the log's head.

        Raises:
            DatabaseError: the database cannot be read.
        """
        async with self._reads:
            await asyncio.sleep(0)  # a permit is held for one iteration of the event loop
        key = session, after
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = asyncio.create_task(self._load(key), name="log-page")
            if len(self._pages) > self._limits.pages:
                self._pages.popitem(last=False)
        return await asyncio.shield(page)

    def clear(self) -> None:
        """Forget all pages."""
        self._pages.clear()

    async def _load(self, key: tuple[int, int]) -> list[Batch]:
        session, after = key
        try:
            rows = await self._queries.read_log(session, after, self._limits.page_bytes)
        except BaseException:
            self._pages.pop(key, None)
            raise
        if sum(len(row.body) for row in rows) > self._limits.cached_page_bytes:
            self._pages.pop(key, None)
        batches = [Batch(row.first_seq, row.last_seq, row.body) for row in rows]
        if batches:
            batches[0] = batches[0].after(after)
        return batches
