"""Any node serves any session."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ..support.client import ADMIN, Client, Socket, failure
from ..support.harness import eventually, script
from ..support.postgres import Postgres
from ..support.push_service import Browser
from ..support.runs import upload
from .nodes import Node, NodeCluster, running_nodes

pytestmark = pytest.mark.slow

SETTINGS = {
    "WEBHOOK_HOSTS": "127.0.0.1",
    "PUSH_HOSTS": "127.0.0.1",
    "SWEEP_INTERVAL_SECS": "2",
}


async def test_any_node_serves_a_session(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    assert cluster.owner_of(session_id) == "node-1"
    status, reply = await two.client.turn(session_id, "hello")
    assert status == 200, reply
    assert reply["stop_reason"] == "end_turn"
    assert cluster.owner_of(session_id) == "node-1"
    assert await two.client.events(session_id) == await one.client.events(session_id)
    assert (await two.client.state(session_id)) == (await one.client.state(session_id))


async def test_chat_of_openai_continues_a_session_of_another_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    body = {"model": "mock", "messages": [{"role": "user", "content": "hello"}]}
    path, headers = "/v1/chat/completions", {"X-Session-Id": session_id}
    status, reply = await two.client.post(path, body, headers=headers)
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"] == "echo: hello"
    assert (await one.client.state(session_id))["turn_count"] == 1
    named = {**body, "metadata": {"session_id": session_id}}
    for node in (two, one):
        status, reply = await node.client.post(path, named)
        assert status == 200, reply
        assert reply["choices"][0]["message"]["content"] == "echo: hello"
    assert (await one.client.state(session_id))["turn_count"] == 3
    async with two.client.http.post(
        two.server.url + path, headers=two.client.headers(), json={**named, "stream": True}
    ) as response:
        assert "echo: hello" in await response.text()
    assert (await one.client.state(session_id))["turn_count"] == 4


async def test_unfinished_fork_of_an_ended_node_is_deleted(cluster: NodeCluster) -> None:
    session_id = "0b7d4cbb-2f0c-4f0e-9a55-3f2f3f5d7c11"
    data = cluster.folder / "shared" / "data"
    folders = [data / "workspaces" / session_id, data / "snapshots" / session_id]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    cluster.sql(f"INSERT INTO prewarmed (id, node) VALUES ('{session_id}', 999)")

    def is_deleted() -> bool:
        return not cluster.sql("SELECT id FROM prewarmed WHERE node = 999")

    await eventually("the rest of the fork to be deleted", is_deleted)
    assert not any(folder.exists() for folder in folders)


async def test_socket_on_another_node_follows_and_prompts(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near = await one.client.connect(session_id)
    far = await two.client.connect(session_id)
    end = await far.turn("hello", id="p1")
    assert end["stop_reason"] == "end_turn"
    accepted = next(frame for frame in far.frames if frame["type"] == "accepted")
    started = next(frame for frame in far.frames if frame["type"] == "turn_start")
    assert far.frames.index(accepted) < far.frames.index(started)
    await near.until("turn_end")
    assert near.entries == far.entries == await two.client.events(session_id)
    await near.send("prompt", prompt="hello", id="p1")  # the same prompt, on another node
    assert (await near.until("accepted"))["duplicate"] is True
    await near.turn("again")
    await far.until("turn_end")
    assert near.entries == far.entries


async def test_permission_is_answered_on_another_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create(permission="ask")
    far = await two.client.connect(session_id)
    await far.send("prompt", prompt=script({"permission": True}, {"say": "done"}))
    request = await far.until("permission_request")
    option = request["request"]["options"][0]["optionId"]
    await far.send("permission", request_id=request["request_id"], option_id=option)
    assert (await far.until("permission_resolved"))["by"] == "client"
    await far.until("turn_end")


async def test_turn_is_cancelled_on_another_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    far = await two.client.connect(session_id)
    await far.send("prompt", prompt=script({"say": "working"}, {"hang": True}))
    await far.until_text("working")
    await far.send("cancel")
    assert (await far.until("turn_end"))["stop_reason"] == "cancelled"
    await far.send("cancel", id="c2")
    assert (await far.until("error"))["code"] == "not_found"


async def test_ticket_admits_one_socket_on_any_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    status, reply = await one.client.post(f"/sessions/{session_id}/ticket")
    assert status == 200, reply
    nobody = [Client(node.server.url, None, node.client.http) for node in (one, two, two)]
    sockets = [await client.connect(session_id, ready=False) for client in nobody]
    await asyncio.gather(*(one.send("auth", ticket=reply["ticket"]) for one in sockets))
    first = await asyncio.gather(*(one.next() for one in sockets))
    assert sorted(frame["type"] for frame in first if frame) == ["bye", "bye", "ready"]


async def test_socket_of_an_app_follows_sessions_of_all_nodes(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    ws = await two.client.http.ws_connect(f"{two.server.url}/ws", headers=two.client.headers())
    two.client.close_later(ws)
    socket = Socket(ws)
    await socket.until("ready")
    session_id = await one.client.create()
    while (await socket.until("session"))["session"]["session_id"] != session_id:
        pass
    await socket.send("subscribe", session_id=session_id, after=0)
    await socket.until("ready", session_id=session_id)
    await socket.send("prompt", session_id=session_id, prompt="hello", id="p1")
    await socket.until("accepted", id="p1", session_id=session_id)
    await socket.until("turn_end", session_id=session_id)


async def test_lists_contain_the_sessions_of_all_nodes(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    ids = [await node.client.create() for node in (one, two, one)]
    for node in (one, two):
        status, reply = await node.client.get("/sessions")
        assert status == 200, reply
        assert [state["session_id"] for state in reply["sessions"]] == ids[::-1]
    assert [cluster.owner_of(one_id) for one_id in ids] == ["node-1", "node-2", "node-1"]


async def test_open_sessions_are_those_of_all_nodes(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    ids = [await node.client.create() for node in (one, two, one)]
    stored = "SELECT count(*) FROM sessions WHERE closed_at IS NULL AND removed_at IS NULL"

    async def are_counted() -> bool:
        expected = int(cluster.sql(stored))
        found = [(await node.client.get("/healthz"))[1]["open_sessions"] for node in (one, two)]
        return found == [expected, expected]

    await eventually("the nodes to count them", are_counted)
    assert (await two.client.delete(f"/sessions/{ids[0]}"))[0] == 200
    assert (await one.client.delete(f"/sessions/{ids[1]}"))[0] == 200
    await eventually("the nodes to count them again", are_counted)


async def test_disk_limit_of_an_app_counts_the_uploads_of_all_nodes(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    token = f"/admin/tokens/{cluster.app}"
    status, _ = await admin_of(one).call("PATCH", token, {"limits": {"disk_bytes": 100_000}})
    assert status == 200
    session_id = await two.client.create()
    await upload(one.client, bytes(60_000))
    assert (await two.client.turn(session_id, "hello"))[0] == 200
    status, _ = await admin_of(one).call("PATCH", token, {"limits": {"disk_bytes": 50_000}})
    assert status == 200

    async def is_refused() -> bool:
        return (await two.client.turn(session_id, "hello"))[0] == 413

    # The limit reaches the other node within a second.
    await eventually("the prompt to be refused", is_refused)


async def test_token_and_revocation_reach_every_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    far = await two.client.connect(session_id)
    status, _ = await admin_of(one).delete(f"/admin/tokens/{cluster.app}")
    assert status == 200
    assert await far.until_closed() == 4503
    assert (await two.client.get("/sessions"))[0] == 401


async def test_webhook_and_push_subscription_reach_every_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    hook = {"url": "http://127.0.0.1:9/hook", "events": ["turn_ended"]}
    status, reply = await one.client.call("PUT", "/webhook", hook)
    assert status == 200, reply
    subscription_id = await Browser("http://127.0.0.1:9/browser").subscribe(one.client)

    async def found() -> tuple[int, int]:
        _, subscriptions = await two.client.get("/push/subscriptions")
        return (await two.client.get("/webhook"))[0], subscriptions["count"]

    async def has_both() -> bool:
        return await found() == (200, 1)

    async def has_none() -> bool:
        return await found() == (404, 0)

    await eventually("the other node to know both", has_both)
    assert (await one.client.delete("/webhook"))[0] == 200
    assert (await one.client.delete(f"/push/subscriptions/{subscription_id}"))[0] == 200
    await eventually("the other node to forget both", has_none)


async def test_socket_survives_the_end_of_the_owner(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    far = await two.client.connect(session_id)
    await far.send("prompt", prompt=script({"say": "working"}, {"hang": True}))
    await far.until_text("working")
    await far.send("prompt", prompt="queued", id="q1")
    await far.until("accepted", id="q1")
    await one.server.kill()
    for _ in range(2):
        end = await far.until("turn_end")
        assert end["error"]["code"] == "server_restarted"
        assert end["error"]["retryable"] is True
    assert (await far.turn("and now"))["stop_reason"] == "end_turn"
    assert [one["seq"] for one in far.entries] == list(range(1, len(far.entries) + 1))


async def test_stream_of_events_survives_the_end_of_the_owner(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    headers = {**two.client.headers(), "Accept": "text/event-stream"}
    url = f"{two.server.url}/sessions/{session_id}/events"
    async with two.client.http.get(url, headers=headers) as response:
        assert response.status == 200
        prompt = {"prompt": script({"say": "working"}, {"hang": True})}
        turn = asyncio.create_task(two.client.post(f"/sessions/{session_id}/turn", prompt))
        positions: list[int] = []

        async def until(text: bytes) -> None:
            while text not in (line := await response.content.readline()):
                assert line
                if line.startswith(b"id: "):
                    positions.append(int(line[4:]))

        async with asyncio.timeout(40):
            await until(b"working")
            await one.server.kill()
            await until(b"server_restarted")
            await asyncio.gather(turn, return_exceptions=True)
            assert (await two.client.turn(session_id, "hello"))[0] == 200
            await until(b'"end_turn"')
    assert positions == list(range(1, len(positions) + 1))


async def test_drain_hands_queued_turns_over_and_ends_the_running_one(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    far = await two.client.connect(session_id)
    go_on = cluster.folder / "go-on"
    await far.send("prompt", prompt=script({"say": "working"}, {"gate": str(go_on)}))
    await far.until_text("working")
    for number in range(3):
        await far.send("prompt", prompt=script({"say": f"queued {number}"}), id=f"q{number}")
        await far.until("accepted", id=f"q{number}")
    stopping = asyncio.create_task(one.server.stop())
    await eventually("the node to drain", lambda: one.state() == "draining")
    go_on.touch()
    assert await stopping == 0
    ends = [await far.until("turn_end") for _ in range(4)]
    assert [end["stop_reason"] for end in ends] == ["end_turn"] * 4
    assert [f"queued {number}" in far.text(number + 2) for number in range(3)] == [True] * 3
    assert cluster.owner_of(session_id) == "node-2"


async def test_full_node_refuses_a_session_without_a_token_by_itself(
    postgres: Postgres, tmp_path: Path
) -> None:
    async with running_nodes(postgres, tmp_path, 2, MAX_LIVE_AGENTS="2") as cluster:
        one, two = cluster.nodes
        while cluster.owner_of(await one.client.create()) != "node-2":
            pass
        two.pause()
        nobody = Client(one.server.url, None, one.client.http)
        failure(await nobody.post("/sessions", {"agent": "mock"}), 401, "unauthorized")


def admin_of(node: Node) -> Client:
    return Client(node.server.url, ADMIN, node.client.http)
