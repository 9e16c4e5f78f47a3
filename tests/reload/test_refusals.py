"""Reloads that would lose something are refused, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.client import ADMIN, Client, Json
from ..support.harness import eventually, new_client, script
from ..support.postgres import running_postgres
from .following import reload

pytestmark = pytest.mark.slow


async def refused_reload(url: str, http: aiohttp.ClientSession, pid: int) -> str:
    """Send SIGHUP to a server. Returns the reason for which it was not reloaded."""
    admin = Client(url, ADMIN, http)
    os.kill(pid, signal.SIGHUP)
    now: Json = {}

    async def has_failed() -> bool:
        nonlocal now
        _, now = await admin.get("/admin/reload")
        return bool(now["failure"])

    await eventually("the reload to be refused", has_failed)
    return str(now["failure"])


async def test_turn_of_the_cli_backend_is_waited_for(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn(AGENT_BACKEND="cli")
    client = await new_client(server.url, http)
    session = await client.create()
    folder = Path((await client.state(session))["cwd"])
    prompt = script({"say": "begun"}, {"gate": "go-on"}, {"say": "and done"})
    turn = asyncio.create_task(client.turn(session, prompt))
    socket = await client.connect(session, after=0)
    await socket.until_text("begun")
    assert "cli" in await refused_reload(server.url, http, server.pid)
    (folder / "go-on").touch()
    status, reply = await turn
    assert (status, reply["stop_reason"]) == (200, "end_turn")
    assert (await reload(server.url))["reloads"] == 1
    assert (await client.turn(session, "again"))[0] == 200
    entries = await client.events(session)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))


async def test_node_of_a_cluster_continues_after_a_reload(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    with running_postgres() as postgres:
        shared = {"CLUSTER_URL": postgres.new_database(), "SHARED_DIR": str(tmp_path / "shared")}
        server = await spawn(**shared, NODE_NAME="node-1")
        client = await new_client(server.url, http)
        session = await client.create()
        socket = await client.connect(session)
        await socket.send("prompt", prompt=script({"say": "begun"}, {"gate": "go-on"}))
        await socket.until_text("begun")
        assert await refused_reload(server.url, http, server.pid)
        (Path((await client.state(session))["cwd"]) / "go-on").touch()
        await socket.until("turn_end", stop_reason="end_turn")
        assert await server.stop() == 0
