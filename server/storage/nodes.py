"""The table of the nodes: the servers that share a database in PostgreSQL.

A node's number is its incarnation. It begins at the unix time in microseconds, so that no number is
used twice, not even in a database that was restored from a backup.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

from ..errors import DatabaseError
from . import statements
from .drivers.postgres import PostgresDriver

KEPT_MARKS = 100
"""A node looks only for the mark of its last commit."""
KEPT_NODE_SECS = 7 * 86400
"""Nodes that have ended stay in the table for this time, for the operator."""
REGISTER_ATTEMPTS = 20
SECRET_KEY = "cluster_secret"  # noqa: S105
"""The key of the secret of the cluster among the stored values of the server."""


class NodeRow(NamedTuple):
    """A node that is not gone.

    Attributes:
        state: ``up`` or ``draining``.
        age: seconds since its last beat, by the engine's clock.
        slots, live: the limit and the number of its agents.
    """

    number: int
    name: str
    state: str
    age: float
    slots: int = 0
    live: int = 0


class Beat(NamedTuple):
    """The answer of the engine to a beat.

    Attributes:
        has_lease: whether the node still has its lease.
        nodes: the nodes that are not gone.
        engine_secs: unix seconds by the engine's clock; None if there is no node any more.
    """

    has_lease: bool
    nodes: list[NodeRow]
    engine_secs: float | None


class NodeTable:
    """The rows of ``nodes``. Every method raises :class:`DatabaseError`."""

    def __init__(self, driver: PostgresDriver) -> None:
        self._driver = driver

    async def register(self, name: str, version: str) -> int:
        """Add a node, and set an earlier one of the same name to ``gone``.

        The caller has locked the data folder, so the earlier one has ended, or it is on another
        machine by mistake. In both cases it can write nothing more.

        Returns:
            The node's number. The driver's writes are fenced by it from now on.
        """
        for attempt in range(REGISTER_ATTEMPTS):
            await self._driver.change(
                "UPDATE nodes SET state = 'gone' WHERE name = ? AND state <> 'gone'",
                (name,),
                repeats=True,
            )
            try:
                [(number,)] = await self._driver.change(
                    "INSERT INTO nodes (n, name, version, state) SELECT greatest("
                    " CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT),"
                    " (SELECT coalesce(max(n), 0) + 1 FROM nodes),"
                    " (SELECT coalesce(max(n), 0) + 1 FROM marks)), ?, ?, 'up' RETURNING n",
                    (name, version),
                )
            except DatabaseError as error:
                # Another server has registered the same name or the same number at this moment, or
                # the answer was lost: then the next attempt sets that row to gone.
                if attempt == REGISTER_ATTEMPTS - 1:
                    raise error from None
                continue
            self._driver.become(int(number))
            return int(number)
        raise AssertionError("unreachable")

    async def beat(self, number: int, *, slots: int, live: int, timeout: float) -> Beat:
        """Renew a node's lease.

        Args:
            slots, live: the limit and the number of its agents, by which sessions are placed.
            timeout: seconds after which the connection is replaced.
        """
        rows = await self._driver.pulse(
            "WITH me AS (UPDATE nodes SET beat_at = clock_timestamp(), slots = ?2, live = ?3"
            " WHERE n = ?1 AND state <> 'gone' RETURNING n)"
            " SELECT nodes.n, name, state,"
            " CAST(extract(epoch FROM clock_timestamp() - beat_at) AS DOUBLE PRECISION),"
            " slots, live, (SELECT n FROM me),"
            " CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"
            " FROM nodes WHERE state <> 'gone' ORDER BY nodes.n",
            (number, slots, live),
            timeout=timeout,
        )
        has_lease = any(row[6] is not None for row in rows)
        return Beat(has_lease, [NodeRow(*row[:6]) for row in rows], rows[0][7] if rows else None)

    async def secret(self) -> bytes:
        """The secret of the cluster, which its first node creates."""
        query = "SELECT value FROM server WHERE name = ?", (SECRET_KEY,)
        if not (rows := await self._driver.change(*query, repeats=True)):
            created = statements.add_server_value(SECRET_KEY, secrets.token_bytes(32))
            await self._driver.change(*created, repeats=True)
            rows = await self._driver.change(*query, repeats=True)
        return bytes(rows[0][0])

    async def take(self, number: int, lease_secs: float) -> bool:
        """Set another node to ``gone`` if its lease has ended. It waits for a commit of that node.

        Returns:
            Whether this call did it.
        """
        rows = await self._driver.change(
            "UPDATE nodes SET state = 'gone' WHERE n = ? AND state <> 'gone'"
            " AND clock_timestamp() - beat_at >= make_interval(secs => ?) RETURNING n",
            (number, lease_secs),
        )
        return bool(rows)

    async def set_state(self, number: int, state: str) -> None:
        """Set the state of a node that has not ended."""
        await self._driver.change(
            "UPDATE nodes SET state = ? WHERE n = ? AND state <> 'gone'",
            (state, number),
            repeats=True,
        )

    async def check_tail(self) -> None:
        """Check after a failover that the engine has what this node has committed last.

        Raises:
            LostTailError: it does not.
        """
        await self._driver.check_tail()

    async def sweep(self, number: int) -> None:
        """Delete the marks, the messages and the nodes that nobody needs any more."""
        await self._driver.change(
            "DELETE FROM marks WHERE (n = ?1 AND k < ?2) OR n IN (SELECT n FROM nodes"
            " WHERE state = 'gone' AND beat_at < clock_timestamp() - interval '1 hour')",
            (number, self._driver.last_mark - KEPT_MARKS),
            repeats=True,
        )
        await self._driver.change(
            "DELETE FROM commands WHERE at < clock_timestamp() - interval '1 minute'"
            " AND target NOT IN (SELECT n FROM nodes WHERE state <> 'gone')",
            repeats=True,
        )
        await self._driver.change(
            "DELETE FROM nodes WHERE state = 'gone'"
            " AND beat_at < clock_timestamp() - make_interval(secs => ?)",
            (float(KEPT_NODE_SECS),),
            repeats=True,
        )
