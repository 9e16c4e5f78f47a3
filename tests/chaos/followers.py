"""Subscribers that reconnect, and check what they receive."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

from ..conftest import Connect
from ..support.harness import Client, eventually
from ..support.raw_socket import RawSocket

RETRY_SECS = 0.1
_ENTRY = re.compile(rb'\{"type":"(\w+)","seq":(\d+),')


class Follower:
    """A subscriber of one session that reconnects whenever its connection is lost.

    Attributes:
        digests: a hash of the bytes of each entry, in order of arrival.
        last: the ``seq`` of the newest entry.
        lost, repeated: the number of entries that were skipped, or received again.
        ended: the number of turns that have ended.
        connections: the number of connections so far.
    """

    def __init__(self, connect: Connect, client: Client, session: str) -> None:
        self._connect = connect
        self._client = client
        self._session = session
        self.digests: list[int] = []
        self.last = self.lost = self.repeated = self.ended = self.connections = 0

    def _record(self, payload: bytes) -> None:
        entry = _ENTRY.match(payload)
        if entry is None:
            return
        seq = int(entry[2])
        if seq <= self.last:
            self.repeated += 1
            return
        self.lost += seq - self.last - 1
        self.last = seq
        self.digests.append(hash(payload))
        self.ended += entry[1] == b"turn_end"

    async def _connect_again(self) -> RawSocket | None:
        self.connections += 1
        with contextlib.suppress(ConnectionError):  # the server is busy
            return await self._connect(
                self._client,
                self._session,
                after=self.last,
                receive_buffer=65536,
                sink=self._record,
            )
        return None

    async def follow(self, turns: int, lifetime: Callable[[], float] | None = None) -> None:
        """Read until *turns* turns have ended.

        Args:
            lifetime: returns the seconds after which a connection is cut; None never cuts it.
        """
        while self.ended < turns:
            raw = await eventually("a connection", self._connect_again, pause=RETRY_SECS)
            try:
                async with asyncio.timeout(None if lifetime is None else lifetime()):
                    while self.ended < turns and await raw.receive(65536):
                        pass
            except TimeoutError:
                pass
            finally:
                raw.abort()
