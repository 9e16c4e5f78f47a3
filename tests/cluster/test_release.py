"""Idle sessions belong to no node, and any node continues them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest

from ..support.harness import Json, eventually, failure, run_step, script
from .nodes import Node, NodeCluster

pytestmark = pytest.mark.slow

SETTINGS = {"AGENT_IDLE_SECS": "0.2", "SWEEP_INTERVAL_SECS": "0.2"}
"""Agents hibernate soon."""

HOLD_RELEASES = """
CREATE FUNCTION hold_release() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1);
    RETURN NEW;
END
$$;
CREATE TRIGGER hold_release BEFORE UPDATE OF owner ON sessions FOR EACH ROW
    WHEN (NEW.owner IS NULL AND NEW.id = '{session_id}') EXECUTE FUNCTION hold_release();
"""


@contextlib.asynccontextmanager
async def held_release(cluster: NodeCluster, session_id: str) -> AsyncIterator[None]:
    """A block in which the first node has begun to release the session after a turn.

    The release is carried out at the end of the block, if the node runs.
    """
    client = cluster.nodes[0].client
    go_on = cluster.folder / f"go-on-{session_id}"
    socket = await client.connect(session_id)
    turn = asyncio.create_task(client.turn(session_id, script({"gate": str(go_on)})))
    await socket.until("turn_start")
    # In threads: they wait for transactions of nodes, whose proxies run in this event loop.
    hold = HOLD_RELEASES.replace("{session_id}", session_id)
    await asyncio.to_thread(cluster.sql, hold)
    holder = await asyncpg.connect(cluster.postgres.url(cluster.database))
    try:
        await holder.execute("SELECT pg_advisory_lock(1)")
        go_on.touch()
        assert (await turn)[0] == 200
        await until_releasing(cluster)
        yield
    finally:
        await holder.close()
        await asyncio.to_thread(cluster.sql, "DROP FUNCTION hold_release CASCADE")


async def until_releasing(cluster: NodeCluster) -> None:
    """Wait until a node is carrying out a release."""
    waiting = (
        "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND objid = 1 AND database = (SELECT oid FROM pg_database"
        " WHERE datname = current_database())"
    )
    await eventually("a release to begin", lambda: cluster.sql(waiting) == "t")


async def turn_once(node: Node, session_id: str, prompt: str, key: str) -> tuple[int, Json]:
    """Send a prompt that runs once, however often it is sent."""
    path, headers = f"/sessions/{session_id}/turn", {"Idempotency-Key": key}
    return await node.client.post(path, {"prompt": prompt}, headers=headers)


def numbers_of(entries: list[Json]) -> list[int]:
    return [entry["seq"] for entry in entries]


async def test_idle_session_is_continued_by_any_node(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    for number, node in enumerate((one, two, one, two), 1):
        status, reply = await node.client.turn(session_id, f"from {node.name}")
        assert status == 200, reply
        assert reply["turn_index"] == number
        await cluster.until_owned(session_id, "")
    history = await run_step(two.client, session_id, {"history": True})
    said = [f"from node-{number}" for number in (1, 2, 1, 2)]
    assert history[:4] == said
    entries = await one.client.events(session_id)
    assert entries == await two.client.events(session_id)
    assert numbers_of(entries) == list(range(1, len(entries) + 1))


async def test_clients_on_every_node_follow_and_prompt_a_session_that_moves(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near, far = await one.client.connect(session_id), await two.client.connect(session_id)
    sockets = (near, far)
    for prompting, node in ((near, None), (None, two), (far, None), (None, one), (near, None)):
        if prompting is not None:
            assert (await prompting.turn("hello"))["stop_reason"] == "end_turn"
        else:
            assert node is not None
            assert (await node.client.turn(session_id, "hello"))[0] == 200
        for socket in sockets:
            if socket is not prompting:
                await socket.until("turn_end")
        await cluster.until_owned(session_id, "")
    await one.client.delete(f"/sessions/{session_id}")
    for socket in sockets:
        assert await socket.until_closed() == 4508
    assert near.entries == far.entries == await two.client.events(session_id)
    assert numbers_of(near.entries) == list(range(1, len(near.entries) + 1))


async def test_stream_of_the_former_owner_ends_with_the_session(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    headers = {**one.client.headers(), "Accept": "text/event-stream"}
    url = f"{one.server.url}/sessions/{session_id}/events"
    async with one.client.http.get(url, headers=headers) as response:
        assert response.status == 200
        await cluster.until_owned(session_id, "")
        assert (await two.client.turn(session_id, "hello"))[0] == 200
        assert (await two.client.delete(f"/sessions/{session_id}"))[0] == 200
        lines = [line async for line in response.content]
    entries = await one.client.events(session_id)
    seen = [int(line[4:]) for line in lines if line.startswith(b"id: ")]
    assert seen == numbers_of(entries)
    assert entries[-1]["type"] == "session_closed"


async def test_same_prompt_to_all_nodes_runs_once_while_its_session_is_released(
    cluster: NodeCluster,
) -> None:
    session_id = await cluster.nodes[0].client.create()
    for number in range(1, 9):
        # Some of the prompts meet a session that is just being released.
        await eventually("the agent to end", lambda: has_no_agent(cluster, session_id))
        prompts = [
            turn_once(node, session_id, f"prompt {number}", f"p{number}")
            for node in (*cluster.nodes, *cluster.nodes)
        ]
        replies = await asyncio.gather(*prompts)
        assert [status for status, _ in replies] == [200] * 4, replies
        assert {reply["turn_index"] for _, reply in replies} == {number}
    entries = await cluster.nodes[1].client.events(session_id)
    assert numbers_of(entries) == list(range(1, len(entries) + 1))
    ends = [entry for entry in entries if entry["type"] == "turn_end"]
    assert [end["stop_reason"] for end in ends] == ["end_turn"] * 8


async def has_no_agent(cluster: NodeCluster, session_id: str) -> bool:
    _, reply = await cluster.nodes[1].client.get("/sessions")
    states = {one["session_id"]: one["agent_state"] for one in reply["sessions"]}
    return bool(states[session_id] == "hibernated")


async def test_prompt_during_a_release_is_accepted_once(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near = await one.client.connect(session_id)
    async with held_release(cluster, session_id):
        await near.until("turn_end")
        assert cluster.owner_of(session_id) == "node-1"
        await near.send("prompt", prompt="second", id="p2")
        asked = [
            asyncio.create_task(turn_once(node, session_id, "third", "p3")) for node in (one, two)
        ]
    for status, reply in await asyncio.gather(*asked):
        # Node 2 may have asked node 1 for it at the moment of the release.
        assert (status, reply.get("code")) in ((200, None), (503, "draining")), reply
    await near.until("accepted", id="p2")
    for _ in range(2):
        assert (await near.until("turn_end"))["stop_reason"] == "end_turn"
    entries = await two.client.events(session_id)
    assert numbers_of(entries) == list(range(1, len(entries) + 1))
    starts = [entry["id"] for entry in entries if entry["type"] == "turn_start"]
    assert sorted(map(str, starts)) == ["None", "p2", "p3"]


@pytest.mark.parametrize("is_carried_out", [False, True])
async def test_session_of_a_node_that_was_killed_during_the_release_runs_elsewhere(
    cluster: NodeCluster, *, is_carried_out: bool
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    far = await two.client.connect(session_id)
    async with held_release(cluster, session_id):
        await far.until("turn_end")
        if not is_carried_out:  # the connection ends with the process, and PostgreSQL notices it
            await one.server.kill()
    if is_carried_out:
        await cluster.until_owned(session_id, "")
        await one.server.kill()
    await cluster.until_owned(session_id, "")
    assert (await far.turn("and now"))["stop_reason"] == "end_turn"
    entries = await two.client.events(session_id)
    assert numbers_of(entries) == list(range(1, len(entries) + 1))
    assert [one["stop_reason"] for one in entries if one["type"] == "turn_end"] == ["end_turn"] * 2


async def test_released_session_is_changed_forked_and_deleted_on_another_node(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    path = f"/sessions/{session_id}"
    for text in ("one", "two"):
        prompt = script({"write": "file.txt"}, {"say": text})
        assert (await one.client.turn(session_id, prompt))[0] == 200
    await cluster.until_owned(session_id, "")
    status, _ = await two.client.call("PATCH", path, {"meta": {"title": "moved"}})
    assert status == 200
    await cluster.until_owned(session_id, "")
    assert (await one.client.state(session_id))["meta"] == {"title": "moved"}
    await cluster.until_owned(session_id, "")
    status, fork = await two.client.post(f"{path}/fork", {})
    assert status in (200, 201), fork
    assert (await one.client.turn(fork["session_id"], "in the fork"))[0] == 200
    await cluster.until_owned(session_id, "")
    status, reply = await one.client.post(f"{path}/undo", {"turn_index": 2})
    assert status == 200, reply
    await cluster.until_owned(session_id, "")
    assert (await two.client.delete(path))[0] == 200
    await cluster.until_owned(session_id, "")
    assert (await one.client.post(f"{path}/reopen"))[0] == 200
    assert (await two.client.turn(session_id, "again"))[0] == 200
    await cluster.until_owned(session_id, "")
    assert (await one.client.delete(f"{path}?purge=true"))[0] == 200
    failure(await two.client.get(path), 404, "not_found")


async def test_races_with_the_release_lose_and_repeat_nothing(cluster: NodeCluster) -> None:
    """Several clients use one session at random times, on both nodes."""
    dice = random.Random(1)
    session_id = await cluster.nodes[0].client.create("mock-steers")
    path = f"/sessions/{session_id}"
    sent: list[str] = []
    accepted: set[str] = set()
    unexpected: list[tuple[int, Json]] = []

    async def prompt(node: Node) -> tuple[int, Json]:
        sent.append(key := f"p{len(sent)}")
        status, reply = await turn_once(node, session_id, f"prompt {key}", key)
        if status == 200:
            accepted.add(key)
        return status, reply

    async def steer(node: Node) -> tuple[int, Json]:
        sent.append(key := f"p{len(sent)}")
        socket = await node.client.connect(session_id)
        await socket.send("prompt", prompt=f"prompt {key}", id=key, steer=True)
        while (frame := await socket.next()) is not None:
            if frame["type"] == "accepted":
                accepted.add(key)
            if frame["type"] in ("accepted", "error"):
                break
        await socket.close()
        return 200, frame or {}

    async def close_and_reopen(node: Node) -> tuple[int, Json]:
        await node.client.delete(path)
        return await node.client.post(f"{path}/reopen")

    async def fork(node: Node) -> tuple[int, Json]:
        status, reply = await node.client.post(f"{path}/fork", {})
        if status == 200:
            await node.client.delete(f"/sessions/{reply['session_id']}?purge=true")
        return status, reply

    async def undo(node: Node) -> tuple[int, Json]:
        status, reply = await node.client.post(f"{path}/undo", {"turn_index": 1})
        return (status, reply) if status >= 500 else (200, reply)

    async def search(node: Node) -> tuple[int, Json]:
        return await node.client.get("/search?q=prompt")

    async def rename(node: Node) -> tuple[int, Json]:
        return await node.client.call("PATCH", path, {"meta": {"title": f"{len(sent)}"}})

    operations = [prompt, prompt, prompt, steer, close_and_reopen, fork, undo, search, rename]

    async def use(number: int) -> None:
        for _ in range(8):
            # About the time after which an idle session is released.
            await asyncio.sleep(dice.uniform(0, 0.9))
            status, reply = await dice.choice(operations)(cluster.nodes[number % 2])
            refused = reply.get("code") in ("session_closed", "conflict", "draining", None)
            if status >= 400 and not (refused or reply.get("retryable")):
                unexpected.append((status, reply))

    await asyncio.gather(*map(use, range(4)))
    assert not unexpected
    for node in cluster.nodes:
        await node.client.post(f"{path}/reopen")
        assert (await prompt(node))[0] == 200
        entries = await node.client.events(session_id)
        assert numbers_of(entries) == list(range(1, len(entries) + 1))
        kinds = ("turn_start", "turn_steer")
        begun = [entry["id"] for entry in entries if entry["type"] in kinds]
        assert len(begun) == len(set(begun))
        starts = [entry["turn_index"] for entry in entries if entry["type"] == "turn_start"]
        ends = [entry["turn_index"] for entry in entries if entry["type"] == "turn_end"]
        assert set(starts) <= set(ends)
        assert len(ends) == len(set(ends))
    log = await cluster.nodes[1].client.events(session_id)
    ended = {entry["id"] for entry in log if entry["type"] in ("turn_start", "turn_steer")}
    withdrawn = sum(entry.get("withdrawn", False) for entry in log if entry["type"] == "turn_end")
    assert len(accepted - ended) <= withdrawn
