"""Sessions and runs behind the key proxy: no process of an agent has the key."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..conftest import Serve
from ..support.anthropic_stand_in import StandIn, stand_in
from ..support.harness import Client, LocalServer, eventually, run_step
from ..support.processes import descendants

KEY = "sk-ant-the-real-key-of-the-operator"
NAMES = ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"]
BODY = {"model": "m", "tools": [{}], "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StandIn]:
    async with stand_in() as running:
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", running.url)
        yield running


async def variables(client: Client, session: str) -> dict[str, Any]:
    return dict(await run_step(client, session, {"env": NAMES}))


async def ask(found: dict[str, Any], http: aiohttp.ClientSession) -> int:
    """Send a request of the agent with those variables. Return its status."""
    url = f"{found['ANTHROPIC_BASE_URL']}/v1/messages"
    headers = {"x-api-key": found["ANTHROPIC_API_KEY"]}
    async with http.post(url, json=BODY, headers=headers) as reply:
        await reply.read()
        return reply.status


def environments(server_pid: int) -> dict[int, bytes]:
    found = {}
    for pid in descendants(server_pid):
        try:
            found[pid] = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("backend", ["host", pytest.param("cli", marks=pytest.mark.slow)])
@pytest.mark.parametrize("level", ["landlock", pytest.param("off", marks=pytest.mark.slow)])
async def test_agent_gets_a_token_that_ends_with_its_session(
    serve: Serve, api: StandIn, http: aiohttp.ClientSession, backend: str, level: str
) -> None:
    server = await serve(agent_backend=backend, sandbox=level)
    client = await server.client()
    session, other = await client.create(), await client.create()
    found, second = await variables(client, session), await variables(client, other)
    assert found["ANTHROPIC_API_KEY"] != second["ANTHROPIC_API_KEY"]
    assert not [pid for pid, one in environments(os.getpid()).items() if KEY.encode() in one]
    assert await ask(found, http) == 200
    assert api.keys == {KEY}

    # An agent's tokens between turns are counted, too.
    await server.services.sessions.writer.flush()
    usage = (await client.state(session))["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (10, 5)
    _, reply = await client.get("/usage?by=session")
    assert reply["rows"] == [{"session_id": session, "input_tokens": 10, "output_tokens": 5}]

    await client.delete(f"/sessions/{session}")
    assert await ask(found, http) == 401
    assert await ask(second, http) == 200


@pytest.mark.slow
async def test_app_uses_its_own_key_and_address(
    serve: Serve, api: StandIn, http: aiohttp.ClientSession
) -> None:
    async with stand_in() as own:
        server = await serve()
        env = {"ANTHROPIC_API_KEY": "sk-ant-of-the-app", "ANTHROPIC_BASE_URL": own.url}
        client = await server.client("shop", env=env)
        found = await variables(client, await client.create())
        assert "of-the-app" not in json.dumps(found)
        assert await ask(found, http) == 200
        assert (own.keys, api.keys) == ({"sk-ant-of-the-app"}, set())


async def test_agent_of_an_app_without_budget_is_refused_between_turns(
    serve: Serve, api: StandIn, http: aiohttp.ClientSession
) -> None:
    server = await serve()
    client = await server.client("poor", budget={"tokens_per_day": 10})
    found = await variables(client, await client.create())
    assert await ask(found, http) == 200
    assert await ask(found, http) == 402


@pytest.mark.slow
async def test_prewarmed_agent_uses_the_key_proxy_for_its_app(
    serve: Serve, api: StandIn, http: aiohttp.ClientSession
) -> None:
    server = await serve(prewarmed_agents=1)
    pool = server.services.sessions.prewarmer
    await eventually("a prewarmed agent", lambda: any(one.is_ready for one in pool.agents))
    client = await server.client()
    session = await client.create()
    assert (await client.state(session))["agent_state"] == "prewarmed"
    assert await ask(await variables(client, session), http) == 200
    assert (await client.state(session))["usage"]["output_tokens"] == 5


@pytest.mark.slow
async def test_key_proxy_can_be_switched_off(serve: Serve, api: StandIn) -> None:
    server = await serve(key_proxy="off")
    client = await server.client()
    found = await variables(client, await client.create())
    assert found == {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.url}


async def test_client_can_choose_an_address_and_gets_no_key(serve: Serve, api: StandIn) -> None:
    server: LocalServer = await serve()
    client = await server.client()
    session = await client.create(env={"ANTHROPIC_BASE_URL": "http://own.example"})
    found = await variables(client, session)
    assert found == {"ANTHROPIC_API_KEY": None, "ANTHROPIC_BASE_URL": "http://own.example"}
