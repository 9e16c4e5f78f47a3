"""The database that the settings name: a file, or one in PostgreSQL that nodes share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..config import Settings
from ..data_dir import DataDir, node_name
from ..errors import DatabaseError, StartError
from ..tasks import EXIT_MISCONFIGURED, Supervisor, Tasks
from .database import Database
from .drivers.base import FencedError, LostTailError
from .engine_clock import EngineClock
from .import_v02 import upgrade
from .lease import LATE_SHARE, Lease, LeaseState
from .shared_folder import (
    FolderReport,
    check_shared_folder,
    describe_shared_folder,
    node_file,
    node_numbers,
    remove_node_files,
)
from .shared_limits import SharedLimits
from .writer import DatabaseWriter

if TYPE_CHECKING:
    from .drivers.postgres import PostgresDriver


MEASURE_SECS = 5.0


class SharedEngine:
    """A database in PostgreSQL, in which this server is a node.

    Attributes:
        lease: of this node.
        name: of this node.
        secret: of the cluster; only users that may read its tables know it.
        limits: that hold for all nodes together.
        clock: of the engine.
    """

    def __init__(
        self, driver: PostgresDriver, lease: Lease, name: str, secret: bytes, clock: EngineClock
    ) -> None:
        self.driver = driver
        self.lease = lease
        self.clock = clock
        self.secret = secret
        self.tasks = Tasks()
        self.limits = SharedLimits(driver, lease.number, self.tasks)
        self.name = name
        self._round_trip_ms: float | None = None
        self._sync = "on"
        self._standbys = self._sync_standbys = 0

    @property
    def round_trip_secs(self) -> float:
        """Seconds of the last measurement; 0 before the first."""
        return (self._round_trip_ms or 0.0) / 1000

    @property
    def is_reachable(self) -> bool:
        """Whether the engine has answered lately."""
        return self.lease.age < LATE_SHARE * self.lease.secs

    def describe(self) -> dict[str, Any]:
        """The state of the engine, as the last measurement found it."""
        return {
            "kind": "postgresql",
            "reachable": self.is_reachable,
            "round_trip_ms": self._round_trip_ms,
            "synchronous_commit": self._sync,
            "standbys": self._standbys,
            "synchronous_standbys": self._sync_standbys,
        }

    async def measure(self) -> None:
        """Measure the engine again and again, until the task is cancelled."""
        while True:
            began = time.monotonic()
            with contextlib.suppress(DatabaseError):
                # A user without the role pg_monitor sees the standbys, but not what they do.
                [(self._sync, standbys, sync)] = await self.driver.change(
                    "SELECT current_setting('synchronous_commit'), count(*),"
                    " count(*) FILTER (WHERE sync_state IN ('sync', 'quorum'))"
                    " FROM pg_stat_replication",
                    repeats=True,
                )
                self._standbys, self._sync_standbys = int(standbys), int(sync)
                self._round_trip_ms = round((time.monotonic() - began) * 1000, 2)
            await asyncio.sleep(MEASURE_SECS)

    def attach(self, writer: DatabaseWriter, supervisor: Supervisor) -> None:
        """Let the writer refuse commits while the lease may end, and the server end with it."""

        def follow(state: LeaseState) -> None:
            writer.is_suspended = state is LeaseState.FROZEN
            if state is LeaseState.LOST and self.lease.is_replaced:
                supervisor.fail(
                    f"another server has started as node {self.name}; each node needs a name of its"
                    " own (CLAWDFORGE_NODE_NAME)",
                    EXIT_MISCONFIGURED,
                )
            elif state is LeaseState.LOST:
                supervisor.fail("another node has taken over this node's sessions")

        self.limits.add = writer.add
        writer.on_fenced = lambda error: self._find_out(error, supervisor)
        self.lease.followers.append(follow)

    async def _find_out(self, error: FencedError, supervisor: Supervisor) -> None:
        """Stop the server, whose commits are refused. The next beat says why."""
        if not isinstance(error, LostTailError):
            await self.lease.beat()
        supervisor.fail(str(error))


async def open_database(
    settings: Settings, path: Path, stack: contextlib.AsyncExitStack
) -> Database:
    """Open the database of the settings; *stack* closes it.

    Args:
        path: of the SQLite database, unless the settings name another.

    Raises:
        SchemaError, DatabaseError, OSError: it cannot be opened.
        StartError: the database of the cluster cannot be used.
    """
    if settings.cluster_url is None:
        await upgrade(path)
        database = await Database.open(path, sync=settings.sync)
    else:
        try:
            database = await Database.connect(settings.cluster_url, name=node_name(settings))
        except DatabaseError as error:
            raise StartError(f"CLAWDFORGE_CLUSTER_URL: {error}") from None
    stack.push_async_callback(database.close)
    return database


def storage_error(settings: Settings, folder: Path, error: OSError | DatabaseError) -> StartError:
    """The error of a server that cannot start, with the setting that names what has failed."""
    if settings.cluster_url is not None and isinstance(error, DatabaseError):
        return StartError(f"CLAWDFORGE_CLUSTER_URL: {error}")
    return StartError(f"CLAWDFORGE_DATA_DIR: {folder}: {error}")


async def describe_engine(settings: Settings) -> str:
    """One line about the database in PostgreSQL, for the operator.

    Raises:
        SchemaError, StartError, DatabaseError: it cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await open_database(settings, settings.data_dir, stack)
        [(version, sync, fsync)] = await database.fetch(
            "SELECT current_setting('server_version'), current_setting('synchronous_commit'),"
            " current_setting('fsync')"
        )
        rows = await database.fetch(
            "SELECT name, state, version,"
            " CAST(extract(epoch FROM clock_timestamp() - beat_at) AS DOUBLE PRECISION)"
            " FROM nodes WHERE state <> 'gone' ORDER BY name"
        )
    nodes = ", ".join(_describe_node(row, settings.lease_secs) for row in rows)
    return (
        f"PostgreSQL {version}, synchronous_commit={sync}, fsync={fsync};"
        f" nodes: {nodes or 'none'}; agents on several nodes need a key that does not change"
    )


