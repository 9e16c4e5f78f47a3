"""Leases of real nodes: a node that hangs, or that does not reach the database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ..support.client import failure
from ..support.harness import descendants, eventually, is_running, script
from .nodes import LEASE_SECS, NodeCluster

pytestmark = pytest.mark.slow

COUNTING = script({"repeat": {"times": 400, "steps": [{"say": "{i} "}, {"sleep": 50}]}})


def agent_states(pid: int) -> set[str]:
    """The states of a node's agents, as the kernel names them: T is stopped."""
    found = set()
    for agent in descendants(pid):
        try:
            if b"mock_agent.py" in Path(f"/proc/{agent}/cmdline").read_bytes():
                stat = Path(f"/proc/{agent}/stat").read_bytes()
                found.add(stat.rpartition(b")")[2].split()[0].decode())
        except OSError:
            continue
    return found


async def test_agents_of_a_server_that_hangs_are_stopped_and_its_turn_ends_once(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    far = await two.client.connect(session_id)
    await far.send("prompt", prompt=COUNTING)
    await far.until_text("3 ")
    one.pause()
    await eventually(
        "the agents to stop", lambda: agent_states(one.server.pid) == {"T"}, 2 * LEASE_SECS
    )
    agents = descendants(one.server.pid)
    assert cluster.owner_of(session_id) == "node-1"
    end = await far.until("turn_end")
    assert end["error"]["code"] == "server_restarted"
    head = end["seq"]
    one.resume()
    assert await asyncio.wait_for(one.server.process.wait(), 60) != 0
    await eventually("the agents to be killed", lambda: not any(map(is_running, agents)))
    assert (await far.turn("hello"))["stop_reason"] == "end_turn"
    log = await two.client.events(session_id)
    assert next(entry["type"] for entry in log if entry["seq"] > head) == "turn_start"
    assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))


async def test_turn_survives_a_database_that_was_out_of_reach_for_less_than_the_lease(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    far = await two.client.connect(session_id)
    await far.send("prompt", prompt=script({"say": "before"}, {"sleep": 3000}, {"say": "after"}))
    await far.until_text("before")
    one.proxy.freeze()
    await asyncio.sleep(0.4 * LEASE_SECS)
    one.proxy.thaw()
    assert (await far.until("turn_end"))["stop_reason"] == "end_turn"


async def test_node_that_is_cut_off_loses_its_sessions_and_closes_its_sockets(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near = await one.client.connect(session_id)
    far = await two.client.connect(session_id)
    await far.send("prompt", prompt=COUNTING)
    await far.until_text("3 ")
    one.proxy.freeze()
    assert await near.until_closed() == 1012
    assert (await far.until("turn_end"))["error"]["code"] == "server_restarted"
    one.proxy.thaw()
    one.proxy.cut()
    assert await asyncio.wait_for(one.server.process.wait(), 60) != 0


async def test_agents_continue_if_the_node_is_back_before_another_has_taken_over(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    assert await two.server.stop() == 0
    near = await one.client.connect(session_id)
    await near.send("prompt", prompt=COUNTING)
    await near.until_text("3 ")
    one.proxy.freeze()
    assert await near.until_closed() == 1012
    await eventually("the agents to stop", lambda: agent_states(one.server.pid) == {"T"})
    failure(await one.client.post(f"/sessions/{session_id}/turn", {"prompt": "x"}), 500, "internal")
    assert (await one.client.get("/readyz"))[0] == 503
    await asyncio.sleep(LEASE_SECS)
    one.proxy.thaw()
    again = await one.client.connect(session_id, after=near.entries[-1]["seq"])
    assert (await again.until("turn_end"))["stop_reason"] == "end_turn"
    seen = near.entries + again.entries
    assert [entry["seq"] for entry in seen] == list(range(1, len(seen) + 1))
