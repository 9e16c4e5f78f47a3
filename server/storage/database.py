"""The database, in the engine that a driver serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..errors import DatabaseError
from . import schema, statements
from .drivers.base import Driver, Engine
from .drivers.sqlite import WAL_PAGES, SqliteDriver
from .postgres_schema import POSTGRES_MIGRATIONS
from .schema import Statement

if TYPE_CHECKING:
    from .drivers.postgres import PostgresDriver


async def connect_postgres(url: str, name: str) -> PostgresDriver:
    """Connect to PostgreSQL. See :meth:`Database.connect`."""
    try:
        from .drivers.postgres import PostgresDriver  # asyncpg is needed for a cluster only
    except ModuleNotFoundError as error:
        message = f"{error}: install requirements-cluster.txt"
        raise DatabaseError(message, is_transient=False) from None
    return await PostgresDriver.open(url, name=name, migrations=POSTGRES_MIGRATIONS)


class Database:
    """The open database.

    Attributes:
        engine: decides between the few expressions that are not the same in every engine.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.engine: Engine = driver.engine

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        sync: str = "normal",
        wal_pages: int = WAL_PAGES,
        migrations: Sequence[str] = schema.MIGRATIONS,
    ) -> Self:
        """Open or create the SQLite database at *path* and bring its schema up to date.

        Args:
            sync: SQLite's ``synchronous``, ``normal`` or ``full``.
            wal_pages: the size of the WAL above which a commit checkpoints it.
            migrations: the scripts that make the schema, one for each version.

        Raises:
            SchemaError: a newer version of clawdforge created it.
            DatabaseError: it cannot be opened.
            OSError: a file cannot be created, or is a link.
        """
        return cls(
            await SqliteDriver.open(path, sync=sync, wal_pages=wal_pages, migrations=migrations)
        )

    @classmethod
    async def open_readonly(cls, path: Path) -> Self:
        """Open the SQLite database at *path* for reading, also while a server writes it.

        Raises:
            SchemaError: another version of clawdforge created it.
            DatabaseError: it cannot be opened.
            OSError: it is a link.
        """
        return cls(await SqliteDriver.open_readonly(path, len(schema.MIGRATIONS)))

    @classmethod
    async def connect(cls, url: str, *, name: str) -> Self:
        """Connect to the PostgreSQL database at *url* and bring its schema up to date.

        Args:
            name: of the connections, which PostgreSQL shows to its operator.

        Raises:
            SchemaError: a newer, incompatible version of clawdforge created it.
            DatabaseError: it cannot be reached, or asyncpg is missing.
        """
        return cls(await connect_postgres(url, name))

    @property
    def driver(self) -> Driver:
        return self._driver

    async def close(self) -> None:
        await self._driver.close()

    async def checkpoint(self) -> None:
        """Do what the engine leaves to quiet moments.

        Raises:
            DatabaseError: it was not done; nothing is lost.
        """
        await self._driver.checkpoint()
        if self.engine == "sqlite":
            # The next commit restarts the WAL and waits for the disk. A prompt's commit should not.
            await self.write([statements.set_server_value("wal", b"")])

    async def write(self, transaction: Sequence[Statement]) -> None:
        """Execute statements in one transaction.

        Raises:
            DatabaseError: none was executed.
        """
        if transaction:
            await self._driver.write(transaction)

    def abandon(self) -> None:
        """Give up the commit in progress, whose outcome then stays unknown."""
        self._driver.abandon()

    async def interrupt(self) -> None:
        """Stop the query that is being executed."""
        await self._driver.interrupt()

    async def fetch(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query.

        Raises:
            DatabaseError: the database cannot be read.
        """
        return await self._driver.fetch(sql, parameters)
