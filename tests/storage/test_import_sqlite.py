"""The copy of an SQLite database into PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.storage import statements
from server.storage.database import Database
from server.storage.import_sqlite import copy_into
from server.storage.queries import Queries
from server.storage.schema import SchemaError

from ..support.postgres import Postgres
from ..support.rows import insert_token, log_row, session_row, turn_row


async def test_copied_database_has_the_same_rows_and_continues(
    path: Path, database_file: Database, postgres: Postgres
) -> None:
    for n in (1, 2, 7):
        await database_file.write(
            [
                statements.insert_session(session_row(n)),
                statements.insert_turn(turn_row(n, 1, "id\0")),
                *statements.insert_log([log_row(1, 3, session=n), log_row(4, 4, session=n)]),
                statements.insert_audit_event(f"session-{n}", "app", "create", 1.0, "{}"),
            ]
        )
    await database_file.write([insert_token("a"), statements.set_server_value("admin", b"\0x")])
    before = Queries(database_file)
    database = await Database.connect(postgres.new_database(), name="test")
    assert await copy_into(path, database) > 14
    after = Queries(database)
    for n in (1, 2, 7):
        assert await after.session(f"session-{n}") == await before.session(f"session-{n}")
        assert await after.turn(n, 1) == await before.turn(n, 1)
        assert await after.read_log(n, 0, 1 << 20) == await before.read_log(n, 0, 1 << 20)
    assert await after.tokens() == await before.tokens()
    assert await after.server_value("admin") == b"\0x"
    await database.write([statements.insert_audit_event("session-9", "app", "create", 1.0, "{}")])
    assert await database.fetch("SELECT max(id) FROM session_events") == [(4,)]
    with pytest.raises(SchemaError, match="not empty"):
        await copy_into(path, database)
    await database.close()
