"""Logs of sessions that another node of the cluster runs.

A node opens a channel to each owner of such a session and names the sessions there. The owner
answers each commit with a notification. It has the new entries if they are few, and otherwise the
new heads; then this node reads the entries from the database. A notification may be lost, so the
heads are also read once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence

from ..cluster.channels import ChannelLostError, NodeChannel
from ..cluster.node import CLAIMED, ClusterNode
from ..codec import dumps
from ..errors import DatabaseError
from ..storage.queries import Queries
from ..storage.schema import LogRow
from ..tasks import Tasks
from .event_log import EventLogs, LogReader

logger = logging.getLogger(__name__)

HEADS_POLL_SECS = 1.0
READ_AGAIN_SECS = 0.2
FOLLOW = "follow-heads"
"""The kind of the channels on which nodes name the sessions that they follow."""
_CLOSED = b'{"type":"session_closed",'


@dataclasses.dataclass(frozen=True)
class LossWatch:
    """Notices that the database has lost entries that were seen.

    Attributes:
        failovers: returns the number of failovers of the database since the start.
        on_loss: called for each log that has gone back.
    """

    failovers: Callable[[], int]
    on_loss: Callable[[], None]


class FollowedLog(LogReader):
    """The log of a session that another node runs.

    Attributes:
        is_complete: whether ``session_closed`` is the last entry.
    """

    def __init__(
        self,
        shared: EventLogs,
        number: int,
        head: int,
        *,
        is_complete: bool,
        queries: Queries,
        losses: LossWatch,
    ) -> None:
        super().__init__(shared, number, head)
        self._losses = losses
        self._checked_failovers = losses.failovers()
        self._has_gone_back = False
        self._last_line: int | None = None  # a hash
        self.is_complete = is_complete
        self._known_head = head
        self._queries = queries
        self._reading: asyncio.Task[None] | None = None

    @property
    def number(self) -> int:
        """The number of the session."""
        return self._number

    @property
    def has_gone_back(self) -> bool:
        return self._has_gone_back

    async def remember(self) -> None:
        """Read the last entry, by which :meth:`check` recognises the log."""
        head = self.head
        with contextlib.suppress(DatabaseError):
            line = await self._line_at(head)
            if self.head == head:
                self._last_line = hash(line)

    async def check(self) -> None:
        """Check after a failover of the database that it still has the entries that were seen.

        An entry contains its time, so if the last one is the same, all before it are.

        Raises:
            DatabaseError: the database cannot be read.
        """
        failovers = self._losses.failovers()
        if failovers == self._checked_failovers or self._has_gone_back:
            return
        head, last_line = self.head, self._last_line
        if head and hash(await self._line_at(head)) != last_line:
            self._has_gone_back = True
            self._losses.on_loss()
        self._checked_failovers = failovers

    async def _line_at(self, position: int) -> bytes:
        rows = await self._queries.read_log(self._number, position - 1, 1)
        if not rows or not rows[0].first_seq <= position <= rows[0].last_seq:
            return b""
        return rows[0].body.split(b"\n")[position - rows[0].first_seq]

    def note_head(self, head: int) -> bool:
        """Read the entries up to *head*, and notify the subscribers. False if they are known."""
        if head <= self._known_head:
            return False
        self._known_head = head
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_new(), name="followed-log")
        return True

    def note_entries(self, row: LogRow) -> None:
        """Take committed entries that the owner has sent, or read them if some before are missing.

        After a failover of the database they are read as well, and the log is checked.
        """
        is_certain = self._losses.failovers() == self._checked_failovers and not self._has_gone_back
        if is_certain and self._reading is None and row.first_seq == self.head + 1:
            self._known_head = max(self._known_head, row.last_seq)
            self.publish([row])
        self.note_head(row.last_seq)

    def publish(self, rows: Sequence[LogRow]) -> None:
        if rows:
            last = rows[-1].body.rpartition(b"\n")[2]
            self.is_complete = last.startswith(_CLOSED)
            self._last_line = hash(last)
        super().publish(rows)

    async def _read_new(self) -> None:
        try:
            while self.head < self._known_head:
                try:
                    rows = await self._queries.read_log(
                        self._number, self.head, self._limits.page_bytes
                    )
                    await self.check()
                except DatabaseError:
                    await asyncio.sleep(READ_AGAIN_SECS)
                    continue
                if self._has_gone_back:
                    return
                if not rows:
                    self._known_head = self.head  # the log was deleted, or has gone back
                    return
                self.publish(rows)
        finally:
            self._reading = None


class LogFollower:
    """The logs that this node follows.

    Args:
        losses: learns of logs that have gone back.

    Attributes:
        missed: the times that a poll has found entries of which no notification had arrived.
    """

    def __init__(
        self, node: ClusterNode, logs: EventLogs, queries: Queries, losses: LossWatch
    ) -> None:
        self.missed = 0
        self._losses = losses
        self._node = node
        self._logs = logs
        self._queries = queries
        self._followed: dict[int, tuple[str, FollowedLog]] = {}
        self._users: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._channels: dict[int, NodeChannel] = {}
        self._named: dict[int, set[str]] = {}
        self._tasks = Tasks()
        node.on_heads = self._note_heads
        node.on_entries = self._note_entries
        self._has_followed = asyncio.Event()
        node.on_event[CLAIMED] = self._note_claim

    def __len__(self) -> int:
        return len(self._followed)

    async def stop(self) -> None:
        await self._tasks.finish(0)

    def open(self, number: int, head: int, *, is_complete: bool) -> FollowedLog:
        """The log of a session that another node runs; the one that is followed, if it is."""
        if number in self._followed and not self._followed[number][1].has_gone_back:
            log = self._followed[number][1]
            log.note_head(head)
            return log
        return FollowedLog(
            self._logs,
            number,
            head,
            is_complete=is_complete,
            queries=self._queries,
            losses=self._losses,
        )

    def follow(self, session_id: str, log: FollowedLog, owner: int | None) -> None:
        """Follow a log. :meth:`unfollow` must be called as often."""
        number = log.number
        self._users[number] = self._users.get(number, 0) + 1
        if number not in self._followed:
            self._followed[number] = (session_id, log)
            self._has_followed.set()
            self._set_owner(number, owner)
            self._tasks.spawn(log.remember(), "followed-log-last")
        elif self._followed[number][1].has_gone_back:
            self._followed[number] = (session_id, log)

    def unfollow(self, log: FollowedLog) -> None:
        number = log.number
        self._users[number] -= 1
        if not self._users[number]:
            del self._users[number]
            self._set_owner(number, None)
            del self._followed[number]

    async def watch(self) -> None:
        """Read the heads and the owners once a second, forever."""
        while True:
            if not self._followed:
                self._has_followed.clear()
                await self._has_followed.wait()
            await asyncio.sleep(HEADS_POLL_SECS)
            asked = set(self._followed)  # more may follow during the query
            try:
                heads = await self._node.heads_of(asked)
            except DatabaseError:
                continue
            await self._check()
            for number, (owner, head) in heads.items():
                if (entry := self._followed.get(number)) is None:
                    continue
                self.missed += entry[1].note_head(head) and owner == self._owners.get(number)
                self._set_owner(number, owner)
            for number in (asked & self._followed.keys()) - heads.keys():
                self._followed[number][1].mark_deleted()

    async def _check(self) -> None:
        """Check the logs after a failover."""
        for _, log in tuple(self._followed.values()):
            with contextlib.suppress(DatabaseError):  # the next round checks it again
                await log.check()

    def _note_heads(self, heads: Sequence[tuple[int, int]]) -> None:
        for number, head in heads:
            if (entry := self._followed.get(number)) is not None:
                entry[1].note_head(head)

    def _note_entries(self, row: LogRow) -> None:
        if (entry := self._followed.get(row.session)) is not None:
            entry[1].note_entries(row)

    def _note_claim(self, text: str) -> None:
        number, owner = map(int, text.split())
        if number in self._followed:
            self._set_owner(number, owner)

    def _set_owner(self, number: int, owner: int | None) -> None:
        """Name the session to its owner, and no longer to the one before."""
        session_id, _ = self._followed[number]
        before = self._owners.get(number)
        if before is not None and before != owner:
            self._owners.pop(number)
            self._named.get(before, set()).discard(session_id)
            self._notify_owner(before, drop=session_id)
        if owner is not None and session_id not in self._named.get(owner, ()):
            self._owners[number] = owner
            self._named.setdefault(owner, set()).add(session_id)
            self._notify_owner(owner, add=session_id)

    def _notify_owner(self, owner: int, **order: str) -> None:
        channel = self._channels.get(owner)
        if channel is None:
            if "drop" in order:
                return
            channel = self._channels[owner] = self._node.channels.open(owner, FOLLOW)
            self._tasks.spawn(self._watch_channel(owner, channel), f"follow-node-{owner}")
        try:
            channel.send_now(dumps(order))
        except ChannelLostError:
            self._forget(owner, channel)

    async def _watch_channel(self, owner: int, channel: NodeChannel) -> None:
        """Notice the end of a channel; the next poll names its sessions again."""
        try:
            async for _ in channel:
                pass
        except ChannelLostError:
            pass
        finally:
            self._forget(owner, channel)
            channel.close()

    def _forget(self, owner: int, channel: NodeChannel) -> None:
        if self._channels.get(owner) is channel:
            del self._channels[owner]
            self._named.pop(owner, None)
