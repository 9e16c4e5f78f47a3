"""Nodes and their leases: registration, beats, lateness, and nodes that are taken over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from server.config import Settings
from server.errors import DatabaseError, Error
from server.metrics import Metrics
from server.storage.database import Database
from server.storage.drivers.base import FencedError
from server.storage.drivers.postgres import PostgresDriver
from server.storage.engine import describe_engine
from server.storage.lease import LEASE_TRANSITIONS, Lease, LeaseState
from server.storage.nodes import NodeTable
from server.storage.queries import Queries
from server.storage.writer import DatabaseWriter

from ..support.postgres import Postgres
from ..support.rows import insert_token
from ..support.tcp_proxy import tcp_proxy
from ..support.waiting import eventually

LEASE_SECS = 10.0


class Node:
    """A node of the test: its database, its number and its lease, whose clock the test moves."""

    def __init__(self, database: Database, name: str) -> None:
        assert isinstance(database.driver, PostgresDriver)
        self.database = database
        self.table = NodeTable(database.driver)
        self.name = name
        self.time = 1000.0
        self.states: list[LeaseState] = []
        self.gone: list[int] = []
        self.number = 0
        self.lease: Lease

    async def register(self) -> None:
        self.number = await self.table.register(self.name, "1")
        self.lease = Lease(self.table, self.number, LEASE_SECS, lambda: self.time)
        self.lease.followers.append(self.states.append)
        self.lease.on_gone = self.gone.extend

    async def make_late(self, secs: float) -> None:
        """Let the engine believe that the last beat of this node was *secs* earlier."""
        assert isinstance(self.database.driver, PostgresDriver)
        await self.database.driver.change(
            "UPDATE nodes SET beat_at = beat_at - make_interval(secs => ?) WHERE n = ?",
            (secs, self.number),
        )


@contextlib.asynccontextmanager
async def node_at(url: str, name: str) -> AsyncIterator[Node]:
    database = await Database.connect(url, name=name)
    try:
        node = Node(database, name)
        await node.register()
        yield node
    finally:
        await database.close()


@pytest.fixture
async def url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture
async def a(url: str) -> AsyncIterator[Node]:
    async with node_at(url, "a") as node:
        yield node


@pytest.fixture
async def b(url: str, a: Node) -> AsyncIterator[Node]:
    async with node_at(url, "b") as node:
        yield node


async def beat_for(node: Node, secs: float) -> None:
    """Beat without a gap for some seconds of the node's clock."""
    for _ in range(int(secs)):
        node.time += 1
        await node.lease.beat()


async def test_node_numbers_begin_at_the_time_and_grow(a: Node, b: Node) -> None:
    assert 1_700_000_000_000_000 < a.number < b.number
    await a.lease.beat()
    assert [(row.number, row.name, row.state) for row in a.lease.nodes] == [
        (a.number, "a", "up"),
        (b.number, "b", "up"),
    ]


async def test_restart_under_the_same_name_fences_the_predecessor(url: str, a: Node) -> None:
    await a.database.write([insert_token("before")])
    async with node_at(url, "a") as again:
        with pytest.raises(FencedError):
            await a.database.write([insert_token("after")])
        await again.database.write([insert_token("mine")])
        await a.lease.beat()
        assert a.states == [LeaseState.LOST]
        names = [row.name for row in await Queries(again.database).tokens()]
        assert names == ["before", "mine"]


