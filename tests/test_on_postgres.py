"""A server on PostgreSQL: it serves as on SQLite, and survives faults of the engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from .conftest import Spawn
from .support.harness import Client, eventually, new_client, run_program, script
from .support.postgres import Postgres, running_postgres
from .support.processes import ROOT

pytestmark = pytest.mark.slow
SELECTION = (
    "tests/accounts/test_app_limits.py",
    "tests/outbox/test_webhooks.py",
    "tests/sessions/test_lifecycle.py",
    "tests/sessions/test_queue.py",
    "tests/sessions/test_quotas.py",
    "tests/uploads",
    "tests/web/test_session_list.py",
    "tests/ws/test_app_socket.py",
)
"""Tests of what is stored and counted, in which the engines could differ most."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def settings_of(url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "CLUSTER_URL": url,
        "SHARED_DIR": str(tmp_path / "shared"),
        "NODE_NAME": "node-1",
        "LEASE_SECS": "5",
    }


async def test_turn_continues_over_a_crash_of_the_engine(
    postgres: Postgres, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(**settings_of(postgres.new_database(), tmp_path))
    client = await new_client(server.url, http)
    session = await client.create()
    socket = await client.connect(session)
    assert str(tmp_path / "shared") in (await client.state(session))["cwd"]
    steps = [{"say": f"{number} "} for number in range(300)]
    await socket.send("prompt", prompt=script(*steps))
    await socket.until_text("5 ")
    await asyncio.to_thread(postgres.stop, signal.SIGQUIT)
    await asyncio.to_thread(postgres.start)
    await socket.until("turn_end", stop_reason="end_turn")
    said = socket.text(1)
    assert said.split() == [str(number) for number in range(300)]
    entries = await client.events(session)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))


async def test_killed_server_continues_its_sessions_under_its_name(
    postgres: Postgres, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    settings = settings_of(postgres.new_database(), tmp_path)
    server = await spawn(**settings)
    client = await new_client(server.url, http)
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"say": "busy"}, {"hang": True}))
    await socket.until_text("busy")
    await server.kill()
    again = await spawn(**settings)
    client = Client(again.url, client.token, http)
    (end,) = [one for one in await client.events(session) if one["type"] == "turn_end"]
    assert end["error"]["code"] == "server_restarted"
    assert (await client.turn(session, "again"))[0] == 200
    status, health = await client.get("/healthz")
    assert status == 200
    assert (health["node"], health["nodes"]) == ("node-1", [{"name": "node-1", "state": "up"}])
    assert health["engine"]["reachable"]


async def test_unreachable_engine_makes_the_node_unready_and_refuses_prompts(
    postgres: Postgres, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(**settings_of(postgres.new_database(), tmp_path))
    client = await new_client(server.url, http)
    session = await client.create()
    await asyncio.to_thread(postgres.stop, signal.SIGQUIT)

    async def is_unready() -> bool:
        return (await client.get("/readyz"))[0] == 503

    async def is_ready() -> bool:
        return (await client.get("/readyz"))[0] == 200

    try:
        await eventually("the node to be unready", is_unready)
    finally:
        await asyncio.to_thread(postgres.start)
    await eventually("the node to be ready", is_ready)
    assert (await client.turn(session, "hello"))[0] == 200


async def test_server_without_a_cluster_does_not_import_asyncpg() -> None:
    program = "import sys, server.command_line; sys.exit('asyncpg' in sys.modules)"
    assert (await run_program(sys.executable, "-c", program))[0] == 0


@pytest.mark.timeout(1200)
async def test_selection_of_the_tests_passes_on_postgresql(tmp_path: Path) -> None:
    """All of ``make test`` runs with ``CLAWDFORGE_TEST_ENGINE=postgresql``; that takes minutes."""
    environ = {**os.environ, "CLAWDFORGE_TEST_ENGINE": "postgresql"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"),
        *("--basetemp", tmp_path / "inner", "--no-header", "--tb=short", *SELECTION),
        cwd=ROOT,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-5000:]
