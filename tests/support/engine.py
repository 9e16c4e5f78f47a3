"""The database engine of the servers that tests start.

With ``CLAWDFORGE_TEST_ENGINE=postgresql`` each data folder has a database in a PostgreSQL server
that all tests of the process share. A server that is started again on the folder finds it again.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.storage.drivers.translation import from_engine, numbered, to_engine

from .postgres import Postgres, running_postgres

IS_SHARED = os.environ.get("CLAWDFORGE_TEST_ENGINE", "sqlite") == "postgresql"
only_sqlite = pytest.mark.skipif(IS_SHARED, reason="about the file, or a server without others")
_stack = contextlib.ExitStack()
_urls: dict[Path, str] = {}
_server: list[Postgres] = []


def url_of(data_dir: Path) -> str:
    """The URL of the database of a data folder."""
    if not _server:
        _server.append(_stack.enter_context(running_postgres(max_connections="400")))
        atexit.register(_stack.close)
    if data_dir not in _urls:
        _urls[data_dir] = _server[0].new_database()
    return _urls[data_dir]


def engine_settings(data_dir: Path) -> dict[str, Any]:
    """The settings of the engine, as fields of :class:`Settings`."""
    if not IS_SHARED:
        return {}
    return {"cluster_url": url_of(data_dir), "shared_dir": data_dir, "node_name": "test"}


def engine_variables(data_dir: Path) -> dict[str, str]:
    """The same as the values of variables, by their names without the prefix."""
    return {name.upper(): str(value) for name, value in engine_settings(data_dir).items()}


def stored_rows(data_dir: Path, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The result of a statement on the database of a data folder, on a connection of its own."""
    if not IS_SHARED:
        with contextlib.closing(sqlite3.connect(data_dir / "clawdforge.db")) as connection:
            found = connection.execute(sql, parameters).fetchall()
            connection.commit()
            return found
    with ThreadPoolExecutor(1) as pool:  # this thread may run an event loop
        return pool.submit(asyncio.run, _ask_postgres(url_of(data_dir), sql, parameters)).result()


async def _ask_postgres(url: str, sql: str, parameters: Any) -> list[tuple[Any, ...]]:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(numbered(sql)[0], *to_engine(parameters))
        return [from_engine(row) for row in rows]
    finally:
        await connection.close()
