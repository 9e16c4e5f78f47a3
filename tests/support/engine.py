"""The database engine of the servers that tests start.

With ``CLAWDFORGE_TEST_ENGINE=postgresql`` each data folder has a database in a PostgreSQL server
that all tests of the process share. A server that is started again on the folder finds it again.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path
from typing import Any

from .postgres import Postgres, running_postgres

IS_SHARED = os.environ.get("CLAWDFORGE_TEST_ENGINE", "sqlite") == "postgresql"
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
