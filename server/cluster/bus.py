"""Messages from node to node, through the database.

A message is a row. Small ones are also in the notification, with the number of the message before:
if the receiver has that one, it need not query the rows. Otherwise, or if a notification was lost,
it does; :meth:`Bus.look` finds what is left over. The rows are not durable: a crash of the engine
loses them, and :mod:`channels` detects the loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..errors import DatabaseError
from ..tasks import Supervisor, Tasks
from . import notices

logger = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 16
"""Messages that one statement sends."""
BUS_RETRY_SECS = 0.2
PROOF_SECS = 1.0
"""A notification of a node to itself arrives in this time, or its listener is replaced."""
LAST_SECS = 1.0
"""The time in which the last messages of a node are sent."""


_SEND = (
    "WITH i AS (INSERT INTO commands (target, sender, seq, body)"
    " SELECT m.target, ?1, m.seq, m.body"
    " FROM unnest(?2::bigint[], ?3::bigint[], ?4::bytea[]) AS m (target, seq, body)"
    " ON CONFLICT (sender, seq) DO NOTHING)"
    " SELECT set_config('synchronous_commit', 'off', true), pg_notify(t.channel, t.text)"
    " FROM unnest(?5::text[], ?6::text[]) AS t (channel, text)"
)
_FIND = (
    "SELECT sender, seq, body FROM commands WHERE target = ?1 AND NOT EXISTS"
    " (SELECT 1 FROM unnest(?2::bigint[], ?3::bigint[]) AS known (sender, seq)"
    " WHERE known.sender = commands.sender AND commands.seq <= known.seq) ORDER BY sender, seq"
)
_FORGET = (
    "DELETE FROM commands USING unnest(?2::bigint[], ?3::bigint[]) AS known (sender, seq)"
    " WHERE target = ?1 AND commands.sender = known.sender AND commands.seq <= known.seq"
)


class NoticeListener(Protocol):
    """A connection on which notifications arrive."""

    def terminate(self) -> None: ...


class ClusterEngine(Protocol):
    """The part of the database that the bus uses."""

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]: ...

    async def change(
        self, sql: str, parameters: Sequence[Any] = (), *, repeats: bool = False
    ) -> list[tuple[Any, ...]]: ...

    async def listen(
        self,
        channels: Sequence[str],
        callback: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> NoticeListener: ...

    async def notify(
        self, channel: str, payloads: Sequence[str], *, shows_commits: bool = False
    ) -> None: ...


class NodeMessage(NamedTuple):
    """A message to this node.

    Attributes:
        sender: the number of a node.
        seq: the number of the message among the sender's messages.
    """

    sender: int
    seq: int
    body: bytes


class Bus:
    """Sends the messages of one node, and receives those for it.

    Args:
        number: of the node.
        secret: of the cluster, with which the names of the channels are made.

    Attributes:
        on_message: called with each message, in the order in which its sender sent it.
        on_notice: called with the text of each other notification.
        on_gap: called after a time in which notifications may have been lost.
        is_proven: set while a connection is open that has delivered a notification.
    """

    def __init__(
        self, engine: ClusterEngine, number: int, supervisor: Supervisor, secret: bytes
    ) -> None:
        self.number = number
        self._secret = secret
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
        self._last_to: dict[int, int] = {}
        self._last_from: dict[int, int] = {}
        self._handled: dict[int, int] = {}  # the rows of these senders are to be deleted
        self._listener: NoticeListener | None = None
        self.is_proven = asyncio.Event()
        self._proof = 0
        self._proof_sent_at = 0.0

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

    async def notify(self, target: int | None, *texts: str, shows_commits: bool = False) -> None:
        """Send notifications to a node, or to all. They may be lost.

        Args:
            shows_commits: whether they contain what this node has committed. After a failover of
                the database they are not sent before it is known to have the last commit.
        """
        channel = notices.channel_of(self._secret, target)
        with contextlib.suppress(DatabaseError):
            await self._engine.notify(channel, texts, shows_commits=shows_commits)

    async def notify_all(self, text: str) -> None:
        """Send a notification to every node. It may be lost."""
        await self.notify(None, text)

    def announce(self, text: str) -> None:
        """Send a notification to every node in the background. It may be lost."""
        self._tasks.spawn(self.notify_all(text), "cluster-announce")

    async def prove_listener(self) -> None:
        """Send this node a notification; replace the listener if the one before did not arrive.

        A dead connection may look alive, and then every message would be as late as the next
        :meth:`look`.
        """
        now = time.monotonic()
        if self._proof and now - self._proof_sent_at < PROOF_SECS:
            return
        if self._proof and self._listener is not None:
            logger.warning("a connection delivers no notifications; connecting again")
            self._listener.terminate()
        self._proof += 1
        self._proof_sent_at = now
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
        by_target: dict[int, list[tuple[int, bytes]]] = {}
        for target, seq, body in messages:
            by_target.setdefault(target, []).append((seq, body))
        channels = [notices.channel_of(self._secret, target) for target in sorted(by_target)]
        texts = []
        for target in sorted(by_target):
            before = self._last_to.get(target, 0)
            texts.append(notices.messages_text(self.number, before, by_target[target]))
            self._last_to[target] = by_target[target][-1][0]
        targets, numbers, bodies = map(list, zip(*messages, strict=True))
        rows = (self.number, targets, numbers, bodies)
        while True:
            try:
                await self._engine.change(_SEND, (*rows, channels, texts), repeats=True)
                return
            except DatabaseError as error:
                if error.is_transient:
                    await asyncio.sleep(BUS_RETRY_SECS)
                elif channels:  # the engine's queue is full: the receivers find the messages later
                    logger.warning("other nodes cannot be notified: %s", error)
                    channels, texts = [], []
                else:
                    logger.error("messages to other nodes were dropped: %s", error)
                    return

    def look(self) -> None:
        """Find the messages in the table whose notifications were lost.

        A handled one may be there, too: its sender has repeated it after a lost answer.
        """
        self._handled.update(self._last_from)
        self._is_due.set()

    async def sweep(self) -> None:
        """Delete the rows of the messages that arrived in notifications.

        Raises:
            DatabaseError: some rows are left; the next call deletes them.
        """
        if handled := self._handled:
            self._handled = {}
            try:
                await self._forget(handled)
            except DatabaseError:
                self._handled = {**handled, **self._handled}
                raise

    async def _receive(self) -> None:
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._take()
            except DatabaseError:
                await asyncio.sleep(BUS_RETRY_SECS)
                self._is_due.set()

    async def _take(self) -> None:
        """Handle the messages in the table that are new, and delete their rows afterwards.

        If the deletion fails, no message is lost: the rows are found again, and are not handled
        again.
        """
        known = list(self._last_from), list(self._last_from.values())
        rows = await self._engine.fetch(_FIND, (self.number, *known))
        for sender, seq, body in rows:
            self._handle(NodeMessage(sender, seq, bytes(body)))
        if rows:
            await self._forget({row[0]: self._last_from[row[0]] for row in rows})

    async def _forget(self, handled: dict[int, int]) -> None:
        """Delete the rows of each sender up to a message."""
        values = self.number, list(handled), list(handled.values())
        await self._engine.change(_FORGET, values, repeats=True)

    def _take_noticed(self, text: str) -> None:
        """Handle the messages in a notification, unless one before them was not handled yet."""
        sender, before, messages = notices.messages_in(text)
        if self._last_from.get(sender, 0) != before:
            self._is_due.set()
            return
        for seq, body in messages:
            self._handle(NodeMessage(sender, seq, body))
        self._handled[sender] = self._last_from[sender]

    def _handle(self, message: NodeMessage) -> None:
        if message.seq <= self._last_from.get(message.sender, 0):
            return
        self._last_from[message.sender] = message.seq
        try:
            self.on_message(message)
        except Exception:
            logger.exception("a message of another node failed")

    async def _listen(self) -> None:
        """Keep a connection on which notifications arrive; look for messages after each gap."""
        channels = [notices.channel_of(self._secret, node) for node in (self.number, None)]
        while True:
            ended = asyncio.Event()
            try:
                self._listener = await self._engine.listen(
                    channels, self._on_notification, ended.set
                )
            except DatabaseError:
                await asyncio.sleep(BUS_RETRY_SECS)
                continue
            self._proof = 0
            self._is_due.set()
            self.on_gap()
            await self.prove_listener()
            await ended.wait()
            self.is_proven.clear()

    def _on_notification(self, text: str) -> None:
        if text.startswith(notices.MESSAGES):
            self._take_noticed(text)
        elif not text:
            self._is_due.set()
        elif text.startswith("proof "):
            self._proof = 0
            self.is_proven.set()
        else:
            self.on_notice(text)
