"""The parts of the server that survive a reload, besides the agents and the sessions."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence

import msgspec

from ..agents.process.child import reap_others
from ..auth.tickets import CarriedTicket
from ..auth.tokens import TokenRegistry
from ..reload.state import Inherited, PassedDescriptors
from ..storage.writer import DatabaseWriter
from ..web.listener import Listener
from ..web.waits import CarriedWait, pack_waits
from ..ws.hub import Hub

RESUME_MS = (50, 200)
"""Clients reconnect after a reload at a random time in this range."""
REQUESTS_SECS = 0.3
SOCKETS_SECS = 0.3
CLOSING_SECS = 3.0
REQUESTS_POLL_SECS = 0.002
"""The times, in seconds, for short requests to end and for sockets to close; others are cut."""
MAX_PASSED_CONNECTIONS = 1000
"""The connections between two requests that the next version serves. Further ones are closed."""


class CarriedListeners(msgspec.Struct, kw_only=True):
    """The descriptors of sockets for the next version of the server.

    Attributes:
        control: of the operator's socket.
        closing: of connections whose clients have not closed their side yet.
        waits: requests that wait for turns.
        idle: of connections without a request. A client may just be sending one.
    """

    listening: list[int]
    control: int | None
    closing: list[int]
    waits: list[CarriedWait]
    idle: list[int] = []


class ReloadableConnections:
    """A ``Carrier``: the listening sockets. Connections end, and clients reconnect.

    Args:
        check: raises :class:`ReloadError` if the server cannot be reloaded now.

    Attributes:
        listener: set once the server listens.
        control: the descriptor of the operator's socket, if it has one.
    """

    name = "listeners"

    def __init__(self, sockets: Hub, check: Callable[[], None]) -> None:
        self._sockets = sockets
        self._check = check
        self.listener: Listener | None = None
        self.control: int | None = None

    def is_settled(self) -> bool:
        return True

    async def freeze(self) -> None:
        self._check()
        if self.listener is not None:
            await self.listener.stop_accepting()
        await asyncio.gather(
            self._sockets.say_bye(SOCKETS_SECS, RESUME_MS),
            self._wait_for_requests(),
        )

    async def _wait_for_requests(self) -> None:
        """Read no further requests, and wait for those in progress, except long waits."""
        if self.listener is None:
            return
        deadline = time.monotonic() + REQUESTS_SECS
        while time.monotonic() < deadline:
            # Each time: when a request in progress has ended, the next one must not be read.
            for connection in self.listener.connections:
                connection.stop_reading()
            if not any(
                connection.is_busy or connection.is_starting
                for connection in self.listener.connections
            ):
                return
            await asyncio.sleep(REQUESTS_POLL_SECS)

    def thaw(self) -> None:
        if self.listener is not None:
            for connection in self.listener.connections:
                connection.start_reading()
            self.listener.start_accepting()

    def pack(self, passed: PassedDescriptors) -> CarriedListeners:
        listening = self.listener.descriptors if self.listener is not None else []
        return CarriedListeners(
            listening=[passed.add(descriptor) for descriptor in listening],
            control=passed.add(self.control) if self.control is not None else None,
            closing=[passed.add(descriptor) for descriptor in self._sockets.descriptors],
            waits=pack_waits(self.listener.connections, passed) if self.listener else [],
            idle=_pack_idle(self.listener, passed) if self.listener else [],
        )

    def children(self) -> Sequence[int]:
        return []


def _pack_idle(listener: Listener, passed: PassedDescriptors) -> list[int]:
    idle = (
        connection.transport
        for connection in listener.connections
        if connection.is_between_requests
    )
    return [
        passed.add(transport.get_extra_info("socket").fileno())
        for transport in itertools.islice(idle, MAX_PASSED_CONNECTIONS)
        if transport is not None
    ]


def inherited_listeners(inherited: Inherited | None) -> CarriedListeners:
    """The listening sockets that an earlier version of the server has passed on, if any."""
    carried = inherited.part("listeners", CarriedListeners) if inherited is not None else None
    if carried is None or inherited is None:
        return CarriedListeners(listening=[], control=None, closing=[], waits=[])
    for descriptor in (*carried.listening, *carried.closing, *carried.idle, carried.control):
        if descriptor is not None:
            inherited.claim(descriptor)
    for wait in carried.waits:
        inherited.claim(wait.descriptor)
    for descriptor in carried.closing:
        asyncio.get_running_loop().call_later(CLOSING_SECS, os.close, descriptor)
    return carried


class CarriedStorage(msgspec.Struct, kw_only=True):
    """The lock of the data folder, and what no table stores."""

    lock: int
    tickets: list[CarriedTicket]


class ReloadableStorage:
    """A ``Carrier``, the last one: commits everything, and keeps the lock of the data folder.

    Args:
        lock: the descriptor of the lock.

    Attributes:
        is_ready: returns whether the server has started, and no run would be ended.
    """

    name = "storage"

    def __init__(
        self,
        writer: DatabaseWriter,
        tokens: TokenRegistry,
        lock: int,
    ) -> None:
        self._writer = writer
        self._tokens = tokens
        self._lock = lock
        self.is_ready: Callable[[], bool] = lambda: False

    def is_settled(self) -> bool:
        return self.is_ready()

    async def freeze(self) -> None:
        while not self._writer.is_idle:
            await self._writer.flush()

    def thaw(self) -> None:
        """Do nothing: commits continue."""

    def pack(self, passed: PassedDescriptors) -> CarriedStorage:
        return CarriedStorage(lock=passed.add(self._lock), tickets=self._tokens.tickets.pack())

    def children(self) -> Sequence[int]:
        return []


def inherited_lock(inherited: Inherited | None) -> int | None:
    """The lock of the data folder, if an earlier version of the server holds it."""
    carried = inherited.part("storage", CarriedStorage) if inherited is not None else None
    return inherited.claim(carried.lock) if carried is not None and inherited is not None else None


def close_rest(inherited: Inherited | None) -> None:
    """Close the descriptors that no part has claimed, and reap the processes that none knows."""
    if inherited is not None:
        reap_others(inherited.children)
        inherited.close_rest()


def restore_tickets(tokens: TokenRegistry, inherited: Inherited | None) -> None:
    """Restore the tickets of an earlier version of the server."""
    carried = inherited.part("storage", CarriedStorage) if inherited is not None else None
    if carried is not None:
        tokens.tickets.restore(carried.tickets, tokens.credential_of)
