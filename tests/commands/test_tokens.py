"""The commands ``token add``, ``token list`` and ``token revoke``."""

from __future__ import annotations

import aiohttp

from ..conftest import Spawn
from ..support.harness import Client
from ..support.operator import Operator


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
