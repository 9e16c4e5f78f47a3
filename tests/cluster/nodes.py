"""Clusters of real server processes.

All nodes of a cluster share one PostgreSQL database. Each node reaches it through a TCP proxy of
its own, so that a test can cut off a single node.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import aiohttp

from ..support.client import ADMIN, Client, http_session
from ..support.harness import eventually
from ..support.postgres import Postgres
from ..support.servers import ServerProcess, start_server
from ..support.tcp_proxy import TcpProxy

LEASE_SECS = 3.0


def faulty(*faults: str) -> tuple[str, ...]:
    """The wrapper that runs a server with faults; see ``faulty_node.py``."""
    return (sys.executable, str(Path(__file__).with_name("faulty_node.py")), *faults)


class Node:
    """One node.

    Attributes:
        proxy: the TCP proxy between the node and PostgreSQL.
        server: the server process.
        client: a client of the app that sends its requests to this node.
        wrapper: a program with arguments that executes the server.
        node_name: the name under which it registers.
    """

    def __init__(self, cluster: NodeCluster, name: str) -> None:
        self.name = self.node_name = name
        self._cluster = cluster
        self.proxy = TcpProxy(cluster.postgres.port)
        self.server: ServerProcess
        self.client: Client
        self.wrapper: Sequence[str] = ()

    async def start(self) -> None:
        """Start the process, for the first time or after its end."""
        cluster = self._cluster
        self.server = await start_server(
            cluster.folder / self.name / "data",
            cluster.folder / f"{self.name}.log",
            wrapper=self.wrapper,
            CLUSTER_URL=cluster.postgres.url(cluster.database, self.proxy.port),
            SHARED_DIR=str(cluster.folder / "shared" / "data"),
            SANDBOX_WRITE=str(cluster.folder),
            NODE_NAME=self.node_name,
            **{"LEASE_SECS": str(LEASE_SECS), **cluster.settings},
        )
        self.client = Client(self.server.url, cluster.token, cluster.http)

    def pause(self) -> None:
        self.server.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.server.process.send_signal(signal.SIGCONT)

    def state(self) -> str:
        """The state of this node in the database."""
        return self._cluster.sql(
            f"SELECT state FROM nodes WHERE name = '{self.name}' ORDER BY n DESC LIMIT 1"
        )


class NodeCluster:
    """Nodes on one database and one shared folder."""

    def __init__(self, postgres: Postgres, folder: Path, http: aiohttp.ClientSession) -> None:
        self.postgres = postgres
        self.folder = folder
        self.http = http
        self.database = postgres.new_database().rpartition("/")[2]
        self.settings: dict[str, str] = {}
        self.token: str | None = None
        self.app = ""
        self._names = itertools.count(1)
        self.nodes: list[Node] = []

    def sql(self, statement: str) -> str:
        return self.postgres.sql(statement, self.database)

    async def add(
        self, name: str, wrapper: Sequence[str] = (), node_name: str | None = None
    ) -> Node:
        """Start one more node."""
        node = Node(self, name)
        node.wrapper = wrapper
        node.node_name = node_name or name
        (self.folder / name).mkdir()
        await node.proxy.start()
        self.nodes.append(node)
        await node.start()
        return node

    async def restart_ended(self) -> None:
        """Start the nodes again that have ended, or that other nodes have taken over."""
        for node in self.nodes:
            if node.server.process.returncode is not None or node.state() == "gone":
                await node.server.process.wait()
                await node.start()

    async def new_app(self) -> None:
        """Create an app. From now on ``client`` of each node belongs to it."""
        self.app = f"app-{next(self._names)}"
        admin = Client(self.nodes[0].server.url, ADMIN, self.http)
        status, reply = await admin.post("/admin/tokens", {"name": self.app})
        assert status == 200, reply
        self.token = reply["token"]
        for node in self.nodes:
            node.client.token = self.token
            await eventually("the token to be known", partial(self._is_known, node))

    async def _is_known(self, node: Node) -> bool:
        return (await node.client.get("/sessions"))[0] == 200

    async def stop(self) -> None:
        for node in self.nodes:
            with contextlib.suppress(ProcessLookupError):
                node.resume()
                node.server.process.kill()
            await node.server.process.wait()
            await node.proxy.stop()

    def owner_of(self, session_id: str) -> str:
        """The name of the node that owns a session; empty if there is none."""
        return self.sql(
            "SELECT coalesce((SELECT name FROM nodes WHERE nodes.n = sessions.owner), '')"
            f" FROM sessions WHERE id = '{session_id}'"
        )

    async def until_owned(self, session_id: str, *names: str) -> None:
        """Wait until one of these nodes owns the session."""
        await eventually("the session to move", lambda: self.owner_of(session_id) in names, 40)


@contextlib.asynccontextmanager
async def running_nodes(
    postgres: Postgres, folder: Path, count: int, **settings: str
) -> AsyncIterator[NodeCluster]:
    """Run a cluster of that many nodes."""
    async with http_session() as http:
        cluster = NodeCluster(postgres, folder, http)
        cluster.settings = settings
        try:
            for number in range(1, count + 1):
                await cluster.add(f"node-{number}")
            await cluster.new_app()
            yield cluster
        finally:
            await cluster.stop()
