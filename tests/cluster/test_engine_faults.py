"""Faults of the database: it is slow, its disk is full, or it hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

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
"""Ends it."""
LATENCY_SECS = 0.1
LONGER_LEASE_SECS = 8
"""A slow machine lets no node miss it."""


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may stop."""
    with running_postgres(fsync="off") as server:
        yield server


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
    cluster.sql(FULL)
    try:
        go_on.touch()
        for number, node in enumerate(cluster.nodes):
            refused = await node.client.turn(session_id, "hello", id=f"refused-{number}")
            failure(refused, 500, "internal")
        assert len(await two.client.events(session_id)) == len(far.entries)
    finally:
        cluster.sql(FREE)
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
