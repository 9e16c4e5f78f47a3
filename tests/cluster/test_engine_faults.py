"""Faults of the database: it is slow, its disk is full, or it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ..support.client import failure
from ..support.harness import eventually, script
from ..support.postgres import Postgres, running_postgres
from .nodes import NodeCluster, running_nodes

pytestmark = pytest.mark.slow

SETTINGS = {"LEASE_SECS": "60"}

FULL = (
    "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;"
    "CREATE TRIGGER full_log BEFORE INSERT ON log EXECUTE FUNCTION fail();"
    "CREATE TRIGGER full_turns BEFORE INSERT ON turns EXECUTE FUNCTION fail()"
)
"""The error that PostgreSQL reports if its disk is full."""
FREE = "DROP TRIGGER full_log ON log; DROP TRIGGER full_turns ON turns"
"""Ends it.

Both wait for the transactions of the nodes, whose connections pass through this process: it must go
on meanwhile.
"""
LATENCY_SECS = 0.1
LONGER_LEASE_SECS = 8
"""A slow machine lets no node miss it."""


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may stop."""
    with running_postgres(fsync="off") as server:
        yield server


async def crash(postgres: Postgres) -> None:
    """Crash the engine, and start it again."""
    await asyncio.to_thread(postgres.stop, signal.SIGQUIT)
    await asyncio.to_thread(postgres.start, fsync="off")


