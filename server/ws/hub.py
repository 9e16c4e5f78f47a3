"""All open sockets: beaten by one heart, closed together."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ..auth.credential import REVOKED_ABORT_SECS, Credential
from ..config import Settings
from ..errors import CloseCode, Error
from ..limits import ConcurrencyLimit
from .connection import Disconnect, WebSocketConnection

BEATS_AT_ONCE = 50
"""So many sockets are looked after at a time; a round of all of them takes a second.
All at once, ten thousand held up who talks for 50 ms."""
RETRY_MS = (500, 5000)
"""Clients that come back after a restart spread themselves over this time."""
REVOKED = Disconnect(CloseCode.REVOKED, "the credential was revoked")


class Hub:
    """The peers that are connected."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_app: defaultdict[str, set[WebSocketConnection]] = defaultdict(set)
        self.waiting = ConcurrencyLimit(
            settings.max_waiting_sockets, settings.max_waiting_sockets_per_address
        )
        """Places for sockets that have yet to say who they are."""
        self._streams: dict[asyncio.Task[Any], str] = {}
        self._gone = asyncio.Event()
        self._gone.set()

    def __len__(self) -> int:
        return sum(map(len, self._by_app.values()))

    @property
    def replay_lag(self) -> int:
        """Entries that the socket farthest behind has not been sent."""
        return max((one.lag for viewers in self._by_app.values() for one in viewers), default=0)

    def streams(self) -> int:
        """How many event streams follow a log."""
        return len(self._streams)

    def is_full(self, app_name: str) -> bool:
        """Whether the app has all the sockets it may; a stream of events counts as one."""
        streams = sum(name == app_name for name in self._streams.values())
        taken = len(self._by_app.get(app_name, ())) + streams
        return taken >= self._settings.max_sockets_per_app

    async def serve(self, peer: WebSocketConnection, credential: Credential) -> None:
        """Run *peer* until it is closed."""
        if credential.is_revoked:  # while it was being opened
            peer.close(REVOKED)
        self._by_app[peer.app_name].add(peer)
        self._gone.clear()
        try:
            await peer.run()
        finally:
            peers = self._by_app[peer.app_name]
            peers.discard(peer)
            if not peers:
                del self._by_app[peer.app_name]
            if not self._by_app:
                self._gone.set()

    def close_app(self, app_name: str) -> None:
        """Close the sockets of an app whose token is revoked; drop those that do not leave."""
        for peer in tuple(self._by_app.get(app_name, ())):
            peer.close(REVOKED)
            asyncio.get_running_loop().call_later(REVOKED_ABORT_SECS, peer.abort)

    @contextlib.contextmanager
    def stream(self, app_name: str) -> Iterator[None]:
        """An event stream that follows a log: it has no end but the client's, or the server's.

        Raises:
            Error: ``rate_limited``; the app has all the sockets it may.
        """
        if self.is_full(app_name):
            raise Error("rate_limited", "the app has all the sockets it may", retry_after=5)
        task = asyncio.current_task()
        assert task is not None
        self._streams[task] = app_name
        try:
            yield
        except asyncio.CancelledError:
            if task in self._streams:
                raise
            task.uncancel()  # it was us: the response ends in order
        finally:
            self._streams.pop(task, None)

    async def close_all(self, patience: float) -> None:
        """Tell every socket that the server restarts; drop who has not left in time."""
        while self._streams:
            self._streams.popitem()[0].cancel()
        for peers in tuple(self._by_app.values()):
            for peer in tuple(peers):
                retry = random.randint(*RETRY_MS)  # noqa: S311 - a spread, not a secret
                peer.close(
                    Disconnect(CloseCode.RESTARTING, "the server restarts", retry_after_ms=retry)
                )
        try:
            async with asyncio.timeout(patience):
                await self._gone.wait()
        except TimeoutError:
            for peers in tuple(self._by_app.values()):
                for peer in tuple(peers):
                    peer.abort()

    async def beat(self) -> None:
        """Look after every socket, for ever."""
        settings = self._settings
        round_secs = min(1.0, settings.heartbeat_secs / 4)
        while True:
            everybody = [peer for peers in self._by_app.values() for peer in peers]
            starts = range(0, max(1, len(everybody)), BEATS_AT_ONCE)
            for start in starts:
                now = time.monotonic()
                for peer in everybody[start : start + BEATS_AT_ONCE]:
                    if peer in self._by_app.get(peer.app_name, ()):
                        peer.tick(now, settings.heartbeat_secs, settings.stall_timeout_secs)
                await asyncio.sleep(round_secs / len(starts))
