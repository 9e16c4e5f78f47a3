"""A reader's position in the log of a session."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, cast

from .errors import ClawdforgeError
from .rest import Rest
from .shapes import Entry

MAX_BUFFERED = 2000
MAX_BUFFERED_BYTES = 16 << 20
"""The entries that wait for a slow reader. Beyond it the reader reads on in the log."""
PAGE = 1000


class Position(Protocol):
    """The connection, as a feed sees it."""

    @property
    def last(self) -> int | None:
        """The newest entry that was received; None before the first connection."""

    async def ready(self) -> int:
        """Wait for a connection. Returns the newest entry of the log at that time."""


class Feed:
    """The entries after *cursor*, each once and in order, for one reader.

    Entries arrive from the connection while the reader keeps up. Those that it has missed come
    from the log over REST.

    Args:
        cursor: the seq after which the feed begins; None for those that arrive from now on.
    """

    def __init__(self, rest: Rest, session_id: str, position: Position, cursor: int | None) -> None:
        self._rest = rest
        self._path = f"/sessions/{session_id}/events"
        self._position = position
        self.cursor = cursor
        self._is_behind = cursor is not None and cursor != position.last
        self._buffer: deque[tuple[Entry, int]] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._failure: ClawdforgeError | None = None
        self._is_finished = False

    def push(self, entry: Entry, size: int) -> None:
        """Add an entry that has arrived."""
        if self._is_behind or (self.cursor is not None and entry["seq"] <= self.cursor):
            self._changed.set()
            return
        if self.cursor is None:
            self.cursor = entry["seq"] - 1
        self._buffer.append((entry, size))
        self._bytes += size
        if len(self._buffer) > MAX_BUFFERED or self._bytes > MAX_BUFFERED_BYTES:
            self._buffer.clear()
            self._bytes = 0
            self._is_behind = True
        self._changed.set()

    def rewind(self, cursor: int) -> None:
        """Continue after *cursor*, whatever was read or has arrived."""
        self._buffer.clear()
        self._bytes = 0
        self.cursor = cursor
        self._is_behind = True
        self._changed.set()

    def fail(self, failure: ClawdforgeError) -> None:
        """End the feed with an error, after the entries that have arrived."""
        self._failure = self._failure or failure
        self._changed.set()

    def finish(self) -> None:
        """End the feed, after the entries that have arrived or are in the log."""
        self._is_finished = True
        self._changed.set()

    async def next(self) -> Entry | None:
        """The next entry; None at the end.

        Raises:
            ClawdforgeError: the feed has failed.
        """
        while True:
            if self._buffer:
                entry, size = self._buffer.popleft()
                self._bytes -= size
                if self.cursor is None or entry["seq"] > self.cursor:
                    self.cursor = entry["seq"]
                    return entry
                continue
            if self._is_behind and self._failure is None:
                await self._read_page()
                continue
            if self._failure is not None:
                raise self._failure
            if self._is_finished:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _read_page(self) -> None:
        """Read on in the log, up to what the connection delivers."""
        assert self.cursor is not None
        page = await self._rest.call(
            "GET", self._path, params={"after": self.cursor, "limit": PAGE}
        )
        self._buffer.extend((cast(Entry, entry), 0) for entry in page["entries"])
        end = page["entries"][-1]["seq"] if page["entries"] else self.cursor
        if page.get("has_more") or end < page["head"]:
            return
        if self._position.last is None and not self._is_finished and self._failure is None:
            if self._buffer:
                return  # the reader gets what there is before the connection exists
            self._changed.clear()
            waiting = asyncio.ensure_future(self._position.ready())
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait({waiting, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                changed.cancel()
                await asyncio.gather(waiting, changed, return_exceptions=True)
            return
        if end >= (self._position.last or 0):
            self._is_behind = False
