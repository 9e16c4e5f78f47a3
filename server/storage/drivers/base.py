"""The interface between the storage and a database engine.

The SQL of the storage is the subset that every engine understands: parameters are ``?`` or ``?1``,
and a few expressions exist once for each :data:`Engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from ...errors import DatabaseError

Statement = tuple[str, Sequence[Any]]
"""An SQL statement and its parameters."""

Engine = Literal["sqlite", "postgresql"]

OF_ENDED_SERVERS: Mapping[Engine, str] = {
    "sqlite": "1 = 1",
    "postgresql": "(node IS NULL OR NOT EXISTS"
    " (SELECT 1 FROM nodes WHERE nodes.n = node AND nodes.state <> 'gone'))",
}
"""The condition for unfinished runs and prewarmed agents of servers that have ended."""


class SchemaError(Exception):
    """The database has a schema that this program cannot use."""


class FencedError(DatabaseError):
    """Another node has taken over the sessions of this one: it must not write any more."""

    def __init__(self) -> None:
        super().__init__("another node has taken over this node's sessions", is_transient=False)


class LostTailError(FencedError):
    """The database has lost what this node has committed: it must not write any more."""

    def __init__(self) -> None:
        DatabaseError.__init__(
            self,
            "a failover of the database has lost the last commits of this node",
            is_transient=False,
        )


class Driver(Protocol):
    """An open database.

    Every method but :meth:`close` raises :class:`DatabaseError`.
    """

    @property
    def engine(self) -> Engine: ...

    async def write(self, transaction: Sequence[Statement]) -> None:
        """Execute statements in one transaction: all, or none if it raises."""

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of a query."""

    async def interrupt(self) -> None:
        """Stop the query that is being executed."""

    def abandon(self) -> None:
        """Give up the transaction in progress if it may take long, without cancelling it."""

    async def checkpoint(self) -> None:
        """Do what the engine leaves to quiet moments."""

    async def close(self) -> None: ...
