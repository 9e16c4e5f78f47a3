"""Rolling upgrades of three nodes: each node is drained and started again, and no turn is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from ..cluster.nodes import NodeCluster, running_nodes
from ..support.client import Client
from ..support.harness import script
from ..support.postgres import Postgres, running_postgres
from .conftest import LONG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROUNDS = 20 if LONG else 1
SESSIONS = 6
TURN = script(*({"say": f"{number} "} for number in range(20)), {"sleep": 100}, {"say": "done"})


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


class Prompter:
    """Sends prompts to one session through all nodes in turn, each until it is done."""

    def __init__(self, cluster: NodeCluster, session_id: str, first: int) -> None:
        self.session_id = session_id
        self.sent: list[str] = []
        self.is_over = False
        self._cluster = cluster
        self._choices = itertools.count(first)

    async def run(self) -> None:
        while not self.is_over:
            name = f"{self.session_id}-{len(self.sent)}"
            self.sent.append(name)
            while not await self._is_done(name):
                pass

    async def _is_done(self, name: str) -> bool:
        nodes = self._cluster.nodes
        client: Client = nodes[next(self._choices) % len(nodes)].client
        try:
            status, reply = await client.turn(self.session_id, TURN, id=name)
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)  # the node is being restarted
            return False
        assert status in (200, 503), reply
        assert reply.get("code") != "server_restarted", reply
        return status == 200


async def test_rolling_restarts_lose_no_turn(postgres: Postgres, tmp_path: Path) -> None:
    # A slow machine misses no lease of this length. A restarted node need not wait for it.
    async with running_nodes(postgres, tmp_path, 3, DRAIN_SECS="60", LEASE_SECS="30") as cluster:
        sessions = [await cluster.nodes[number % 3].client.create() for number in range(SESSIONS)]
        prompters = [Prompter(cluster, one, first) for first, one in enumerate(sessions)]
        async with asyncio.TaskGroup() as group:
            for prompter in prompters:
                group.create_task(prompter.run())
            for _ in range(ROUNDS):
                for node in cluster.nodes:
                    assert await node.server.stop() == 0
                    await node.start()
            for prompter in prompters:
                prompter.is_over = True
        for prompter in prompters:
            entries = await cluster.nodes[0].client.events(prompter.session_id)
            assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
            starts = [entry for entry in entries if entry["type"] == "turn_start"]
            ends = [entry for entry in entries if entry["type"] == "turn_end"]
            assert len(starts) == len(prompter.sent)
            assert [end["stop_reason"] for end in ends] == ["end_turn"] * len(prompter.sent)
