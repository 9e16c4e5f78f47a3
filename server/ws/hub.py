"""The hub of all connections: WebSockets and event streams, by app."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from ..auth.credential import REVOKED_ABORT_SECS, Credential
from ..config import Settings
from ..errors import CloseCode, Error, ErrorCode
from ..limits import ConcurrencyLimit, RefusalPace
from .connection import CLOSE_TIMEOUT_SECS, WebSocketConnection
from .disconnect import Disconnect

CHECKS_AT_ONCE = 50
"""A round of all connections takes a second. A check of 10,000 connections at once delayed clients
by 50 ms."""
RECONNECT_MS = (500, 5000)
"""Clients reconnect after a restart at a random time in this range."""
NO_READING = Disconnect(CloseCode.REFUSED, "the token does not have the scope read any more")
REVOKED = Disconnect(CloseCode.REVOKED, "the credential was revoked")


class Hub:
    """The connections of all apps.

    Attributes:
        unauthenticated: limits the connections whose clients are not authenticated.
        refusals: delays the responses to clients that are refused often.
        clock: returns the monotonic seconds by which connections are checked.
        close_timeout: seconds that a closing handshake may take.
        checks_at_once: connections that are checked in one iteration of the event loop.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.unauthenticated = ConcurrencyLimit(
            settings.max_waiting_sockets, settings.max_waiting_sockets_per_address
        )
        self.refusals = RefusalPace(settings.max_refusals_per_sec)
        self.clock = clock
        self.close_timeout = CLOSE_TIMEOUT_SECS
        self.checks_at_once = CHECKS_AT_ONCE
        self._settings = settings
        self._by_app: defaultdict[str, set[WebSocketConnection]] = defaultdict(set)
        self._credential_of: dict[WebSocketConnection, Credential] = {}
        self._streams: dict[asyncio.Task[Any], str] = {}
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    def __len__(self) -> int:
        """The number of WebSocket connections."""
        return sum(map(len, self._by_app.values()))

    @property
    def connections(self) -> list[WebSocketConnection]:
        return [connection for group in self._by_app.values() for connection in group]

    @property
    def replay_lag(self) -> int:
        """The greatest :attr:`WebSocketConnection.lag`."""
        return max((connection.lag for connection in self.connections), default=0)

    def count_streams(self) -> int:
        """Return the number of event streams."""
        return len(self._streams)

    def is_full(self, app_name: str) -> bool:
        """Whether the app has reached its connection limit; an event stream counts as one."""
        streams = sum(name == app_name for name in self._streams.values())
        connections = len(self._by_app.get(app_name, ())) + streams
        return connections >= self._settings.max_sockets_per_app

    async def serve(self, connection: WebSocketConnection, credential: Credential) -> None:
        """Serve *connection* until it is closed."""
        if credential.is_revoked:  # during the upgrade
            connection.close(REVOKED)
        self._by_app[connection.app_name].add(connection)
        self._credential_of[connection] = credential
        self._all_closed.clear()
        try:
            await connection.serve(clock=self.clock, close_timeout=self.close_timeout)
        finally:
            connections = self._by_app[connection.app_name]
            connections.discard(connection)
            del self._credential_of[connection]
            if not connections:
                del self._by_app[connection.app_name]
            if not self._by_app:
                self._all_closed.set()

    def close_app(self, app_name: str) -> None:
        """Close the connections of an app whose token is revoked, and abort those that stay."""
        for connection in tuple(self._by_app.get(app_name, ())):
            connection.close(REVOKED)
            asyncio.get_running_loop().call_later(REVOKED_ABORT_SECS, connection.abort)

    def close_credential(self, credential: Credential) -> None:
        """Close the connections of a revoked share, and abort those that stay."""
        for connection in tuple(self._by_app.get(credential.app_name, ())):
            if self._credential_of.get(connection) is credential:
                connection.close(REVOKED)
                asyncio.get_running_loop().call_later(REVOKED_ABORT_SECS, connection.abort)

    def end_reading(self, app_name: str) -> None:
        """Close the connections of an app whose token does not have the scope ``read`` any more."""
        for connection in tuple(self._by_app.get(app_name, ())):
            credential = self._credential_of.get(connection)
            if credential is None or credential.session_id is None:  # not a share's
                connection.close(NO_READING)
        for task in [task for task, name in self._streams.items() if name == app_name]:
            del self._streams[task]
            task.cancel()

    @contextlib.contextmanager
    def stream(self, app_name: str) -> Iterator[None]:
        """Return a block in which the current task is an event stream.

        :meth:`close_all` and :meth:`end_reading` end it. It counts as a connection of the app.

        Raises:
            Error: ``rate_limited``; the app has reached its connection limit.
        """
        if self.is_full(app_name):
            raise Error(
                ErrorCode.RATE_LIMITED, "connection limit reached for this app", retry_after=5
            )
        task = asyncio.current_task()
        assert task is not None
        self._streams[task] = app_name
        try:
            yield
        except asyncio.CancelledError:
            if task in self._streams:
                raise
            task.uncancel()  # close_all() cancelled it: the response ends in order
        finally:
            self._streams.pop(task, None)

    async def close_all(self, timeout: float) -> None:
        """Close all connections because the server restarts; abort those that stay.

        Args:
            timeout: seconds that the connections have to close.
        """
        if not await self.say_bye(timeout, RECONNECT_MS):
            for connection in self.connections:
                connection.abort()

    def start_again(self) -> None:
        """Close all connections, because the database has lost entries that clients have seen."""
        while self._streams:
            self._streams.popitem()[0].cancel()
        for connection in self.connections:
            connection.close(
                Disconnect(CloseCode.POSITION_UNKNOWN, "the log went back: start again")
            )

    async def say_bye(self, timeout: float, retry_ms: tuple[int, int]) -> bool:
        """Close all connections because the server restarts.

        Args:
            timeout: seconds that the connections have to close.
            retry_ms: clients reconnect after a random time in this range.

        Returns:
            Whether all have closed in time.
        """
        while self._streams:
            self._streams.popitem()[0].cancel()
        for connection in self.connections:
            retry = random.randint(*retry_ms)  # noqa: S311 - a spread, not a secret
            connection.close(
                Disconnect(CloseCode.RESTARTING, "the server restarts", retry_after_ms=retry)
            )
        try:
            async with asyncio.timeout(timeout):
                await self._all_closed.wait()
        except TimeoutError:
            return False
        return True

    @property
    def descriptors(self) -> list[int]:
        """The descriptors of the sockets of all connections."""
        return [
            descriptor
            for connection in self.connections
            if (descriptor := connection.output.descriptor) >= 0
        ]

    async def heartbeat_loop(self) -> None:
        """Check the liveness of all connections, forever."""
        settings = self._settings
        round_secs = min(1.0, settings.heartbeat_secs / 4)
        while True:
            connections = self.connections
            starts = range(0, max(1, len(connections)), self.checks_at_once)
            for start in starts:
                now = self.clock()
                for connection in connections[start : start + self.checks_at_once]:
                    if connection in self._by_app.get(connection.app_name, ()):
                        connection.check_liveness(
                            now, settings.heartbeat_secs, settings.stall_timeout_secs
                        )
                await asyncio.sleep(round_secs / len(starts))
