"""Limits the connections of agents to a gateway, so that no agent can use up all descriptors."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from aiohttp import web

MAX_UNKNOWN = 256
"""Connections that have not yet sent a token. A new one replaces the oldest one."""
MAX_KNOWN_PER_SESSION = 64
KNOWN_AFTER_SECS = 30.0


class GatewayConnections:
    """The open connections of a gateway, of which each belongs to a session or to none yet."""

    def __init__(self) -> None:
        self._unknown: dict[GatewayConnection, None] = {}
        self._known: defaultdict[str, set[GatewayConnection]] = defaultdict(set)

    def add(self, connection: GatewayConnection) -> None:
        self._unknown[connection] = None
        if len(self._unknown) > MAX_UNKNOWN:
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            oldest.abort()

    def is_unknown(self, connection: GatewayConnection) -> bool:
        return connection in self._unknown

    def identify(self, connection: GatewayConnection, session: str) -> bool:
        """Note a connection's session. False if that has too many."""
        if self._unknown.pop(connection, False) is None:
            connection.session = session
            self._known[session].add(connection)
        return len(self._known[session]) <= MAX_KNOWN_PER_SESSION

    def remove(self, connection: GatewayConnection) -> None:
        self._unknown.pop(connection, None)
        if connection.session:
            self._known[connection.session].discard(connection)
            if not self._known[connection.session]:
                del self._known[connection.session]


class GatewayConnection(web.RequestHandler):
    """A connection of an agent. It ends if it does not send a token in time."""

    __slots__ = ("_all", "_timer", "_wire", "session")

    def __init__(self, all_: GatewayConnections, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._all = all_
        self._wire: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.session = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._wire = transport
        self._all.add(self)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(KNOWN_AFTER_SECS, self._end_if_unknown)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._all.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    def _end_if_unknown(self) -> None:
        if self._all.is_unknown(self):
            self.abort()
