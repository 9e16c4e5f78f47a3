"""A node is killed between any two changes of its take-over: the next one completes it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ..support.client import Client
from ..support.harness import eventually, script
from ..support.postgres import Postgres
from .nodes import Node, NodeCluster, faulty, running_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HANGING = script({"say": "busy"}, {"hang": True})


@pytest.fixture
async def cluster(postgres: Postgres, tmp_path: Path) -> AsyncIterator[NodeCluster]:
    async with running_nodes(postgres, tmp_path, 1) as running:
        yield running


class Work:
    """The work that a killed node leaves: a turn, a waiting one, a permission request and a run."""

    def __init__(self, cluster: NodeCluster) -> None:
        self._cluster = cluster
        self._sessions: list[str] = []
        self._run = ""

    async def begin(self, client: Client) -> None:
        self._sessions = [await client.create(), await client.create(permission="ask")]
        first, second = [await client.connect(one) for one in self._sessions]
        await first.send("prompt", prompt=HANGING, id="running")
        await first.until_text("busy")
        await first.send("prompt", prompt="hello", id="waiting")
        await first.until("accepted", id="waiting")
        await second.send("prompt", prompt=script({"permission": True}), id="asking")
        await second.until("permission_request")
        body = {"prompt": HANGING, "agent": "mock", "background": True}
        status, reply = await client.post("/run", body)
        assert status == 202, reply
        self._run = reply["run_id"]
        await eventually("the run to begin", lambda: self._left("runs WHERE stop_reason IS NULL"))

    def _left(self, where: str) -> bool:
        return self._cluster.sql(f"SELECT count(*) FROM {where}") != "0"

    def is_left(self) -> bool:
        """Whether some of it has not ended."""
        unfinished = ("turns WHERE last_seq IS NULL", "asked", "runs WHERE stop_reason IS NULL")
        return any(map(self._left, unfinished))

    async def until_over(self) -> None:
        await eventually("the work to end", lambda: not self.is_left())

    async def check(self, client: Client) -> None:
        """Check that all of it has ended once, and that the sessions continue."""
        for session_id, turns in zip(self._sessions, (2, 1), strict=True):
            status, reply = await client.turn(session_id, "hello")
            assert status == 200, reply
            entries = await client.events(session_id)
            assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
            *ended, last = [entry for entry in entries if entry["type"] == "turn_end"]
            assert [end["error"]["code"] for end in ended] == ["server_restarted"] * turns
            assert last["stop_reason"] == "end_turn"
            kinds = [entry["type"] for entry in entries]
            assert kinds.count("permission_request") == kinds.count("permission_resolved")
        status, reply = await client.get(f"/run/{self._run}")
        assert (status, reply["code"]) == (502, "server_restarted")


async def test_restarted_node_that_is_killed_again_leaves_nothing_undone(
    cluster: NodeCluster,
) -> None:
    [node] = cluster.nodes
    for number in itertools.count(1):
        work = Work(cluster)
        await work.begin(node.client)
        await node.server.kill()
        has_completed = await completes(node, number, work)
        node.wrapper = ()
        await node.start()
        await work.until_over()
        await work.check(node.client)
        if has_completed:
            break
    assert number > 5


async def completes(node: Node, number: int, work: Work) -> bool:
    """Start a node that is killed before a change. Whether it has ended the work before."""
    node.wrapper = faulty(f"change={number}")
    try:
        await node.start()
    except AssertionError:
        return False  # it was killed before it was ready
    process = node.server.process
    await eventually(
        "the end of the work or of the node",
        lambda: process.returncode is not None or not work.is_left(),
    )
    await node.server.kill()
    return not work.is_left()


async def test_third_node_completes_what_a_killed_taker_has_begun(cluster: NodeCluster) -> None:
    one = cluster.nodes[0]
    work = Work(cluster)
    await work.begin(one.client)
    taker = await cluster.add("taker", wrapper=faulty("change_after_taking=1"))
    await one.server.kill()
    await eventually("the taker to be killed", lambda: taker.server.process.returncode is not None)
    assert cluster.sql("SELECT state FROM nodes WHERE name = 'node-1'") == "gone"
    assert work.is_left()
    third = await cluster.add("third")
    await work.until_over()
    await work.check(third.client)
