"""Fills the full-text index after the log, without slowing the turns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from ..limits import ByteBudget
from ..storage.growth import GrowthQueries
from ..storage.queries import Queries
from .documents import Document, DocumentReader
from .index import Hit, SearchIndex

logger = logging.getLogger(__name__)

INTERVAL_SECS = 0.5
PAGE_BYTES = 256 << 10
SEARCH_WAIT_SECS = 10
"""The longest time that a search waits for the searches of other apps."""
MAX_ENTRY_BYTES = 1 << 20
"""A larger entry is not searched: to read its text would take several times its size."""
READ_AT_ONCE_BYTES = 16 << 10
"""Bytes of entries that are read at once, which takes less than half a millisecond."""
REST_FACTOR = 9
"""After each piece of work the indexer rests for this many times as long as the piece took."""


class Indexer:
    """Indexes the sessions whose logs have grown, and forgets those that were deleted.

    Args:
        queries, growth: of the main database.
        is_busy: whether the session with an id runs a turn. It is indexed afterwards.
        growth_value: returns a value that changes with new rows of the log and new sessions.
        interval: seconds between two rounds.
    """

    def __init__(
        self,
        index: SearchIndex,
        queries: Queries,
        growth: GrowthQueries,
        is_busy: Callable[[str], bool],
        growth_value: Callable[[], object],
        interval: float = INTERVAL_SECS,
    ) -> None:
        self._index = index
        self._queries = queries
        self._growth = growth
        self._is_busy = is_busy
        self._growth_value = growth_value
        self._interval = interval
        self._last_log_row = 0
        self._last_session = 0
        self._due: dict[int, str] = {}  # the id of each session; empty if it is not known yet
        self._turns = ByteBudget(1, 1)  # one search at a time; the apps take turns

    async def run(self) -> None:
        """Index forever. After a failure of a database it begins again."""
        await self._find_missing()
        seen: object = None
        is_behind = True
        while True:
            if (value := self._growth_value()) != seen or is_behind:
                is_behind = await self.update()
                seen = value
            await asyncio.sleep(self._interval)

    async def update(self) -> bool:
        """Index what has been said since the last round.

        Returns:
            Whether something is left for the next round.
        """
        last_row, last_session = await self._growth.newest()
        if last_row != self._last_log_row or last_session > self._last_session:
            await self._find_grown()
        failure: Exception | None = None
        for session in sorted(self._due):
            if self._is_busy(self._due.get(session, "")):
                continue
            try:
                is_complete = await self._index_session(session)
            except Exception as error:  # noqa: BLE001 - raised below
                failure = error
            else:
                if is_complete:
                    self._due.pop(session, None)
        if failure is not None:  # the other sessions are indexed nevertheless
            raise failure
        return bool(self._due) or self._last_log_row < last_row

    async def _find_grown(self) -> None:
        """Find the sessions that are new or have new entries."""
        grown = await self._growth.log_growth(self._last_log_row)
        if grown is None:
            await self._find_missing()
            return
        self._last_log_row, sessions = grown
        created = await self._growth.session_numbers(after=self._last_session)
        self._last_session = max([self._last_session, *created])
        self._note_due({*sessions, *created})

    async def find(self, app_name: str, query: str, limit: int) -> list[tuple[Hit, str]]:
        """The newest hits of an app, each with the JSON of its session's ``meta``."""
        async with self._turns.reserve(app_name, 1, SEARCH_WAIT_SECS):
            hits = await self._index.find(app_name, query, limit)
        metas = await self._growth.metas(app_name, {hit.session_id for hit in hits})
        # The others are deleted since they were indexed.
        return [(hit, metas[hit.session_id]) for hit in hits if hit.session_id in metas]

    async def forget(self, session: int) -> None:
        """Forget a session that is being deleted."""
        self._due.pop(session, None)
        await self._index.forget(session)

    async def forget_deleted(self) -> None:
        """Forget the sessions that the main database does not have any more."""
        progress = await self._index.progress()
        ids = await self._growth.session_ids(progress)
        for session, indexed in progress.items():
            if ids.get(session) != indexed.session_id:
                await self._index.forget(session)

    async def _find_missing(self) -> None:
        """Find the sessions that are not wholly indexed."""
        await self.forget_deleted()
        progress = await self._index.progress()
        heads = await self._growth.log_heads()
        self._last_log_row = await self._growth.last_log_row()
        self._due = {}
        self._note_due(
            session
            for session, head in heads.items()
            if session not in progress or progress[session].seq < head
        )
        # A fork may have no rows of its own.
        numbers = await self._growth.session_numbers(after=0)
        self._note_due(number for number in numbers if number not in progress)
        self._last_session = max([0, *numbers])

    def _note_due(self, sessions: Iterable[int]) -> None:
        for session in sessions:
            self._due.setdefault(session, "")

    async def _index_session(self, session: int) -> bool:
        """Index what was said in a session. Return False if it runs a turn again meanwhile."""
        row = await self._growth.session(session)
        if row is None:
            await self._index.forget(session)
            return True
        self._due[session] = row.id
        indexed = await self._index.progress_of(session)
        if indexed is not None and indexed.session_id != row.id:
            await self._index.forget(session)
            indexed = None
        position = indexed.seq if indexed is not None else 0
        reader = DocumentReader(position)
        while not self._is_busy(row.id):
            rows = await self._queries.read_log(
                session, position, PAGE_BYTES, largest=MAX_ENTRY_BYTES
            )
            if not rows:
                if rest := reader.end():
                    await self._index.add(
                        row.app_name, session, row.id, rest, seq=reader.complete_seq
                    )
                return True
            lines = [
                line
                for stored in rows
                for line in stored.body.split(b"\n")[max(0, position + 1 - stored.first_seq) :]
            ]
            position = rows[-1].last_seq
            documents = await _read_in_pieces(reader, lines)
            began = time.monotonic()
            await self._index.add(row.app_name, session, row.id, documents, seq=reader.complete_seq)
            await _rest_since(began)
        return False


async def _rest_since(began: float) -> None:
    """Leave the event loop to the turns, after work that began at that time."""
    await asyncio.sleep(REST_FACTOR * (time.monotonic() - began))


async def _read_in_pieces(reader: DocumentReader, lines: Sequence[bytes]) -> list[Document]:
    """Read entries, and let other tasks proceed meanwhile.

    Only a large entry is read in a thread, because a busy thread delays the event loop whenever
    that needs Python's lock.
    """
    documents: list[Document] = []
    start = size = 0
    for index, line in enumerate(lines):
        size += len(line)
        if size < READ_AT_ONCE_BYTES and index + 1 < len(lines):
            continue
        piece, start = lines[start : index + 1], index + 1
        began = time.monotonic()
        if size > 2 * READ_AT_ONCE_BYTES:
            documents += await asyncio.to_thread(reader.read, piece)
        else:
            documents += reader.read(piece)
        await _rest_since(began)
        size = 0
    return documents
