"""The work that a node leaves when it ends, and its end on another node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from ..sessions.test_usage import reporting
from ..support.harness import ADMIN, Client, eventually, script
from ..support.postgres import Postgres
from ..support.push_service import push_service
from ..support.receiver import webhook_receiver
from .nodes import Node, NodeCluster, running_nodes

pytestmark = pytest.mark.slow
LEASE = {"LEASE_SECS": "6"}
"""A slow machine does not miss it again and again, which would prevent every take-over."""


@pytest.fixture
async def cluster(postgres: Postgres, tmp_path: Path) -> AsyncIterator[NodeCluster]:
    async with running_nodes(postgres, tmp_path, 2, **LEASE) as running:
        yield running


async def test_session_of_a_restarted_node_is_reached_through_others_at_once(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    for number in range(3):
        session_id = await one.client.create()
        near = await one.client.connect(session_id)
        await near.send("prompt", prompt=script({"say": "busy"}, {"hang": True}))
        await near.until_text("busy")
        await one.server.kill()
        await one.start()
        # The new process owns it, and has told the other node so.
        status, reply = await two.client.turn(session_id, f"hello {number}")
        assert status == 200, reply
        ends = [one for one in await two.client.events(session_id) if one["type"] == "turn_end"]
        assert [(end["error"] or {}).get("code") for end in ends] == ["server_restarted", None]


async def test_prompt_over_rest_gets_its_result_after_the_kill_of_the_owner(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    running, idle = [await one.client.create() for _ in range(2)]
    near = await one.client.connect(running)
    turn = asyncio.create_task(two.client.turn(running, script({"say": "busy"}, {"hang": True})))
    await near.until_text("busy")
    await one.server.kill()
    other = asyncio.create_task(two.client.turn(idle, "hello"))  # it never reaches the owner
    status, reply = await turn
    assert (status, reply["code"], reply["turn_index"]) == (503, "server_restarted", 1)
    status, reply = await other
    if status == 503:  # the kill was noticed before the request
        assert reply["code"] == "draining"
        status, reply = await two.client.turn(idle, "hello")
    assert (status, reply["stop_reason"]) == (200, "end_turn")
    for session_id in (running, idle):
        entries = await two.client.events(session_id)
        assert [one["id"] for one in entries if one["type"] == "turn_start"] == [None]


async def test_second_server_with_the_name_of_a_node_ends_the_first_for_good(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near, far = await one.client.connect(session_id), await two.client.connect(session_id)
    await far.send("prompt", prompt=script({"say": "busy"}, {"hang": True}))
    await near.until_text("busy")
    await cluster.add("copy", node_name=one.name)
    # A service manager does not start it again after this status: both would end each other.
    assert await asyncio.wait_for(one.server.process.wait(), 60) == 2
    assert "CLAWDFORGE_NODE_NAME" in (cluster.folder / "node-1.log").read_text()
    assert (await far.until("turn_end"))["error"]["code"] == "server_restarted"
    assert (await two.client.turn(session_id, "hello"))[0] == 200
    assert cluster.sql("SELECT count(*) FROM nodes WHERE state = 'up'") == "2"


async def test_background_run_of_a_killed_node_ends(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    body = {"prompt": script({"hang": True}), "agent": "mock", "background": True}
    status, reply = await one.client.post("/run", body)
    assert status == 202, reply
    path = f"/run/{reply['run_id']}"
    await eventually("the run to begin", lambda: cluster.sql("SELECT count(*) FROM runs") == "1")
    assert (await two.client.get(path))[0] == 202
    await one.server.kill()

    async def has_ended() -> bool:
        return (await two.client.get(path))[0] != 202

    await eventually("the run to end", has_ended, 60)
    status, reply = await two.client.get(path)
    assert (status, reply["code"], reply["retryable"]) == (502, "server_restarted", True)
    assert cluster.sql("SELECT error FROM runs") == "server_restarted"


async def test_webhooks_of_a_killed_node_are_sent_by_another_one(
    postgres: Postgres, tmp_path: Path
) -> None:
    async with (
        webhook_receiver() as receiver,
        running_nodes(postgres, tmp_path, 2, **LEASE, WEBHOOK_HOSTS="127.0.0.1") as cluster,
    ):
        one, two = cluster.nodes
        await receiver.register(one.client)
        receiver.status = 500
        session_id = await one.client.create()
        for _ in range(3):
            await one.client.turn(session_id, "hello")
        await receiver.until("an attempt", lambda: receiver.attempts)
        await one.server.kill()
        receiver.status = 200
        # A node that starts sends nothing of a node that runs.
        await receiver.next("turn_ended", turn_index=3)
        await two.client.turn(session_id, "hello")
        await cluster.add("node-3")
        await one.start()
        await receiver.next("turn_ended", turn_index=4)
        turns = [event["data"]["turn_index"] for event in receiver.accepted]
        assert turns == [1, 2, 3, 4]


async def test_push_messages_of_a_killed_node_are_sent_by_another_one(
    postgres: Postgres, tmp_path: Path
) -> None:
    async with (
        push_service() as service,
        running_nodes(postgres, tmp_path, 2, **LEASE, PUSH_HOSTS="127.0.0.1") as cluster,
    ):
        one, two = cluster.nodes
        browser = service.browser()
        await browser.subscribe(one.client)
        service.status = 503
        session_id = await one.client.create()
        for _ in range(3):
            assert (await one.client.turn(session_id, "hello"))[0] == 200
        await eventually("an attempt", lambda: service.requests)
        await one.server.kill()
        service.status = 201
        turns: list[int] = []

        def are_sent() -> bool:
            turns[:] = [one["turn_index"] for one in browser.messages]
            return turns == [1, 2, 3]

        await eventually("another node to send them", are_sent, 40)
        left = "SELECT count(*) FROM push_messages"
        await eventually("nothing to be left", lambda: cluster.sql(left) == "0")
        await one.start()
        assert (await two.client.turn(session_id, "hello"))[0] == 200
        await eventually("the next message", lambda: len(browser.messages) == 4)
        assert [*turns, browser.messages[-1]["turn_index"]] == [1, 2, 3, 4]


TURN_TOKENS = 150
BUDGET_TOKENS = 30 * TURN_TOKENS


async def test_budget_stays_exact_over_the_kill_of_a_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    admin = Client(one.server.url, ADMIN, cluster.http)
    budget = {"budget": {"tokens_per_day": BUDGET_TOKENS}}
    status, reply = await admin.call("PATCH", f"/admin/tokens/{cluster.app}", budget)
    assert status == 200, reply
    prompters = [(node, await node.client.create()) for node in (one, one, two, two)]
    spent = "SELECT coalesce(sum(input_tokens + output_tokens), 0) FROM usage"

    async def spend(node: Node, session_id: str) -> None:
        """Send prompts until the budget is used up, whatever happens to the node."""
        while True:
            try:
                status, reply = await node.client.turn(session_id, reporting(100))
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
                continue
            if reply.get("code") == "budget_exceeded":
                return
            assert status == 200 or reply.get("retryable"), (status, reply)

    async with asyncio.timeout(120), asyncio.TaskGroup() as spending:
        for node, session_id in prompters:
            spending.create_task(spend(node, session_id))
        await eventually(
            "a third to be spent", lambda: int(cluster.sql(spent)) > BUDGET_TOKENS / 3, 60
        )
        await one.server.kill()
        await one.start()
    stored = int(cluster.sql(spent))
    # Only the turns that ran at the same time may exceed it.
    assert BUDGET_TOKENS <= stored <= BUDGET_TOKENS + (len(prompters) - 1) * TURN_TOKENS
    ends = [
        entry
        for _, session_id in prompters
        for entry in await two.client.events(session_id)
        if entry["type"] == "turn_end" and "usage" in entry
    ]
    assert len(ends) * TURN_TOKENS == stored
    for node in (one, two):
        _, reply = await node.client.get("/usage")
        assert reply["budget"]["tokens_per_day"]["used"] == stored
        status, reply = await node.client.turn(prompters[0][1], "one more")
        assert reply["code"] == "budget_exceeded"


async def test_undo_of_a_killed_node_is_finished_by_the_next_owner(cluster: NodeCluster) -> None:
    one, _ = cluster.nodes
    session_id = await one.client.create()
    folder = cluster.folder / "shared" / "data" / "workspaces" / session_id

    async def fill(text: str) -> None:
        """Change the files during a turn."""
        go_on, begun = f".mock-agent/go-{text}", folder / ".mock-agent" / text
        prompt = script({"touch": f".mock-agent/{text}"}, {"gate": go_on})
        turn = asyncio.create_task(one.client.turn(session_id, prompt))
        await eventually("the turn to start", begun.exists)
        for number in range(3000):
            (folder / f"{number}").write_text(text)
        (folder / go_on).touch()
        assert (await turn)[0] == 200

    await fill("old")
    await fill("new")
    undo = one.client.post(f"/sessions/{session_id}/undo", {"turn_index": 2})
    asking = asyncio.create_task(undo)
    journal = cluster.folder / "shared" / "data" / "snapshots" / session_id / "restoring"
    await eventually("the undo to begin", journal.exists)
    await eventually("files to be restored", lambda: "old" in texts(folder))
    await one.server.kill()
    await asyncio.gather(asking, return_exceptions=True)
    assert "new" in texts(folder)
    three = await cluster.add("node-3")
    assert journal.exists()  # node-1 may still be working
    three.client.token = cluster.token
    await cluster.until_owned(session_id, "")
    status, reply = await three.client.turn(session_id, "hello")
    assert status == 200, reply
    assert set(texts(folder)) == {"old"}
    undone = [one for one in await three.client.events(session_id) if "restored_turn" in one]
    assert [one["restored_turn"] for one in undone] == [2]
    await eventually("the undo to be settled", lambda: not journal.exists())


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.glob("[0-9]*")]