async def test_nodes_that_register_one_name_at_once_leave_one(url: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nodes = await asyncio.gather(
            *(stack.enter_async_context(node_at(url, "same")) for _ in range(4))
        )
        rows = await nodes[0].database.fetch("SELECT state FROM nodes")
        assert sorted(state for (state,) in rows) == ["gone", "gone", "gone", "up"]


async def test_late_node_is_taken_over_after_its_lease(a: Node, b: Node) -> None:
    await beat_for(a, LEASE_SECS)
    await b.make_late(LEASE_SECS - 1)
    await beat_for(a, 1)
    assert a.gone == []
    await b.make_late(1)
    await beat_for(a, 1)
    assert a.gone == [b.number]
    with pytest.raises(FencedError):
        await b.database.write([insert_token("late")])
    await b.lease.beat()
    assert b.states == [LeaseState.LOST]


async def test_node_takes_over_no_other_for_a_lease_after_it_was_cut_off(a: Node, b: Node) -> None:
    await beat_for(a, LEASE_SECS)
    await b.make_late(2 * LEASE_SECS)
    a.time += 0.6 * LEASE_SECS  # no beat meanwhile, perhaps because no node reached the database
    await a.lease.beat()
    assert a.gone == []
    await beat_for(a, LEASE_SECS - 1)
    assert a.gone == []
    await beat_for(a, 1)
    assert a.gone == [b.number]


async def test_two_nodes_take_over_another_one_once(a: Node, b: Node, url: str) -> None:
    async with node_at(url, "c") as c:
        await beat_for(a, LEASE_SECS)
        await beat_for(b, LEASE_SECS)
        await c.make_late(LEASE_SECS)
        a.time += 1
        b.time += 1
        await asyncio.gather(a.lease.beat(), b.lease.beat())
        assert sorted([*a.gone, *b.gone]) == [c.number]


async def test_lease_becomes_late_and_frozen_and_is_held_again(
    postgres: Postgres, url: str
) -> None:
    async with tcp_proxy(postgres.port) as proxy:
        through = url.replace(f":{postgres.port}/", f":{proxy.port}/")
        database = await Database.connect(through, name="a")
        assert isinstance(database.driver, PostgresDriver)
        table = NodeTable(database.driver)
        lease = Lease(table, await table.register("a", "1"), 1.0)
        states: list[LeaseState] = []
        lease.followers.append(states.append)
        tasks = [asyncio.create_task(lease.run()), asyncio.create_task(lease.watch())]
        proxy.freeze()
        await eventually("the lease to freeze", lambda: LeaseState.FROZEN in states)
        assert states == [LeaseState.LATE, LeaseState.FROZEN]
        proxy.thaw()
        await eventually("the lease to be held", lambda: lease.state is LeaseState.HELD)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await database.close()


async def test_suspended_writer_refuses_commits_and_keeps_entries(a: Node) -> None:
    writer = DatabaseWriter(a.database, Metrics())
    writer.start()
    writer.is_suspended = True
    with pytest.raises(Error):
        await writer.commit([insert_token("a")])
    writer.add([insert_token("kept")])
    await writer.flush()
    writer.is_suspended = False
    await writer.commit([insert_token("b")])
    assert [row.name for row in await Queries(a.database).tokens()] == ["b", "kept"]
    await writer.stop()


async def test_fenced_writer_ends_and_stores_nothing(a: Node, url: str) -> None:
    writer = DatabaseWriter(a.database, Metrics())
    writer.start()
    async with node_at(url, "a"):
        with pytest.raises(Error):
            await writer.commit([insert_token("a")])
        assert writer.is_over
        await writer.stop()
        assert await Queries(a.database).tokens() == []


async def test_marks_and_old_nodes_are_swept(a: Node, b: Node) -> None:
    for number in range(105):
        await a.database.write([insert_token(f"t{number}")])
    await b.database.write([insert_token("of-b")])
    await b.table.set_state(b.number, "gone")
    await b.make_late(8 * 86400)
    await a.table.sweep(a.number)
    rows = await a.database.fetch("SELECT n, min(k), count(*) FROM marks GROUP BY n")
    assert rows == [(a.number, 5, 101)]
    assert await a.database.fetch("SELECT n FROM nodes") == [(a.number,)]


async def test_beat_without_a_database_changes_nothing(a: Node) -> None:
    await a.database.close()
    with pytest.raises(DatabaseError):
        await a.table.take(1, 1.0)
    assert a.states == []


async def test_nodes_are_described_to_the_operator(url: str, a: Node, b: Node) -> None:
    await a.table.set_state(a.number, "draining")
    await b.make_late(LEASE_SECS)
    found = await describe_engine(Settings(cluster_url=url, lease_secs=LEASE_SECS))
    assert "a (1, draining" in found
    assert "b (1, no beat for" in found


def test_lost_lease_is_final() -> None:
    assert LEASE_TRANSITIONS[LeaseState.LOST] == set()
    assert set(LEASE_TRANSITIONS) == set(LeaseState)
