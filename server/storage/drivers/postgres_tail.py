"""The check that a failover has not lost what this node has committed.

A failover to an asynchronous standby loses the last commits. PostgreSQL counts failovers as
timelines, and all connections end in one, so each new connection is asked for its timeline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from weakref import WeakSet

import asyncpg

from .base import LostTailError

logger = logging.getLogger(__name__)

_TIMELINE = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"


async def is_marked(connection: asyncpg.Connection, node: int, number: int) -> bool:
    """Whether a commit of a node was carried out."""
    sql = "SELECT 1 FROM marks WHERE n = $1 AND k = $2"
    return bool(await connection.fetch(sql, node, number))


class EngineTail:
    """The last commits of a node, which a failover may lose.

    Attributes:
        failovers: of the engine since the start of this node.
        acknowledged: the number of the last commit that is known to be carried out; 0 for none.
        on_lost: called if the engine has lost it.
    """

    def __init__(self) -> None:
        self.failovers = self.acknowledged = 0
        self.on_lost: Callable[[], None] = lambda: None
        self._checked = 0
        self._timeline = ""
        self._known: WeakSet[asyncpg.Connection] = WeakSet()

    @property
    def is_doubtful(self) -> bool:
        """Whether there was a failover after the last check."""
        return self.failovers != self._checked

    async def note(self, connection: asyncpg.Connection) -> None:
        """Note the timeline of a connection, once."""
        if connection in self._known:
            return
        timeline = await connection.fetchval(_TIMELINE)
        self._known.add(connection)
        if self._timeline and timeline != self._timeline:
            logger.warning("the database has failed over to another server")
            self.failovers += 1
        self._timeline = timeline

    async def check(self, connection: asyncpg.Connection, node: int | None) -> None:
        """Check after a failover that the engine has the last acknowledged commit of this node.

        Otherwise nothing more must be written: the next entries would leave a gap in a log.

        Raises:
            LostTailError: it does not.
        """
        await self.note(connection)
        failovers = self.failovers
        if failovers == self._checked:
            return
        if node and self.acknowledged and not await is_marked(connection, node, self.acknowledged):
            self.on_lost()
            raise LostTailError
        self._checked = failovers
