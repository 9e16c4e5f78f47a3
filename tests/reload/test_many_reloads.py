"""Many reloads while ten agents stream and others wait: no turn ends, and nothing leaks."""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import descendants, eventually, new_client, script
from .following import following, reload

SESSIONS = 10
STREAM = {"burst": {"count": 1_000_000, "text": " ", "batch": 5, "pause_ms": 100}}
"""As fast as this process can follow ten of them with asyncio's debug mode on a busy machine."""
RELOADS = int(os.environ.get("CLAWDFORGE_TEST_RELOADS", "30"))


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only their number


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_many_reloads_end_no_turn_and_leak_nothing(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(PERMISSION_TIMEOUT_SECS="3600")  # longer than 30 reloads on a slow machine
    client = await new_client(server.url, http)
    streams = [await client.create() for _ in range(SESSIONS)]
    asks = [await client.create(permission="ask") for _ in range(2)]
    pauses: list[int] = []
    async with following(client, *streams, *asks) as followers:
        for follower in followers[:SESSIONS]:
            await follower.socket.send("prompt", prompt=script(STREAM))
        for follower in followers[SESSIONS:]:
            await follower.socket.send("prompt", prompt=script({"permission": True}))
            await follower.until_kind("permission_request")
        counts: list[tuple[int, int]] = []
        for count in range(1, RELOADS + 1):
            status = await reload(server.url)
            assert status["reloads"] == count
            pauses.append(status["pause_ms"])
            for follower in followers[:SESSIONS]:
                await follower.until_more()
            counts.append((descriptors_of(server.pid), len(descendants(server.pid))))
        for follower in followers:
            follower.check()
            assert not [entry for entry in follower.entries if entry["type"] == "turn_end"]
        for session in asks:
            assert (await client.state(session))["pending_permissions"]
    pauses.sort()
    print(f"{RELOADS} reloads: median pause {pauses[len(pauses) // 2]} ms, longest {pauses[-1]} ms")  # noqa: T201
    # A connection whose client is late to close it stays open for some seconds.
    await eventually(
        "the old connections to end", lambda: descriptors_of(server.pid) <= counts[0][0] + 4
    )
    assert counts[-1][1] <= counts[0][1] + 2
