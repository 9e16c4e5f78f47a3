"""Claims of sessions, also of those whose node has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from server.cluster.membership import OtherNodeError
from server.cluster.node import ClusterNode
from server.errors import Error, ErrorCode
from server.storage import statements
from server.storage.drivers.postgres import PostgresDriver
from server.storage.nodes import NodeRow

from ..support.rows import session_row, turn_row

MakeNode = Callable[[int], Awaitable[ClusterNode]]


async def add_session(driver: PostgresDriver, number: int, owner: int, *, turns: int = 0) -> str:
    row = session_row(number)
    await driver.write([statements.insert_session(row)])
    await driver.write(
        [statements.insert_turn(turn_row(number, index + 1)) for index in range(turns)]
    )
    await driver.change("UPDATE sessions SET owner = ? WHERE n = ?", (owner, number))
    return row.id


async def find(driver: PostgresDriver, node: ClusterNode) -> None:
    """Let a node know which nodes there are now, as a beat does."""
    rows = await driver.fetch("SELECT n, name, state FROM nodes WHERE state <> 'gone'", ())
    node.note_nodes(NodeRow(n, name, state, 0) for n, name, state in rows)


async def end_node(driver: PostgresDriver, number: int) -> None:
    await driver.change("UPDATE nodes SET state = 'gone' WHERE n = ?", (number,))


async def test_session_of_a_node_that_has_ended_is_claimed_at_once(
    make_node: MakeNode, driver: PostgresDriver
) -> None:
    two = await make_node(2)
    await make_node(1)
    idle, busy = [await add_session(driver, n, 1, turns=n - 1) for n in (1, 2)]
    two.find_nodes = partial(find, driver, two)
    with pytest.raises(OtherNodeError):
        await two.claim(idle)
    await end_node(driver, 1)
    two.note_gone([1])
    assert await two.claim(idle) is True
    assert await two.claim(busy) is False  # it is this node's, which ends its work
    assert await driver.fetch("SELECT DISTINCT owner FROM sessions", ()) == [(2,)]


async def test_node_that_has_just_started_is_reached_without_a_beat(
    make_node: MakeNode, driver: PostgresDriver
) -> None:
    one = await make_node(1)
    one.find_nodes = partial(find, driver, one)
    await make_node(2)
    session_id = await add_session(driver, 1, 2)
    with pytest.raises(OtherNodeError) as elsewhere:
        await one.claim(session_id)
    assert elsewhere.value.owner == 2
    await one.check_alive(2)
    with pytest.raises(Error) as unknown:
        await one.check_alive(3)
    assert unknown.value.code is ErrorCode.DRAINING
