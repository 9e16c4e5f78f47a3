"""Several servers on one database in PostgreSQL, beside a single server on SQLite.

PostgreSQL is Debian's, in a folder in memory, with ``fsync``. Without it this part is left out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import appends
from measure import Samples, descendants, processor_ms, server_processes
from report import Report
from targets import AGENT, BenchError, Clawdforge, Server
from turns import BURST, PAUSE_SECS

from tests.support.postgres import Postgres, programs, running_postgres

LEASE_SECS = 10
"""The default."""
BEATS_SECS = 2
"""After two beats every node knows a node that has started."""
SLOTS = 100
AGENT_MB = 40
"""The memory of one of the bench's agents, with reserve; fewer are started if there is less."""
FOLLOWED = 5
"""The sessions with a running turn on the node that is killed."""
ON_SQLITE, OWNER = "clawdforge, on SQLite", "clawdforge, on PostgreSQL"
ELSEWHERE = "clawdforge, on another node"
THREE_NODES = "clawdforge, three nodes on PostgreSQL"


class Setup(NamedTuple):
    """The things that a measurement uses.

    Attributes:
        stack: ends the servers and clients of the measurement.
        folder: an empty folder of the measurement's own.
        environ: the environment of servers.
    """

    stack: contextlib.ExitStack
    postgres: Postgres
    folder: Path
    environ: Mapping[str, str]


class Nodes:
    """The nodes of one cluster, which have a common app.

    Args:
        settings: of all nodes.
    """

    def __init__(self, setup: Setup, **settings: str) -> None:
        self._setup = setup
        self._folder = setup.folder / "nodes"
        self._folder.mkdir()
        self._settings = {
            "CLUSTER_URL": setup.postgres.new_database(),
            "SHARED_DIR": str(self._folder / "shared"),
            "LEASE_SECS": str(LEASE_SECS),
            **settings,
        }
        self._first: Server | None = None

    def start(self, name: str) -> Server:
        """Start a node, for the first time or after its end."""
        environ = self._setup.environ
        node = Server(self._folder / name, environ, AGENT, NODE_NAME=name, **self._settings)
        self._setup.stack.callback(node.close)
        self._first = self._first or node
        node.use_app_of(self._first)
        return node


def measure_cluster(
    folder: Path, environ: Mapping[str, str], report: Report, *, quick: bool
) -> None:
    """Measure everything; each measurement has nodes of its own."""
    if programs() is None:
        print("The cluster was not measured: PostgreSQL is missing (apt-get install postgresql).\n")
        return
    with running_postgres() as postgres:
        for measure_part in (_measure_turns, _measure_take_over, _measure_placement):
            with contextlib.ExitStack() as stack:
                own_folder = folder / measure_part.__name__.strip("_")
                own_folder.mkdir()
                measure_part(Setup(stack, postgres, own_folder, environ), report, quick=quick)
        _measure_appends(postgres, folder, report, quick=quick)


def _measure_turns(setup: Setup, report: Report, *, quick: bool) -> None:
    """Idle nodes, first updates and bursts: on SQLite, on the session's owner, and elsewhere."""
    single = Server(setup.folder / "single", setup.environ, AGENT)
    setup.stack.callback(single.close)
    nodes = Nodes(setup)
    one, two = nodes.start("node-1"), nodes.start("node-2")
    _measure_idle_nodes(single, (one, two), setup.postgres, report, quick=quick)
    targets = {
        ON_SQLITE: Clawdforge(single),
        OWNER: Clawdforge(one),
        ELSEWHERE: Clawdforge(two, one.create()),
    }
    for target in targets.values():
        setup.stack.callback(target.close)
        for _ in range(3):
            target.turn("hi", 1)
        target.turn(f"burst {BURST}", BURST)
    _measure_first_updates(targets, report, quick=quick)
    _measure_bursts(targets, report, quick=quick)


def _measure_idle_nodes(
    single: Server, nodes: Sequence[Server], postgres: Postgres, report: Report, *, quick: bool
) -> None:
    """The processor time of servers without sessions and clients."""
    assert postgres.process is not None
    watched = {
        "clawdforge, a node": [pid for node in nodes for pid in server_processes(node.pid)],
        "PostgreSQL, for a node": [postgres.process.pid, *descendants(postgres.process.pid)],
        ON_SQLITE: server_processes(single.pid),
    }
    samples = {name: Samples() for name in watched}
    time.sleep(2)  # the work after the start
    for _ in range(3 if quick else 8):
        before = {name: processor_ms(pids) for name, pids in watched.items()}
        began = time.perf_counter()
        time.sleep(2)
        secs = time.perf_counter() - began
        for name, pids in watched.items():
            servers = 1 if name == ON_SQLITE else len(nodes)
            samples[name].add((processor_ms(pids) - before[name]) / secs / servers)
    report.compare("Processor time of an idle server, per second", "ms", samples, digits=1)
    node, engine = (samples[name].median for name in list(watched)[:2])
    report.at_most("processor time of an idle node, per second", node, 3, "ms")
    print(f"with its part of PostgreSQL: {node + engine:.1f} ms\n")


