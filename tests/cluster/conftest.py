"""A PostgreSQL server, clusters of server processes, and parts of nodes in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio

from server.cluster.node import ClusterNode
from server.storage.drivers.postgres import PostgresDriver
from server.storage.postgres_schema import POSTGRES_MIGRATIONS
from server.tasks import Supervisor

from ..support.postgres import Postgres, running_postgres
from .nodes import NodeCluster, running_nodes


@pytest.fixture(scope="package")
def postgres() -> Iterator[Postgres]:
    with running_postgres(fsync="off") as server:
        yield server


@pytest.fixture
def url(postgres: Postgres) -> str:
    """The URL of a new, empty database."""
    return postgres.new_database()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NodeCluster]:
    """Two nodes with the ``SETTINGS`` of the module, for all its tests."""
    folder, settings = tmp_path_factory.mktemp("cluster"), getattr(request.module, "SETTINGS", {})
    async with running_nodes(postgres, folder, 2, **settings) as running:
        yield running


@pytest.fixture
async def cluster(shared: NodeCluster) -> NodeCluster:
    """The module's cluster: all nodes run, and each test has an app of its own."""
    await shared.restart_ended()
    await shared.new_app()
    return shared


@pytest.fixture
async def driver(url: str) -> AsyncIterator[PostgresDriver]:
    opened = await PostgresDriver.open(url, name="test", migrations=POSTGRES_MIGRATIONS)
    yield opened
    await opened.close()


@pytest.fixture
async def make_node(
    driver: PostgresDriver,
) -> AsyncIterator[Callable[[int], Awaitable[ClusterNode]]]:
    """Starts the bus of a node with that number."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(number: int) -> ClusterNode:
            await driver.change(
                "INSERT INTO nodes (n, name, version, state) VALUES (?, ?, '', 'up')",
                (number, f"node-{number}"),
            )
            node = ClusterNode(driver, number, Supervisor(), beat_secs=2, secret=b"secret")
            node.bus.start()
            stack.push_async_callback(node.bus.stop)
            stack.push_async_callback(node.channels.stop)
            return node

        yield make
