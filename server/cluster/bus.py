"""Messages from node to node, through the database.

A message is a row, and a notification makes its receiver query the rows. A notification may be
lost, so the receiver also queries once a second. The rows are not durable: a crash of the engine
loses them, and :mod:`channels` detects the loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..errors import DatabaseError
from ..tasks import Supervisor, Tasks

logger = logging.getLogger(__name__)

BUS_POLL_SECS = 1.0
MESSAGES_AT_ONCE = 16
"""Messages that one statement sends."""
BUS_RETRY_SECS = 0.2
LAST_SECS = 1.0
"""The time in which the last messages of a node are sent."""


class NoticeListener(Protocol):
    """A connection on which notifications arrive."""

    def is_closed(self) -> bool: ...

    def terminate(self) -> None: ...


class ClusterEngine(Protocol):
    """The part of the database that the bus uses."""

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]: ...

    async def change(
        self, sql: str, parameters: Sequence[Any] = (), *, repeats: bool = False
    ) -> list[tuple[Any, ...]]: ...

    async def listen(
        self, channels: Sequence[str], callback: Callable[[str, str], None]
    ) -> NoticeListener: ...

    async def notify(self, channel: str, payload: str) -> None: ...


class NodeMessage(NamedTuple):
    """A message to this node.

    Attributes:
        sender: the number of a node.
        seq: the number of the message among the sender's messages.
    """

    sender: int
    seq: int
    body: bytes


def channel_of(node: int) -> str:
    """The name of the channel on which a node gets its notifications."""
    return f"clawdforge_{node}"


EVERYONE = "clawdforge_all"
"""The channel on which every node gets notifications."""


class Bus:
    """Sends the messages of one node, and receives those for it.

    Attributes:
        on_message: called with each message, in the order in which its sender sent it.
        on_notice: called with the text of each other notification.
        on_gap: called after a time in which notifications may have been lost.
    """

    def __init__(self, engine: ClusterEngine, number: int, supervisor: Supervisor) -> None:
        self.number = number
        self.on_message: Callable[[NodeMessage], None] = lambda message: None
        self.on_notice: Callable[[str], None] = lambda text: None
        self.on_gap: Callable[[], None] = lambda: None
        self._engine = engine
        self._supervisor = supervisor
        self._tasks = Tasks()
        self._numbers = itertools.count(1)
        self._unsent: list[tuple[int, int, bytes]] = []
        self._has_unsent = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._is_due = asyncio.Event()
        self._last_from: dict[int, int] = {}
        self._listener: NoticeListener | None = None
        self._proof = 0

    def start(self) -> None:
        for name, loop in (
            ("cluster-send", self._send),
            ("cluster-receive", self._receive),
            ("cluster-listen", self._listen),
        ):
            self._supervisor.spawn(self._tasks, name, loop)

    async def stop(self) -> None:
        """Send the posted messages, for at most :data:`LAST_SECS`, and end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECS):
                await self._all_sent.wait()
        await self._tasks.finish(0)
        if self._listener is not None:
            self._listener.terminate()

    def post(self, target: int, body: bytes) -> None:
        """Send a message to a node. Messages to the same node arrive in the order of the calls."""
        self._unsent.append((target, next(self._numbers), body))
        self._has_unsent.set()
        self._all_sent.clear()

    async def notify(self, target: int, text: str) -> None:
        """Send a notification to a node. It may be lost."""
        with contextlib.suppress(DatabaseError):
            await self._engine.notify(channel_of(target), text)

    async def notify_all(self, text: str) -> None:
        """Send a notification to every node. It may be lost."""
        with contextlib.suppress(DatabaseError):
            await self._engine.notify(EVERYONE, text)

    def announce(self, text: str) -> None:
        """Send a notification to every node in the background. It may be lost."""
        self._tasks.spawn(self.notify_all(text), "cluster-announce")

    async def prove_listener(self) -> None:
        """Send this node a notification; replace the listener if the one before did not arrive.

        A dead connection may look alive, and then every message would be as late as the poll.
        """
        if self._proof and self._listener is not None:
            logger.warning("a connection delivers no notifications; connecting again")
            self._listener.terminate()
        self._proof += 1
        await self.notify(self.number, f"proof {self._proof}")

    async def _send(self) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            while self._unsent:
                now = self._unsent[:MESSAGES_AT_ONCE]
                await self._store(now)
                del self._unsent[: len(now)]
            self._all_sent.set()

    async def _store(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Store messages and notify their receivers, in one commit that waits for no disk."""
        rows = ", ".join(["(?, ?, ?, ?)"] * len(messages))
        values: list[Any] = []
        for target, seq, body in messages:
            values += [target, self.number, seq, body]
        targets = sorted({target for target, _, _ in messages})
        calls = ", ".join(["pg_notify(?, '')"] * len(targets))
        sql = (
            f"WITH i AS (INSERT INTO commands (target, sender, seq, body) VALUES {rows}"  # noqa: S608
            " ON CONFLICT (sender, seq) DO NOTHING)"
            f" SELECT set_config('synchronous_commit', 'off', true), {calls}"
        )
        while True:
            try:
                await self._engine.change(sql, [*values, *map(channel_of, targets)], repeats=True)
                return
            except DatabaseError as error:
                if not error.is_transient:
                    logger.error("messages to other nodes were dropped: %s", error)
                    return
                await asyncio.sleep(BUS_RETRY_SECS)

    async def _receive(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BUS_POLL_SECS):
                    await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._take()
            except DatabaseError:
                await asyncio.sleep(BUS_RETRY_SECS)

    async def _take(self) -> None:
        """Handle the new messages, and delete their rows afterwards.

        If the deletion fails, no message is lost: the rows are found again, and are not handled
        again.
        """
        rows = await self._engine.fetch(
            "SELECT sender, seq, body FROM commands WHERE target = ? ORDER BY sender, seq",
            (self.number,),
        )
        for sender, seq, body in rows:
            if seq > self._last_from.get(sender, 0):
                self._last_from[sender] = seq
                self._handle(NodeMessage(sender, seq, bytes(body)))
        for sender in {row[0] for row in rows}:
            await self._engine.change(
                "DELETE FROM commands WHERE target = ? AND sender = ? AND seq <= ?",
                (self.number, sender, self._last_from[sender]),
                repeats=True,
            )

    def _handle(self, message: NodeMessage) -> None:
        try:
            self.on_message(message)
        except Exception:
            logger.exception("a message of another node failed")

    async def _listen(self) -> None:
        """Keep a connection on which notifications arrive; look for messages after each gap."""
        while True:
            try:
                self._listener = await self._engine.listen(
                    [channel_of(self.number), EVERYONE], self._on_notification
                )
            except DatabaseError:
                await asyncio.sleep(BUS_RETRY_SECS)
                continue
            self._proof = 0
            self._is_due.set()
            self.on_gap()
            await self._until_closed(self._listener)

    async def _until_closed(self, listener: NoticeListener) -> None:
        while not listener.is_closed():  # noqa: ASYNC110 - nothing reports the end
            await asyncio.sleep(BUS_RETRY_SECS)

    def _on_notification(self, channel: str, text: str) -> None:
        if not text:
            self._is_due.set()
        elif text.startswith("proof "):
            self._proof = 0
        else:
            self.on_notice(text)