def _measure_first_updates(
    targets: Mapping[str, Clawdforge], report: Report, *, quick: bool
) -> None:
    paused = {name: Samples() for name in targets}
    at_once = {name: Samples() for name in targets}
    for _ in range(8 if quick else 40):
        for name, target in targets.items():
            time.sleep(PAUSE_SECS)
            paused[name].add(target.turn("hi", 1).first * 1000)
            for _ in range(5):
                at_once[name].add(target.turn("hi", 1).first * 1000)
    for title, samples in (("after a pause", paused), ("right after a turn", at_once)):
        report.compare(f"First update in a cluster, {title}", "ms", samples, digits=2)
        base, owner, other = (samples[name].median for name in targets)
        what = f"first update, {title}"
        report.at_most(f"{what}, on PostgreSQL, minus that on SQLite", owner - base, 0.6, "ms")
        report.at_most(f"{what}, on another node, minus the owner's", other - owner, 1.2, "ms")


def _measure_bursts(targets: Mapping[str, Clawdforge], report: Report, *, quick: bool) -> None:
    rates = {name: Samples() for name in targets}
    for _ in range(4 if quick else 11):
        for name, target in targets.items():
            time.sleep(PAUSE_SECS)
            rates[name].add(BURST / target.turn(f"burst {BURST}", BURST).total)
    report.compare(f"A burst of {BURST:,} in a cluster, all delivered", "updates/s", rates)
    report.at_least("a burst on PostgreSQL", rates[OWNER].median, 150_000, "updates/s")


def _measure_appends(postgres: Postgres, folder: Path, report: Report, *, quick: bool) -> None:
    secs = 3 if quick else 15
    found = {
        "clawdforge, three nodes on PostgreSQL": appends.on_postgres(
            postgres.new_database(), secs=secs
        ),
        ON_SQLITE: appends.on_sqlite(folder / "appends.db", secs=secs),
    }
    report.compare(
        f"An append, {appends.SESSIONS:,} sessions with {appends.RATE:,} updates/s",
        "ms",
        found,
        digits=2,
    )
    report.at_most("an append on three nodes, p99", found[THREE_NODES].p99, 2, "ms")


def _measure_take_over(setup: Setup, report: Report, *, quick: bool) -> None:
    """From ``kill -9`` of a node until clients on another one have the end of its turns."""
    nodes = Nodes(setup)
    one, two, _ = (nodes.start(f"node-{number}") for number in range(1, 4))
    threads = setup.stack.enter_context(ThreadPoolExecutor(FOLLOWED))
    taken, restarted = Samples(), Samples()
    for number in range(2 if quick else 6):
        samples = restarted if number % 2 else taken
        followers = [Clawdforge(two, one.create()) for _ in range(FOLLOWED)]
        with contextlib.ExitStack() as sockets:
            for follower in followers:
                sockets.callback(follower.close)
                follower.turn("hi", 1)
                follower.send_prompt("tick 100000")
                follower.read_until(b'"session/update"')
            began = time.perf_counter()
            one.kill()
            ends = [threads.submit(_end_of_turn, follower) for follower in followers]
            if samples is restarted:
                one = nodes.start("node-1")
            samples.add(max(end.result() for end in ends) - began)
            if samples is taken:
                one = nodes.start("node-1")
            time.sleep(BEATS_SECS)
            for follower in followers:
                follower.turn("hi", 1)
    report.compare(
        f"Take-over of a killed node's {FOLLOWED} running turns (lease of {LEASE_SECS} s)",
        "s",
        {"clawdforge, by another node": taken, "clawdforge, by the node itself": restarted},
        digits=2,
    )
    after = taken.median - LEASE_SECS
    report.at_most("take-over by another node, after the end of the lease", after, 1, "s")
    report.at_most("take-over by the node itself, after its kill", restarted.median, 1, "s")


def _end_of_turn(follower: Clawdforge) -> float:
    """The time at which the end of a lost turn arrives."""
    if b'"server_restarted"' not in follower.read_until(b'"turn_end"'):
        raise BenchError("a turn of a killed node ended in another way")
    return time.perf_counter()


def _measure_placement(setup: Setup, report: Report, *, quick: bool) -> None:
    """Three full nodes: where their agents are, and the first update beside them."""
    each = min(20 if quick else SLOTS, _free_mb() // AGENT_MB // 3)
    nodes = Nodes(setup, MAX_LIVE_AGENTS=str(each), MAX_SESSIONS_PER_APP="1000")
    one = nodes.start("node-1")
    mine = [Clawdforge(one) for _ in range(each)]
    few = _first_updates(mine)
    servers = [one, nodes.start("node-2"), nodes.start("node-3")]
    # All at one node, which is full and must find the free slots of the others.
    others = [Clawdforge(one) for _ in range(2 * each)]
    for client in (*mine, *others):
        setup.stack.callback(client.close)
    _first_updates(others)
    many = _first_updates(mine)
    live = [server.live_agents() for server in servers]
    print(f"live agents: {', '.join(map(str, live))}\n")
    count = 3 * each
    report.compare(
        "First update beside many agents",
        "ms",
        {
            f"clawdforge, {count} agents on three nodes": many,
            f"clawdforge, {each} agents on one node": few,
        },
        digits=2,
    )
    uneven = max(abs(found - each) for found in live) * 100 / each
    report.at_most(f"placement of {count} agents on three nodes, uneven by", uneven, 10, "%")
    share = 100 * many.median / few.median
    report.at_most(f"first update beside {count} agents, of that beside {each}", share, 110, "%")


def _first_updates(clients: Sequence[Clawdforge]) -> Samples:
    """Milliseconds to the first update of each client's next turn; its agent is running then."""
    for client in clients:
        client.turn("hi", 1)
    return Samples(client.turn("hi", 1).first * 1000 for client in clients for _ in range(3))


def _free_mb() -> int:
    """The memory that programs can still use."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise BenchError("/proc/meminfo has no MemAvailable")
