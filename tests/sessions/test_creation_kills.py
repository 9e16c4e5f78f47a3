"""The server is killed while sessions are forked and imported: nothing is left half done."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import Client, Json, eventually, new_client, script

ROUNDS = 6
AT_ONCE = 8
SECONDS = 0.4
"""The server is killed within this time after the requests."""
ORPHANS = (
    "SELECT count(*) FROM turns WHERE session NOT IN (SELECT n FROM sessions)",
    "SELECT count(*) FROM log_segments WHERE session NOT IN (SELECT n FROM sessions)",
    "SELECT count(*) FROM log WHERE session NOT IN (SELECT n FROM sessions)"
    " AND session NOT IN (SELECT owner FROM log_segments)",
)


def ask(database: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_server_killed_during_forks_and_imports_leaves_nothing_half_done(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    seed = int(os.environ.get("CLAWDFORGE_TEST_SEED") or secrets.randbelow(1 << 32))
    print(f"CLAWDFORGE_TEST_SEED={seed}")  # noqa: T201 - pytest shows it if the test fails
    dice = random.Random(seed)
    data = tmp_path / "data"
    server = await spawn()
    client = await new_client(server.url, http)
    source = await client.create()
    for number in range(40):
        path = f"/sessions/{source}/files/folder/{number}"
        assert (await client.call("PUT", path, f"file {number}"))[0] == 200
    for text in ("one", "two"):
        prompt = script({"burst": {"count": 300, "text": text}})
        assert (await client.turn(source, prompt))[0] == 200
    entries = await client.events(source)
    files = files_of(data / "workspaces" / source)
    async with http.get(
        f"{client.url}/sessions/{source}/export", headers=client.headers()
    ) as response:
        export = await response.read()

    for _ in range(ROUNDS):
        calls: list[tuple[str, Any]] = [
            (f"/sessions/{source}/fork", {}),
            (f"/sessions/{source}/fork", {"turn_index": 1}),
            ("/sessions/import", export),
            ("/sessions", {"agent": "mock", "system": "Be brief."}),
        ]
        running = [asyncio.ensure_future(client.post(*dice.choice(calls))) for _ in range(AT_ONCE)]
        await asyncio.wait(running, timeout=dice.uniform(0, SECONDS))
        await server.kill()
        responses = await asyncio.gather(*running, return_exceptions=True)
        server = await spawn()
        client = Client(server.url, client.token, http)
        _, reply = await client.get("/sessions?include_closed=true")
        states = {state["session_id"]: state for state in reply["sessions"]}
        for one in responses:  # the sessions of the responses
            if not isinstance(one, BaseException):
                assert one[0] == 200, one
                assert one[1]["session_id"] in states
        for state in states.values():
            await check(client, state, entries, files, data)
        await check_leftovers(data)
        for session in states.keys() - {source}:
            assert (await client.delete(f"/sessions/{session}?purge=true"))[0] == 200


async def check(
    client: Client, state: Json, entries: list[Json], files: dict[str, str], data: Path
) -> None:
    """Check that a session has its whole log and its files."""
    found = await client.events(state["session_id"])
    if (origin := state["forked_from"]) is not None:
        end = next(
            entry["seq"]
            for entry in entries
            if entry["type"] == "turn_end" and entry["turn_index"] == origin["turn_index"]
        )
        assert found[:end] == entries[:end]
        assert state["turn_count"] == origin["turn_index"]
        assert files_of(data / "workspaces" / state["session_id"]) == files
    elif state["close_reason"] == "client":  # an import
        assert found[:-1] == entries
        assert found[-1]["type"] == "session_closed"


async def check_leftovers(data: Path) -> None:
    """Check that no row and no folder belongs to a session that does not exist."""
    database = data / "clawdforge.db"
    for query in ORPHANS:
        assert ask(database, query) == [(0,)], query

    def is_clean() -> bool:
        ids = {row[0] for row in ask(database, "SELECT id FROM sessions")}
        prewarmed = {row[0] for row in ask(database, "SELECT id FROM prewarmed")}
        return (
            names_in(data / "workspaces") <= ids | prewarmed
            and names_in(data / "snapshots") <= ids
            and len(prewarmed) <= 1
        )

    await eventually("the leftovers of the killed server to be deleted", is_clean)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and ".mock-agent" not in path.parts
    }
