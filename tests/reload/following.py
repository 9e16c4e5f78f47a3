"""Clients that follow a session through reloads, and what they have seen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import aiohttp

from ..support.harness import ADMIN, Client, Json, Socket, chunk_text, eventually


class Follower:
    """Reads one session, and resumes whenever the server says ``bye``.

    Attributes:
        entries: all log entries, as they arrived.
        byes: the ``bye`` frames.
        pauses: seconds from each ``bye`` to the next ``ready``.
        socket: the present connection.
    """

    def __init__(self, client: Client, session_id: str) -> None:
        self.session_id = session_id
        self.entries: list[Json] = []
        self.byes: list[Json] = []
        self.pauses: list[float] = []
        self.codes: list[int | None] = []
        self.socket: Socket
        self._client = client
        self.connected = asyncio.Event()
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        said_bye = 0.0
        while True:
            after = self.entries[-1]["seq"] if self.entries else 0
            try:
                socket = self.socket = await self._client.connect(self.session_id, after=after)
            except aiohttp.ClientError:  # it was still being accepted by the earlier version
                await asyncio.sleep(0.05)
                continue
            self.connected.set()
            if said_bye:
                self.pauses.append(time.monotonic() - said_bye)
                said_bye = 0.0
            while (frame := await socket.next()) is not None:
                if frame["type"] == "bye":
                    self.byes.append(frame)
                    said_bye = time.monotonic()
                if "seq" in frame:
                    self.entries.append(frame)
                async with self._moved:
                    self._moved.notify_all()
            self.codes.append(socket.close_code)
            await asyncio.sleep(self.byes[-1]["retry_after_ms"] / 1000 if said_bye else 0.05)

    async def until(self, is_found: Callable[[Json], bool]) -> Json:
        """The first entry for which the function returns True."""
        async with asyncio.timeout(60), self._moved:
            while (found := next(filter(is_found, self.entries), None)) is None:
                await self._moved.wait()
            return found

    async def until_kind(self, kind: str, turn_index: int = 1) -> Json:
        return await self.until(lambda e: e["type"] == kind and e["turn_index"] == turn_index)

    async def until_more(self) -> None:
        """Wait for an entry that has not arrived yet."""
        count = len(self.entries)
        async with asyncio.timeout(60), self._moved:
            while len(self.entries) == count:
                await self._moved.wait()

    def texts(self) -> list[str]:
        return [text for entry in self.entries if (text := chunk_text(entry))]

    def check(self) -> None:
        """Check that no entry is missing or repeated."""
        seqs = [entry["seq"] for entry in self.entries]
        assert seqs == list(range(1, len(seqs) + 1))


@contextlib.asynccontextmanager
async def following(client: Client, *sessions: str) -> AsyncIterator[list[Follower]]:
    """Follow sessions until the end of the block."""
    followers = [Follower(client, session) for session in sessions]
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    try:
        for follower in followers:
            await follower.connected.wait()
        yield followers
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        assert isinstance(result, asyncio.CancelledError), result


async def reload(url: str) -> Json:
    """Reload the server, and return its status once the next version answers."""
    # A reload closes idle connections, on which a request may just have begun.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        admin = Client(url, ADMIN, http)
        status, before = await admin.post("/admin/reload")
        assert status == 200, before
        now: Json = {}

        async def is_done() -> bool:
            nonlocal now
            try:
                _, now = await admin.get("/admin/reload")
            except aiohttp.ClientError:
                return False
            return bool(now["failure"] or now["reloads"] > before["reloads"])

        await eventually("the next version to answer", is_done)
    assert now["failure"] is None
    return now
