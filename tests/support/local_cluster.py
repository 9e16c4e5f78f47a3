"""``make cluster``: PostgreSQL, three nodes and a proxy on this machine, to try a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
from pathlib import Path

import aiohttp

from .guardian import Guardian, guarded
from .postgres import Postgres, running_postgres
from .processes import ROOT

NODES = ("node-1", "node-2", "node-3")
PORT = int(os.environ.get("CLUSTER_PORT", "8800"))
say = print
OWNERS = (
    "SELECT sessions.id || ' ' || coalesce(nodes.name, 'no node')"
    " FROM sessions LEFT JOIN nodes ON nodes.n = sessions.owner ORDER BY sessions.n"
)


class StartFailed(Exception):  # noqa: N818 - a name for one line of this program
    """A node has ended before it was ready."""


class LocalNode:
    """One node's process.

    Attributes:
        port: at which it listens on 127.0.0.1.
        link: the page with the token of the first app, if this node has created it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.link = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, url: str, folder: Path, guardian: Guardian) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
        environ |= {
            "CLAWDFORGE_CLUSTER_URL": url,
            "CLAWDFORGE_SHARED_DIR": str(folder / "shared"),
            "CLAWDFORGE_DATA_DIR": str(folder / self.name),
            "CLAWDFORGE_NODE_NAME": self.name,
            "CLAWDFORGE_PORT": "0",
        }
        environ |= {k: v for k, v in os.environ.items() if k.startswith("CLAWDFORGE_LEASE")}
        with (folder / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server"),
                cwd=ROOT,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        guardian.add_process(self.pid)
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            if "is ready on" in line:
                self.port = int(line.rpartition(":")[2].strip().rstrip("/"))
            elif "#token=" in line:
                self.link = line.rpartition("#")[2].strip()
            if self.port and (self.link or self.name != NODES[0]):
                return
        if not self.port:
            text = (folder / f"{self.name}.log").read_text("utf-8", "replace")
            raise StartFailed(f"{self.name} did not start:\n{text[-2000:]}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def describe(self, *, is_ready: bool) -> str:
        """The state of the node, for the person who tries the cluster."""
        if self._process is not None and self._process.returncode is not None:
            return f"has ended ({self._process.returncode}); after its lease others take over"
        return "is ready" if is_ready else "is not ready"

    async def is_ready(self, http: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with http.get(f"http://127.0.0.1:{self.port}/readyz") as response:
                return response.status == 200
        return False

    async def stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        await self._process.wait()


class Balancer:
    """A proxy that gives each connection to the next node that is ready."""

    def __init__(self, nodes: list[LocalNode]) -> None:
        self._nodes = nodes
        self._ready = list(nodes)
        self._turns = itertools.count()

    async def watch(self) -> None:
        """Ask the nodes whether they are ready, once a second; forever."""
        timeout = aiohttp.ClientTimeout(total=1)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                before = self._ready
                self._ready = [node for node in self._nodes if await node.is_ready(http)]
                for node in self._nodes:
                    if (node in before) != (node in self._ready):
                        say(f"{node.name} {node.describe(is_ready=node in self._ready)}")
                await asyncio.sleep(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nodes = self._ready
        for _ in nodes:
            node = nodes[next(self._turns) % len(nodes)]
            try:
                there = await asyncio.open_connection("127.0.0.1", node.port)
            except OSError:
                continue
            copying = {
                asyncio.create_task(_copy(reader, there[1])),
                asyncio.create_task(_copy(there[0], writer)),
            }
            await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
            for end in (writer, there[1]):
                end.close()
            for task in copying:
                task.cancel()
            return
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


async def _print_owners(postgres: Postgres, database: str) -> None:
    """Print which node runs which session, whenever it changes; forever."""
    known: dict[str, str] = {}
    while True:
        found = await asyncio.to_thread(postgres.sql, OWNERS, database)
        for line in found.splitlines():
            session_id, _, owner = line.partition(" ")
            if known.get(session_id) != owner:
                say(f"session {session_id}: {owner}")
                known[session_id] = owner
        await asyncio.sleep(1)


async def main() -> None:
    """Run the cluster until Ctrl-C or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        guardian = stack.enter_context(guarded())
        temporary = tempfile.TemporaryDirectory(prefix="clawdforge-cluster-")
        folder = Path(stack.enter_context(temporary))
        guardian.add_folder(folder)
        postgres = stack.enter_context(running_postgres())
        assert postgres.process is not None
        guardian.add_process(postgres.process.pid)
        guardian.add_folder(postgres.folder.parent)
        url = postgres.new_database()
        database = url.rpartition("/")[2]
        nodes = [LocalNode(name) for name in NODES]
        for node in nodes:
            starting = asyncio.create_task(node.start(url, folder, guardian))
            stack.push_async_callback(node.stop)
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if stop.is_set():  # Ctrl-C before all have started
                starting.cancel()
                return
            try:
                await starting
            except StartFailed as error:
                raise SystemExit(str(error)) from None
        balancer = Balancer(nodes)
        server = await asyncio.start_server(balancer.serve, "127.0.0.1", PORT)
        stack.callback(server.close)
        port = server.sockets[0].getsockname()[1]
        say(f"PostgreSQL: {url} (in {postgres.folder})")
        for node in nodes:
            say(f"{node.name}: http://127.0.0.1:{node.port}/ (pid {node.pid})")
        say(f"\n  open  http://127.0.0.1:{port}/#{nodes[0].link}\n")
        say("Try `kill -9` of a node's pid, or `kill` to drain it. Ctrl-C ends everything.")
        for loop in (balancer.watch(), _print_owners(postgres, database)):
            task = asyncio.create_task(loop)
            stack.callback(task.cancel)
        await stop.wait()


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    asyncio.run(main())
