"""Channels: streams of messages in both directions between two nodes.

One node opens a channel of a kind, and a task of the other node serves it. Pieces arrive once and
in order. If one is lost, because the engine crashed, both nodes end the channel, and its users get
:class:`ChannelLostError`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import msgspec

from ..errors import failure_of
from ..tasks import Tasks
from .bus import Bus, NodeMessage

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 << 10
"""A larger message is sent in several pieces by its user."""
WINDOW = 16
"""Pieces that are sent before the receiver has taken the first of them."""
CHECK_SECS = 2.0
"""The interval in which both ends check that they know a channel and have the same pieces."""
FINAL_CHECKS = 2
"""Checks of a channel after its last message. One of them may be lost as well."""


class ChannelLostError(Exception):
    """The other node has ended, or a piece was lost."""


class Envelope(msgspec.Struct, array_like=True):
    """One message of a channel.

    Attributes:
        kind: ``open``, ``piece``, ``taken``, ``end``, ``check`` or ``lost``.
        opener: the node that opened the channel; with *number* the name of the channel.
        to_opener: whether it is for the end that opened the channel.
        count: of ``piece`` and ``end``: its number among those of its sender; of ``taken``: the
            pieces that were taken; of ``check``: the pieces that were sent.
        body: the piece, or the kind of a channel that is opened.
    """

    kind: str
    opener: int
    number: int
    to_opener: bool
    count: int
    body: bytes = b""


_encode_envelope = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode


class NodeChannel:
    """One end of a channel.

    Attributes:
        partner: the number of the node at the other end.
        name: the node that opened it, a number, and whether this is the end that opened it.
    """

    def __init__(self, channels: Channels, partner: int, name: tuple[int, int, bool]) -> None:
        self.partner = partner
        self.name = name
        self._checks = 0
        self._channels = channels
        self._sent = self._taken_there = 0
        self._received = self._taken = 0
        self._pieces: deque[bytes | None] = deque()
        self._changed = asyncio.Event()
        self._is_lost = self._is_closed = False

    async def send(self, piece: bytes) -> None:
        """Send a piece, after the other end has taken enough of the earlier ones.

        Raises:
            ChannelLostError: it will not arrive.
        """
        while self._sent - self._taken_there >= WINDOW and not self._is_lost:
            self._changed.clear()
            await self._changed.wait()
        self.send_now(piece)

    def send_now(self, piece: bytes) -> None:
        """Send a small piece, however many the other end has not taken.

        Raises:
            ChannelLostError: it will not arrive.
        """
        if self._is_lost or self._is_closed:
            raise ChannelLostError
        self._sent += 1
        self._post("piece", self._sent, piece)

    async def receive(self) -> bytes | None:
        """Return the next piece; None after the last one.

        Raises:
            ChannelLostError: a piece was lost, or the other node has ended.
        """
        while not self._pieces:
            if self._is_lost:
                raise ChannelLostError
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces[0]
        if piece is None:
            return None
        self._pieces.popleft()
        self._taken += 1
        if self._taken % (WINDOW // 2) == 0 and not self._is_closed:
            self._post("taken", self._taken)
        return piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self.receive()) is not None:
            yield piece

    def end(self) -> None:
        """Send no more pieces."""
        if not (self._is_lost or self._is_closed):
            self._sent += 1
            self._post("end", self._sent)

    def close(self) -> None:
        """End the channel for both nodes, and use it no longer."""
        if not self._is_closed:
            self._is_closed = True
            self._channels.forget(self)
            if not self._is_lost:
                self._post("lost", 0)

    # Called by Channels

    def lose(self) -> None:
        """Note that nothing more arrives."""
        self._is_lost = True
        self._channels.forget(self)
        self._changed.set()

    def handle(self, envelope: Envelope) -> None:
        """Take a message of the other end."""
        match envelope.kind:
            case "piece" | "end":
                self._received += 1
                if envelope.count != self._received:
                    self._post("lost", 0)
                    self.lose()
                    return
                self._pieces.append(envelope.body if envelope.kind == "piece" else None)
            case "taken":
                self._taken_there = max(self._taken_there, envelope.count)
            case "check":
                # A piece that was sent before the check arrives before it, or never.
                if envelope.count > self._received:
                    self._post("lost", 0)
                    self.lose()
                    return
            case "lost":
                self.lose()
                return
        self._changed.set()

    def check(self, *, anyway: bool = False) -> None:
        """Let the other end compare the number of received pieces with the number of sent ones."""
        if self._checks or anyway:
            self._checks = max(0, self._checks - 1)
            self._channels.post(self.partner, self._envelope("check", self._sent))

    def _post(self, kind: str, count: int, body: bytes = b"") -> None:
        self._checks = FINAL_CHECKS
        self._channels.post(self.partner, self._envelope(kind, count, body))

    def _envelope(self, kind: str, count: int, body: bytes = b"") -> Envelope:
        opener, number, is_opener = self.name
        return Envelope(kind, opener, number, not is_opener, count, body)


Serve = Callable[[NodeChannel], Awaitable[None]]


class Channels:
    """The open channels of one node.

    Attributes:
        servers: the functions that serve channels, by the kind of the channel. The channel is
            closed when the function has returned.
    """

    def __init__(self, bus: Bus) -> None:
        self.servers: dict[str, Serve] = {}
        self._bus = bus
        self._tasks = Tasks()
        self._numbers = itertools.count(1)
        self._open: dict[tuple[int, int, bool], NodeChannel] = {}
        bus.on_message = self._handle
        bus.on_gap = self._check_all

    def __len__(self) -> int:
        return len(self._open)

    async def stop(self) -> None:
        await self._tasks.finish(0)
        for channel in tuple(self._open.values()):
            channel.close()

    def open(self, node: int, kind: str) -> NodeChannel:
        """Open a channel to a node. The caller must close it."""
        name = (self._bus.number, next(self._numbers), True)
        channel = self._open[name] = NodeChannel(self, node, name)
        self.post(node, Envelope("open", name[0], name[1], False, 0, kind.encode()))
        return channel

    def post(self, node: int, envelope: Envelope) -> None:
        self._bus.post(node, _encode_envelope(envelope))

    def forget(self, channel: NodeChannel) -> None:
        self._open.pop(channel.name, None)

    def lose_nodes(self, alive: Iterable[int]) -> None:
        """End the channels to nodes other than these."""
        known = set(alive)
        for channel in tuple(self._open.values()):
            if channel.partner not in known:
                channel.lose()

    def _check_all(self) -> None:
        for channel in tuple(self._open.values()):
            channel.check(anyway=True)

    async def watch(self) -> None:
        """Check the channels, forever."""
        while True:
            await asyncio.sleep(CHECK_SECS)
            for channel in tuple(self._open.values()):
                channel.check()

    def _handle(self, message: NodeMessage) -> None:
        envelope = _decode_envelope(message.body)
        name = (envelope.opener, envelope.number, envelope.to_opener)
        if envelope.kind == "open":
            self._serve(message.sender, name, envelope.body.decode())
            return
        channel = self._open.get(name)
        if channel is not None:
            channel.handle(envelope)
        elif envelope.kind != "lost":
            self._refuse(message.sender, name)

    def _serve(self, partner: int, name: tuple[int, int, bool], kind: str) -> None:
        serve = self.servers.get(kind)
        if serve is None:
            self._refuse(partner, name)
            return
        channel = self._open[name] = NodeChannel(self, partner, name)
        self._tasks.spawn(self._serve_channel(channel, serve, kind), f"channel-{kind}")

    def _refuse(self, partner: int, name: tuple[int, int, bool]) -> None:
        opener, number, is_opener = name
        self.post(partner, Envelope("lost", opener, number, not is_opener, 0))

    async def _serve_channel(self, channel: NodeChannel, serve: Serve, kind: str) -> None:
        try:
            await serve(channel)
        except ChannelLostError:
            pass
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure_of(error, f"a channel of kind {kind}")
        finally:
            channel.close()
