"""Nodes whose clocks are wrong by an hour."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from ..support.client import Client
from ..support.harness import eventually, script
from ..support.postgres import Postgres
from .nodes import NodeCluster, faulty, running_nodes
from .test_failover import goes_on

pytestmark = pytest.mark.slow

LONGER_LEASE_SECS = 10
"""A slow machine lets no node miss it."""
HALF_HOUR_SECS = 1800
"""The clocks are wrong by twice this time."""


@pytest.fixture
async def cluster(postgres: Postgres, tmp_path: Path) -> AsyncIterator[NodeCluster]:
    """The clock of the first node is right; those of the others are wrong by an hour."""
    settings = {
        "LEASE_SECS": str(LONGER_LEASE_SECS),
        "SESSION_TTL_SECS": str(HALF_HOUR_SECS),
        "SESSION_HARD_TTL_SECS": str(HALF_HOUR_SECS),
        "SWEEP_INTERVAL_SECS": "0.3",
    }
    async with running_nodes(postgres, tmp_path, 1, **settings) as running:
        for name, secs in (("early", -3600), ("late", 3600)):
            await running.add(name, wrapper=faulty(f"clock={secs}"))
        yield running


async def test_wrong_clocks_end_no_lease_and_no_ticket(
    cluster: NodeCluster, http: aiohttp.ClientSession
) -> None:
    for owner in cluster.nodes:
        session_id = await owner.client.create()
        for node in cluster.nodes:
            status, reply = await node.client.post(f"/sessions/{session_id}/ticket")
            assert status == 200, reply
            other = cluster.nodes[cluster.nodes.index(node) - 1]
            socket = await Client(other.server.url, None, http).connect(session_id, ready=False)
            await socket.send("auth", ticket=reply["ticket"])
            await socket.until("ready")
            assert (await socket.turn("hello"))["stop_reason"] == "end_turn"
        entries = [await node.client.events(session_id) for node in cluster.nodes]
        assert entries[0] == entries[1] == entries[2]
    await asyncio.sleep(1.5 * LONGER_LEASE_SECS)
    assert cluster.sql("SELECT count(*) FROM nodes WHERE state <> 'up'") == "0"


async def test_node_with_a_wrong_clock_is_taken_over_after_its_lease(cluster: NodeCluster) -> None:
    right, early, late = cluster.nodes
    for node, other in ((early, late), (late, right)):
        session_id = await node.client.create()
        far = await other.client.connect(session_id)
        await far.send("prompt", prompt=script({"say": "busy"}, {"hang": True}))
        await far.until_text("busy")
        await node.server.kill()
        assert (await far.until("turn_end"))["error"]["code"] == "server_restarted"
        await eventually("the session to go on", partial(goes_on, other.client, session_id))
    assert cluster.sql("SELECT state FROM nodes WHERE name = 'node-1'") == "up"


async def test_wrong_clocks_neither_close_nor_expire_anything(cluster: NodeCluster) -> None:
    open_ids, closed_ids, shares = [], [], []
    for node in cluster.nodes:
        open_ids.append(await node.client.create())
        assert (await node.client.turn(open_ids[-1], "hello"))[0] == 200
        status, reply = await node.client.post(
            f"/sessions/{open_ids[-1]}/shares", {"expires_in": HALF_HOUR_SECS}
        )
        assert status == 200, reply
        shares.append(str(reply["url"]).rpartition("=")[2])
        closed_ids.append(await node.client.create())
        assert (await node.client.call("DELETE", f"/sessions/{closed_ids[-1]}"))[0] == 200
    # Each node closes and deletes what is due: these sessions have an agent, so only it does so.
    due_ids = [await node.client.create(ttl_secs=1, retention_secs=1) for node in cluster.nodes]

    def are_deleted() -> bool:
        ids = ", ".join(f"'{one}'" for one in due_ids)
        return cluster.sql(f"SELECT count(*) FROM sessions WHERE id IN ({ids})") == "0"

    await eventually("each node to delete what is due", are_deleted, 60)
    now = time.time()
    for node in cluster.nodes:
        for session_id, share in zip(open_ids, shares, strict=True):
            entries = await Client(node.server.url, share, cluster.http).events(session_id)
            assert entries[-1]["type"] == "turn_end"
            assert all(abs(entry["ts"] / 1000 - now) < HALF_HOUR_SECS for entry in entries)
        for session_id, state in ((open_ids[0], "idle"), (closed_ids[0], "closed")):
            status, reply = await node.client.get(f"/sessions/{session_id}")
            assert (status, reply["state"]) == (200, state)
        assert (await node.client.get("/usage"))[0] == 200