async def test_prompts_without_an_id_run_once_while_the_database_crashes(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    """A crash loses the messages between the nodes, but no commit."""
    dice = random.Random(1)
    async with running_nodes(own_postgres, tmp_path, 2, LEASE_SECS="60") as cluster:
        one, two = cluster.nodes
        session_id = await one.client.create()
        far = await two.client.connect(session_id)
        accepted = []
        for number in range(8):
            await far.send("prompt", prompt=f"prompt {number}")
            await asyncio.sleep(dice.uniform(0, 0.02))
            await crash(own_postgres)
            while (answer := await far.next()) is not None:
                if answer["type"] in ("accepted", "error"):
                    break
            assert answer is not None
            assert answer.get("id") is None, answer
            if answer["type"] == "accepted":
                assert answer["duplicate"] is False
                accepted.append(answer["turn_index"])
            else:
                assert answer["retryable"], answer

        async def is_idle() -> bool:
            _, state = await one.client.get(f"/sessions/{session_id}")
            return state.get("state") == "idle" and not state["queued"]

        await eventually("all turns to end", is_idle)
        entries = await two.client.events(session_id)
        starts = [entry for entry in entries if entry["type"] == "turn_start"]
        assert all(entry["id"] is None for entry in starts)
        texts = [entry["prompt"][0]["text"] for entry in starts]
        assert len(texts) == len(set(texts))
        assert accepted
        assert set(accepted) <= {entry["turn_index"] for entry in starts}


async def test_nodes_continue_with_idle_connections_after_a_restart_of_the_database(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    async with running_nodes(own_postgres, tmp_path, 2, LEASE_SECS="60") as cluster:
        ids = [await node.client.create() for node in cluster.nodes]
        for _ in range(2):
            # Every connection of the pools has been used.
            await asyncio.gather(
                *(node.client.get("/sessions") for node in cluster.nodes for _ in range(10))
            )
            await asyncio.to_thread(own_postgres.stop)
            await asyncio.to_thread(own_postgres.start, fsync="off")
            for node in cluster.nodes:
                await node.client.create()
                replies = await asyncio.gather(
                    node.client.get("/sessions"),
                    *(node.client.turn(session_id, "hello") for session_id in ids),
                )
                assert [status for status, _ in replies] == [200] * 3, replies


async def test_node_that_drains_waits_for_a_database_that_hangs(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    settings = {"LEASE_SECS": "60", "DRAIN_SECS": "60"}
    async with running_nodes(own_postgres, tmp_path, 2, **settings) as cluster:
        one, two = cluster.nodes
        session_id = await one.client.create()
        near, go_on = await one.client.connect(session_id), tmp_path / "go-on"
        await near.send("prompt", prompt=script({"say": "busy"}, {"gate": str(go_on)}))
        await near.until_text("busy")
        await near.send("prompt", prompt="and then")
        await near.until("accepted", queued=True)
        own_postgres.pause()
        try:
            stopping = asyncio.create_task(one.server.stop())
            go_on.touch()
            assert await near.until_closed() == 1012
            await asyncio.sleep(2)
        finally:
            own_postgres.resume()
        assert await stopping == 0
        far = await two.client.connect(session_id, after=0)
        for _ in range(2):
            assert (await far.until("turn_end"))["stop_reason"] == "end_turn"


async def test_database_without_free_connections_delays_nodes_and_ends_none(
    tmp_path: Path,
) -> None:
    with running_postgres(
        fsync="off", max_connections="30", superuser_reserved_connections="1"
    ) as postgres:
        async with running_nodes(postgres, tmp_path, 2, LEASE_SECS="60") as cluster:
            one, two = cluster.nodes
            session_id = await one.client.create()
            far = await two.client.connect(session_id)
            others = []
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    others.append(await asyncpg.connect(postgres.url(cluster.database)))
            for node in cluster.nodes:
                node.proxy.cut()  # they cannot come back
            await far.send("prompt", prompt="hello", id="a")
            await asyncio.sleep(1)
            for connection in others:
                await connection.close()
            assert (await far.until("turn_end"))["stop_reason"] == "end_turn"
            assert [node.server.process.returncode for node in cluster.nodes] == [None, None]


async def test_slow_database_delays_entries_and_changes_nothing_else(cluster: NodeCluster) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near, far = await one.client.connect(session_id), await two.client.connect(session_id)
    for node in cluster.nodes:
        node.proxy.delay_secs = LATENCY_SECS
    try:
        steps = script(*({"say": f"{number} "} for number in range(100)))
        await far.send("prompt", prompt=steps, id="slow")
        for socket in (near, far):
            assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"
            assert socket.text(1).split() == [str(number) for number in range(100)]
        await near.send("prompt", prompt="again", id="slow")
        assert (await near.until("accepted"))["duplicate"] is True
    finally:
        for node in cluster.nodes:
            node.proxy.delay_secs = 0
    assert near.entries == far.entries == await two.client.events(session_id)
    assert [node.state() for node in cluster.nodes] == ["up", "up"]


async def test_full_database_refuses_prompts_and_keeps_what_agents_write(
    cluster: NodeCluster,
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near, far = await one.client.connect(session_id), await two.client.connect(session_id)
    go_on = cluster.folder / "go-on"
    steps = [{"say": f"{number} "} for number in range(300)]
    await far.send("prompt", prompt=script({"say": "begin "}, {"gate": str(go_on)}, *steps))
    for socket in (near, far):
        await socket.until_text("begin ")
    await asyncio.to_thread(cluster.sql, FULL)
    try:
        go_on.touch()
        for number, node in enumerate(cluster.nodes):
            refused = await node.client.turn(session_id, "hello", id=f"refused-{number}")
            failure(refused, 500, "internal")
        assert len(await two.client.events(session_id)) == len(far.entries)
    finally:
        await asyncio.to_thread(cluster.sql, FREE)
    for socket in (near, far):
        assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"
        assert socket.text(1).split() == ["begin", *(str(number) for number in range(300))]
    for number, node in enumerate(cluster.nodes):
        assert (await node.client.turn(session_id, "hello", id=f"refused-{number}"))[0] == 200
    entries = await two.client.events(session_id)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1]["turn_index"] == 3


async def test_database_that_hangs_stops_all_nodes_and_makes_none_take_over(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    async with running_nodes(
        own_postgres, tmp_path, 2, LEASE_SECS=str(LONGER_LEASE_SECS)
    ) as cluster:
        one, two = cluster.nodes
        session_id = await one.client.create()
        near, far = await one.client.connect(session_id), await two.client.connect(session_id)
        go_on = tmp_path / "go-on"
        steps = script({"say": "before "}, {"gate": str(go_on)}, {"say": "after "})
        await far.send("prompt", prompt=steps)
        for socket in (near, far):
            await socket.until_text("before ")
        own_postgres.pause()
        try:
            closing = (socket.until_closed() for socket in (near, far))
            assert await asyncio.gather(*closing) == [1012, 1012]
            await asyncio.sleep(LONGER_LEASE_SECS)
        finally:
            own_postgres.resume()

        async def are_ready() -> bool:
            found = [await node.client.get("/readyz") for node in cluster.nodes]
            return [status for status, _ in found] == [200, 200]

        await eventually("the nodes to be ready again", are_ready)
        go_on.touch()
        again = await two.client.connect(session_id, after=far.entries[-1]["seq"])
        assert (await again.until("turn_end"))["stop_reason"] == "end_turn"
        seen = far.entries + again.entries
        assert [entry["seq"] for entry in seen] == list(range(1, len(seen) + 1))
        assert cluster.sql("SELECT count(*) FROM nodes WHERE state <> 'up'") == "0"
