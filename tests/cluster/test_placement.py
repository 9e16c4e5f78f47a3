"""On which node a session is placed, and when it leaves a node that has ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from unittest import mock

import pytest

from server.cluster.node import ClusterNode, NodeInfo
from server.sessions import ownership as ownership_module
from server.sessions.ownership import SessionOwnership
from server.tasks import Supervisor
from server.web.node_parts import NodeParts

from ..support.waiting import Deadline


@pytest.fixture
def full_node() -> ClusterNode:
    """Node 1, without a free slot; nodes 2 and 3 have reported theirs."""
    node = ClusterNode(mock.Mock(), 1, Supervisor(), beat_secs=1, secret=b"")
    node.free_slots = lambda: 0
    node.nodes = {
        number: NodeInfo(number, f"node-{number}", "up", is_late=False, free=free, live=0)
        for number, free in ((1, 0), (2, 3), (3, 7))
    }
    return node


def test_sessions_placed_between_two_beats_fill_no_node_beyond_its_slots(
    full_node: ClusterNode,
) -> None:
    assert Counter(full_node.choose_node() for _ in range(10)) == {2: 3, 3: 7}
    assert full_node.choose_node() == 1


def test_sessions_are_placed_on_the_node_with_more_free_slots(full_node: ClusterNode) -> None:
    assert [full_node.choose_node() for _ in range(4)] == [3] * 4


async def test_sessions_of_a_node_that_was_taken_over_are_taken_before_the_next_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ownership_module, "ROUND_SECS", 3600)
    node = mock.Mock(beat_secs=3600, on_event={}, bus=mock.AsyncMock())
    ownership = SessionOwnership(mock.Mock(), node)
    taken = asyncio.Event()

    async def take_over_work() -> None:
        taken.set()

    with mock.patch.object(ownership, "take_over_work", take_over_work):
        running = asyncio.create_task(ownership.run())
        await asyncio.sleep(0)  # it waits for the next round now
        parts = mock.Mock(_ownership=ownership, _has_work=asyncio.Event())
        NodeParts._on_gone(parts, [2])
        async with Deadline("the sessions to be taken"):
            await taken.wait()
        assert parts._has_work.is_set()
        running.cancel()
