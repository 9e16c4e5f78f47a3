"""Reports the logs of this node's sessions to the nodes that follow them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..cluster import notices
from ..cluster.channels import NodeChannel
from ..cluster.node import ClusterNode
from ..codec import loads
from ..storage.schema import LogRow
from ..tasks import Tasks
from .followed_log import FOLLOW

if TYPE_CHECKING:
    from .session import Session

LOADED_POLL_SECS = 1.0


class LogReport:
    """The part of a session's log that a node has. It is itself the subscriber of the log.

    Attributes:
        session: the session, in the memory of this node.
        position: of the last entry that was reported.
    """

    __slots__ = ("_is_waiting", "_on_due", "position", "session")

    def __init__(self, session: Session, on_due: Callable[[LogReport], None]) -> None:
        self.session = session
        self.position = -1  # nothing was reported
        self._on_due = on_due
        self._is_waiting = False

    def __call__(self) -> None:
        """Report what was committed, at once or together with what is being committed.

        The first update of a turn follows its start immediately: two reports would delay it.
        """
        log = self.session.log
        self._is_waiting = not self._is_waiting and log.last > log.head
        if not self._is_waiting:
            self._on_due(self)

    def start(self) -> None:
        self.session.log.subscribe(self)
        self._on_due(self)

    def stop(self) -> None:
        self.session.log.unsubscribe(self)

    def take_head(self) -> tuple[int, int]:
        """The number of the session and the head of its log, which count as reported."""
        self.position = self.session.log.head
        return self.session.row.n, self.position

    def take_entries(self) -> str:
        """The notification with the entries that were not reported; empty if they are too many."""
        log = self.session.log
        batches = log.recent(self.position) if self.position >= 0 else None
        if not batches:
            return ""
        number = self.session.row.n
        rows = [LogRow(number, batch.first, batch.last, batch.body) for batch in batches]
        if text := notices.entries_text(rows):
            self.position = batches[-1].last
        return text


class HeadReporter:
    """Reports the logs that other nodes follow, after each commit.

    Args:
        loaded: returns the session with an id, if it is in memory.
    """

    def __init__(self, node: ClusterNode, loaded: Callable[[str], Session | None]) -> None:
        self._node = node
        self._loaded = loaded
        self._due: dict[int, dict[LogReport, None]] = {}
        self._sending: set[int] = set()
        self._tasks = Tasks()
        node.channels.servers[FOLLOW] = self._serve

    async def stop(self) -> None:
        await self._tasks.finish(0)

    async def _serve(self, channel: NodeChannel) -> None:
        """Report the logs of the sessions that *channel* names, until it ends."""
        followed: dict[str, LogReport] = {}
        missing: set[str] = set()
        looking = asyncio.create_task(self._look(channel.partner, followed, missing))
        try:
            async for piece in channel:
                order: dict[str, str] = loads(piece)
                if (session_id := order.get("add")) is not None:
                    missing.add(session_id)
                    self._attach(channel.partner, followed, missing)
                elif (session_id := order.get("drop")) is not None:
                    missing.discard(session_id)
                    if session_id in followed:
                        followed.pop(session_id).stop()
        finally:
            looking.cancel()
            for report in followed.values():
                report.stop()

    async def _look(self, node: int, followed: dict[str, LogReport], missing: set[str]) -> None:
        """Attach to sessions that are loaded, or loaded again, later."""
        while True:
            await asyncio.sleep(LOADED_POLL_SECS)
            for session_id, report in tuple(followed.items()):
                if self._loaded(session_id) is not report.session:
                    followed.pop(session_id).stop()
                    missing.add(session_id)
            self._attach(node, followed, missing)

    def _attach(self, node: int, followed: dict[str, LogReport], missing: set[str]) -> None:
        for session_id in tuple(missing):
            if (session := self._loaded(session_id)) is not None:
                missing.discard(session_id)
                report = LogReport(session, lambda report: self._note(node, report))
                followed[session_id] = report
                report.start()

    def _note(self, node: int, report: LogReport) -> None:
        self._due.setdefault(node, {})[report] = None
        if node not in self._sending:
            self._sending.add(node)
            self._tasks.spawn(self._send(node), f"heads-to-node-{node}")

    async def _send(self, node: int) -> None:
        """Send everything that is due; what changes meanwhile follows together."""
        try:
            while due := self._due.pop(node, None):
                heads, entries, size = [], [], 0
                for report in due:
                    text = report.take_entries() if size < notices.NOTICE_BYTES else ""
                    if text:
                        entries.append(text)
                        size += len(text)
                    else:
                        heads.append(report.take_head())
                await self._node.report(node, heads, entries)
        finally:
            self._sending.discard(node)
