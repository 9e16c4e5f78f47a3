"""A database in a temporary folder, and one in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.storage.database import Database

from ..support.postgres import Postgres, running_postgres


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clawdforge.db"


@pytest.fixture(scope="package")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of the package."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def source(path: Path, request: pytest.FixtureRequest) -> Path | str:
    """An empty database in each engine: the path of the file, or a URL."""
    if request.param == "sqlite":
        return path
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def database(source: Path | str) -> AsyncIterator[Database]:
    """An open, empty database in each engine."""
    opened = await (
        Database.open(source) if isinstance(source, Path) else Database.connect(source, name="test")
    )
    yield opened
    await opened.close()


@pytest.fixture
async def database_file(path: Path) -> AsyncIterator[Database]:
    """An open, empty SQLite database."""
    opened = await Database.open(path)
    yield opened
    await opened.close()
