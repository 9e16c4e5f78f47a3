"""Nodes whose clocks are wrong by an hour."""

from __future__ import annotations

import asyncio
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


@pytest.fixture
async def cluster(postgres: Postgres, tmp_path: Path) -> AsyncIterator[NodeCluster]:
    """The clock of the first node is right; those of the others are wrong by an hour."""
    settings = {
        "LEASE_SECS": str(LONGER_LEASE_SECS),
        "SESSION_TTL_SECS": "864000",  # the clock of each node decides what is unused
        "SESSION_HARD_TTL_SECS": "864000",
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
