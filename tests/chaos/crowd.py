"""Viewers in numbers, which come and go and can prove what they got."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

from ..conftest import Connect
from ..support.harness import Client, Socket
from ..support.raw_socket import RawSocket

_ENTRY = re.compile(rb'\{"type":"(\w+)","seq":(\d+),')


class Follower:
    """A viewer of one session, who may lose its connection at any time and comes back.

    Attributes:
        digests: a hash of each entry's bytes, in the order of their arrival.
        last: the newest position that has come.
        lost, repeated: entries that were left out, or came again.
        ended: how many turns have ended before its eyes.
        visits: how often it has connected.
    """

    def __init__(self, connect: Connect, client: Client, session: str) -> None:
        self._connect = connect
        self._client = client
        self._session = session
        self.digests: list[int] = []
        self.last = self.lost = self.repeated = self.ended = self.visits = 0

    def _take(self, payload: bytes) -> None:
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

    async def _visit(self) -> RawSocket:
        self.visits += 1
        return await self._connect(
            self._client, self._session, after=self.last, receive_buffer=65536, sink=self._take
        )

    async def follow(self, turns: int, stay: Callable[[], float] | None = None) -> None:
        """Watch until so many turns have ended.

        Args:
            stay: seconds until the connection is cut, asked at each visit; without it it stays.
        """
        while self.ended < turns:
            try:
                raw = await self._visit()
            except ConnectionError:  # too many at once, for a moment: as any client it tries again
                await asyncio.sleep(0.1)
                continue
            try:
                async with asyncio.timeout(None if stay is None else stay()):
                    while self.ended < turns and await raw.receive(65536):
                        pass
            except TimeoutError:
                pass
            finally:
                raw.abort()


def resident_kb(pid: int) -> int:
    """The memory that a process has in use, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def turn_times(socket: Socket, count: int) -> list[float]:
    """How long ordinary turns take, one behind the other, in milliseconds; sorted."""
    times = []
    for _ in range(count):
        began = time.monotonic()
        end = await socket.turn("ping")
        assert end["stop_reason"] == "end_turn", end
        times.append((time.monotonic() - began) * 1000)
    return sorted(times)


def p99(sorted_times: list[float]) -> float:
    return sorted_times[int(len(sorted_times) * 0.99)]