async def examine_shared_folder(settings: Settings) -> FolderReport:
    """The state of the shared folder, for the operator.

    Raises:
        SchemaError, StartError, DatabaseError: the database cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await open_database(settings, settings.data_dir, stack)
        return await describe_shared_folder(database, DataDir.of(settings).path)


def _describe_node(row: tuple[Any, ...], lease_secs: float) -> str:
    """The name of a node with its version, and what is unusual about it."""
    name, state, version, age = row
    details = [version]
    if state != "up":
        details.append(state)
    if age > LATE_SHARE * lease_secs:
        details.append(f"no beat for {age:.0f} s")
    return f"{name} ({', '.join(details)})"


async def join_cluster(
    settings: Settings,
    database: Database,
    supervisor: Supervisor,
    stack: contextlib.AsyncExitStack,
    clock: Callable[[], float] = time.monotonic,
) -> SharedEngine | None:
    """Register this server as a node, and renew its lease; *stack* removes it.

    Args:
        clock: the monotonic clock of the lease.

    Returns:
        None if the database is not shared.

    Raises:
        DatabaseError: the database is out of reach.
        StartError: the shared folder is not that of the other nodes.
    """
    if database.engine == "sqlite":
        return None
    from .drivers.postgres import PostgresDriver  # asyncpg is needed for a cluster only
    from .nodes import NodeTable

    driver = database.driver
    assert isinstance(driver, PostgresDriver)
    # Open the connections at once, and not one after the other.
    pulse = driver.pulse("SELECT 1", (), timeout=LATE_SHARE * settings.lease_secs)
    await asyncio.gather(driver.fetch("SELECT 1", ()), driver.change("SELECT 1"), pulse)
    table = NodeTable(driver)
    name, folder = node_name(settings), DataDir.of(settings).path
    await check_shared_folder(database, folder, name, settings.lease_secs)
    known = await asyncio.to_thread(node_numbers, folder)
    number = await table.register(name, __version__)
    lease = Lease(table, number, settings.lease_secs, clock)
    engine_clock = EngineClock(clock)
    lease.on_engine_time = engine_clock.note
    await lease.beat()
    await stack.enter_async_context(node_file(folder, number, name))
    ended = known - {node.number for node in lease.nodes}
    await asyncio.to_thread(remove_node_files, folder, ended)

    async def leave() -> None:
        with contextlib.suppress(DatabaseError):
            await table.set_state(number, "gone")

    stack.push_async_callback(leave)
    engine = SharedEngine(driver, lease, name, await table.secret(), engine_clock)
    supervisor.spawn(engine.tasks, "lease", lease.run)
    supervisor.spawn(engine.tasks, "lease-watch", lease.watch)
    supervisor.spawn(engine.tasks, "engine", engine.measure)
    stack.push_async_callback(engine.tasks.finish, timeout=0)
    return engine
