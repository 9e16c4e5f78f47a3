"""The commands ``token add``, ``token list`` and ``token revoke``."""

from __future__ import annotations

import json

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.engine import only_sqlite
from ..support.harness import Client
from ..support.operator import Operator


@pytest.mark.slow
@only_sqlite
async def test_tokens_of_stopped_server(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    for command in (("token", "list"), ("token", "revoke", "x"), ("sessions", "close", "x")):
        assert "there is no database" in (await operator.run(*command, status=1))[1]
    token = (await operator.run("token", "add", "early", "--network", "127.0.0.0/8"))[0].strip()
    await operator.run("token", "add", "gone")
    assert "is taken" in (await operator.run("token", "add", "gone", status=1))[1]
    assert (
        "not a network" in (await operator.run("token", "add", "x", "--network", "a", status=1))[1]
    )
    for name in ("", "my bot", "a\nb", "x" * 65):
        assert "name" in (await operator.run("token", "add", name, status=1))[1]
    await operator.run("token", "revoke", "gone")
    assert "no such token" in (await operator.run("token", "revoke", "gone", status=1))[1]
    listed, _ = await operator.run("token", "list")
    assert listed.splitlines()[1].split()[:2] == ["early", "127.0.0.0/8"]
    assert token not in listed
    server = await spawn()
    assert (await Client(server.url, token, http).get("/agents"))[0] == 200


async def test_options_of_tokens(operator: Operator, spawn: Spawn) -> None:
    options = ("--scope", "read", "--limit", "sessions=3", "--budget", "usd_per_day=0.5")
    await operator.run("token", "add", "early", *options, "--limit", "runs=0")
    for odd in (("--limit", "sessions"), ("--limit", "session=1"), ("--scope", "x")):
        await operator.run("token", "add", "odd", *odd, status=1)
    await operator.run("token", "change", "early", status=1)
    assert (
        "no such token"
        in (await operator.run("token", "change", "late", "--limit", "runs=1", status=1))[1]
    )
    server = await spawn()
    await operator.run("token", "change", "early", "--limit", "runs=7", "--no-scope")
    await operator.run("token", "change", "early", "--limit", "session=7", status=1)
    listed, _ = await operator.run("token", "list", "--json")
    [token] = [one for one in map(json.loads, listed.splitlines()) if one["name"] == "early"]
    del token["created_at"]
    assert token == {
        "name": "early",
        "ip_cidrs": [],
        "limits": {"runs": 7},
        "budget": {"usd_per_day": 0.5},
    }
    assert "runs=7 usd_per_day=0.5" in (await operator.run("token", "list"))[0]
    await server.stop()


@only_sqlite
async def test_sessions_are_closed_with_a_revoked_token(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    for is_running in (True, False):
        token = (await operator.run("token", "add", "shop"))[0].strip()
        client = Client(server.url, token, http)
        if is_running:
            await client.create("demo")
            said = (await operator.run("token", "revoke", "shop", "--close-sessions"))[0]
        else:
            await client.create("demo")
            await server.stop()
            said = (await operator.run("token", "revoke", "shop", "--close-sessions"))[0]
        assert "1 sessions were closed" in said
    listed, _ = await operator.run("sessions", "list", "--all", "--json")
    assert [json.loads(line)["close_reason"] for line in listed.splitlines()] == ["admin"] * 2
