"""A failover of the database: what it has lost is reported, and what it has kept goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from ..support import acp_client
from ..support.client import Client, Socket
from ..support.harness import eventually, script
from ..support.postgres import Postgres, running_postgres
from .nodes import NodeCluster, running_nodes

pytestmark = pytest.mark.slow

LONG_LEASE_SECS = "60"
"""No node stops its agents during a failover, however slow the machine is."""


@pytest.fixture
def primary() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def standby(primary: Postgres) -> Iterator[Postgres]:
    with running_postgres(primary) as server:
        yield server


@pytest.fixture
async def cluster(
    primary: Postgres, standby: Postgres, tmp_path: Path
) -> AsyncIterator[NodeCluster]:
    async with running_nodes(primary, tmp_path, 2, LEASE_SECS=LONG_LEASE_SECS) as running:
        yield running


async def fail_over(cluster: NodeCluster, primary: Postgres, standby: Postgres) -> None:
    """Crash the primary, and let all nodes connect to the standby."""
    await asyncio.to_thread(primary.stop, signal.SIGQUIT)
    await asyncio.to_thread(standby.promote)
    cluster.postgres = standby
    for node in cluster.nodes:
        node.proxy.target = standby.port
        node.proxy.cut()


async def goes_on(client: Client, session_id: str) -> bool:
    """Whether a turn runs: the nodes notice each other's new numbers with the next beats."""
    return (await client.turn(session_id, "go on"))[0] == 200


async def test_clients_continue_after_a_failover_that_has_lost_nothing(
    cluster: NodeCluster, primary: Postgres, standby: Postgres
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    near, far = await one.client.connect(session_id), await two.client.connect(session_id)
    await far.turn("before")
    await near.until("turn_end")
    written = primary.sql("SELECT pg_current_wal_flush_lsn()")
    behind = f"SELECT pg_last_wal_replay_lsn() < '{written}'"
    await eventually("the standby to have it all", lambda: standby.sql(behind) == "f")
    await fail_over(cluster, primary, standby)
    for socket in (near, far):
        await socket.send("prompt", prompt="after")
        await socket.until("turn_end", stop_reason="end_turn")
    entries = await two.client.events(session_id)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))


async def test_clients_start_again_after_a_failover_that_has_lost_entries(
    cluster: NodeCluster, primary: Postgres, standby: Postgres
) -> None:
    one, two = cluster.nodes
    session_id = await one.client.create()
    await one.client.turn(session_id, "kept")
    near, far = await one.client.connect(session_id), await two.client.connect(session_id)
    ws = await two.client.http.ws_connect(f"{two.server.url}/ws", headers=two.client.headers())
    two.client.close_later(ws)
    app = Socket(ws)
    await app.until("ready")
    await app.send("subscribe", session_id=session_id, after=0)
    await app.until("ready", session_id=session_id)
    editor = await acp_client.connect(one.client)
    kept = (await one.client.events(session_id))[-1]["seq"]
    written = primary.sql("SELECT pg_current_wal_flush_lsn()")
    behind = f"SELECT pg_last_wal_replay_lsn() < '{written}'"
    await eventually("the standby to have it all", lambda: standby.sql(behind) == "f")
    await asyncio.to_thread(standby.cut_off)
    await one.client.turn(session_id, script(*({"say": f"{number} "} for number in range(50))))
    ends = [await socket.until("turn_end", turn_index=2) for socket in (near, far, app)]
    end = ends[0]
    assert end["seq"] > kept + 50
    await fail_over(cluster, primary, standby)
    closing = (one.until_closed() for one in (near, far, app, editor))
    assert await asyncio.gather(*closing) == [4002] * 4
    assert await one.server.process.wait() != 0
    await one.start()
    for node in (one, two):
        again = await node.client.connect(session_id, after=end["seq"], ready=False)
        assert await again.until_closed() == 4002
        await eventually("the session to go on", partial(goes_on, node.client, session_id))
        await (await node.client.connect(session_id, after=0)).until("turn_end", turn_index=1)
    entries = await two.client.events(session_id)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert entries == await one.client.events(session_id)


async def test_failover_to_a_synchronous_standby_in_mid_turn_loses_nothing(
    cluster: NodeCluster, primary: Postgres, standby: Postgres
) -> None:
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.sql("SELECT pg_reload_conf()")
    synced = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
    await eventually("the standby to be synchronous", lambda: primary.sql(synced) == "1")
    one, two = cluster.nodes
    session_id = await one.client.create()
    near, far = await one.client.connect(session_id), await two.client.connect(session_id)
    steps = {"repeat": {"times": 300, "steps": [{"say": "{i} "}, {"sleep": 5}]}}
    await far.send("prompt", prompt=script(steps))
    await asyncio.gather(*(socket.until_text("20 ") for socket in (near, far)))
    await fail_over(cluster, primary, standby)
    for socket in (near, far):
        assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"
        assert len(socket.text(1).split()) == 300
    assert near.entries == far.entries == await two.client.events(session_id)
