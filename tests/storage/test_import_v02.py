"""A database that 0.2 made: taken over, or refused and left as it was."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from server.storage.database import Database
from server.storage.import_v02 import statements_of, upgrade
from server.storage.schema import SchemaError

from ..conftest import Spawn
from ..support.harness import Client

TOKEN = "cf_of-the-old-days"
OLD = """
CREATE TABLE app_tokens (name TEXT PRIMARY KEY, token_hash TEXT NOT NULL, ip_cidrs TEXT,
    created_at TEXT, revoked_at TEXT);
INSERT INTO app_tokens VALUES ('petal', '{hash}', '["127.0.0.0/8"]', '2026-04-29T06:22:55Z', NULL);
INSERT INTO app_tokens VALUES ('gone', '{other}', NULL, '2026-04-29 06:22:55', '2026-05-01');
CREATE TABLE runs (id INTEGER PRIMARY KEY, app_name TEXT, ts REAL, model TEXT, prompt_chars INT,
    response_chars INT, duration_ms INT, stop_reason TEXT, error TEXT);
INSERT INTO runs VALUES (1, 'petal', 1777000000.5, 'sonnet', 120, 300, 4321, 'end_turn', NULL);
INSERT INTO runs VALUES (2, 'petal', 1777000001.5, NULL, 12, NULL, 10, NULL, 'exit 1');
CREATE TABLE sessions (session_id TEXT PRIMARY KEY, app_name TEXT, agent TEXT, cwd TEXT, meta TEXT,
    created_at REAL, last_turn_at REAL, turn_count INT, closed_at REAL);
INSERT INTO sessions VALUES ('11111111-2222-4333-8444-555555555555', 'petal', 'claude', '/x',
    '{{"channel": "42"}}', 1777000000, 1777000100, 3, NULL);
CREATE TABLE session_events (id INTEGER PRIMARY KEY, session_id TEXT, app_name TEXT, event TEXT,
    at REAL, detail TEXT);
INSERT INTO session_events VALUES (1, '11111111-2222-4333-8444-555555555555', 'petal', 'create',
    1777000000, 'plain words');
"""


PLAIN = OLD.replace("token_hash TEXT", "token TEXT").replace("{hash}", TOKEN)


def make(path: Path, text: str = OLD) -> Path:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(text.format(hash=digest, other="0" * 64))
    return path


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


async def test_server_imports_an_old_database(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    path = make(tmp_path / "data" / "clawdforge.db")
    server = await spawn()
    client = Client(server.url, TOKEN, http)
    _, listed = await client.get("/sessions?include_closed=true")
    [session] = listed["sessions"]
    assert session["session_id"] == "11111111-2222-4333-8444-555555555555"
    assert (session["state"], session["turn_count"]) == ("closed", 3)
    assert session["meta"] == {"channel": "42"}
    assert (await client.turn(session["session_id"], "hello"))[0] == 410
    assert (await client.turn(await client.create(), "hello"))[0] == 200
    await server.stop()

    assert rows(path, "SELECT name, ip_cidrs, created_at FROM tokens") == [
        ("petal", '["127.0.0.0/8"]', 1777443775.0)
    ]
    found = rows(path, "SELECT id, prompt_bytes, stop_reason, error FROM runs ORDER BY id")
    assert found == [
        ("v0.2-1", 120, "end_turn", None),
        ("v0.2-2", 12, "error", "agent_failed"),
    ]
    events = rows(path, "SELECT event, detail FROM session_events WHERE session_id LIKE '1111%'")
    assert ("create", '{"text": "plain words"}') in events
    # The old file is kept, and the new one is not imported again.
    old = tmp_path / "data" / "clawdforge.db.v0.2"
    assert rows(old, "SELECT count(*) FROM app_tokens") == [(2,)]
    assert statements_of(path) is None
    assert str(old) in (tmp_path / "server.log").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("CREATE TABLE things (a)", "app_tokens.*things"),
        (OLD.replace("app_tokens", "credentials"), "app_tokens.*credentials"),
        (OLD.replace("'{hash}'", "'$2b$12$bcrypt'"), "SHA-256"),
        (PLAIN.replace(TOKEN, "$argon2id$v=19$m=1"), "SHA-256"),
        (OLD.replace('["127', "[127"), "networks of a token cannot be read"),
        (
            OLD.replace("'gone'", "'GONE'")
            .replace(", '2026-05-01')", ", NULL)")
            .replace("{other}", "{hash}"),
            "cannot be upgraded",
        ),
    ],
    ids=["foreign", "renamed", "hashes", "plain hashes", "networks", "doubled"],
)
async def test_database_that_cannot_be_imported_is_refused_and_unchanged(
    tmp_path: Path, text: str, says: str
) -> None:
    path = make(tmp_path / "clawdforge.db", text)
    before = rows(path, "SELECT sql FROM sqlite_master")
    with pytest.raises(SchemaError, match=says):
        await upgrade(path)
    assert rows(path, "SELECT sql FROM sqlite_master") == before
    assert not path.with_name("clawdforge.db.v0.2").exists()


@pytest.mark.parametrize(
    "text",
    [PLAIN, OLD.replace("{hash}", TOKEN), OLD.replace("{hash}", "sha256:{hash}")],
    ids=["plain", "plain in a column for hashes", "marked"],
)
async def test_tokens_are_imported_as_hashes(tmp_path: Path, text: str) -> None:
    path = make(tmp_path / "clawdforge.db", text)
    kept = await upgrade(path)
    assert kept is not None
    digest = hashlib.sha256(TOKEN.encode()).digest()
    assert rows(path, "SELECT name, hash FROM tokens") == [("petal", digest)]
    assert TOKEN.encode() not in path.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o600


async def test_new_database_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "clawdforge.db"
    assert await upgrade(path) is None
    path.touch()
    assert await upgrade(path) is None
    await (await Database.open(path)).close()
    assert await upgrade(path) is None


async def test_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clawdforge.db"
    path.write_bytes(b"no database, but long enough to be one" * 100)
    with pytest.raises(SchemaError, match="cannot be read: file is not a database"):
        await upgrade(path)
