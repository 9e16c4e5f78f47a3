"""Logins of agents: which methods they have, who may log in and out, and what clients see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ..support.acp_client import INITIALIZE, ResponseError, connect
from ..support.harness import Client, Json, LocalServer, local_server, mock_agent

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENT = "locked"
METHODS = ["mock-login", "mock-slow", "mock-terminal"]


@pytest.fixture(scope="module", params=["host", pytest.param("cli", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that exists while the agent is logged in."""
    return tmp_path_factory.mktemp("login") / "login"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory, login: Path, backend: str
) -> AsyncIterator[LocalServer]:
    agents = {
        AGENT: mock_agent(f"--login-file={login}"),
        "open": mock_agent(),
        "dies": mock_agent("--die-at-start", "--stderr=broken"),
    }
    data_dir = tmp_path_factory.mktemp("logins") / "data"
    async with local_server(
        data_dir, agents=agents, default_agent=AGENT, agent_backend=backend
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def logged_out(login: Path, server: LocalServer) -> None:
    login.unlink(missing_ok=True)
    server.services.logins.states.forget_requirements(AGENT)


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: LocalServer) -> AsyncIterator[Client]:
    yield await server.client()
    await server.clear()


async def entry(client: Client, name: str = AGENT) -> Json:
    """The agent in the list of agents."""
    _, reply = await client.get("/agents")
    (found,) = [one for one in reply["agents"] if one["name"] == name]
    return dict(found)


async def log_in(server: LocalServer, method: str, agent: str = AGENT) -> tuple[int, Any]:
    path = f"/admin/agents/{agent}/authenticate"
    return await server.admin().post(path, {"method_id": method})


def ids(methods: list[Json]) -> list[str]:
    return [method["id"] for method in methods]


async def test_operator_logs_an_agent_in_and_out(server: LocalServer, client: Client) -> None:
    session = await client.create(AGENT)
    status, reply = await client.turn(session, "hello")
    assert (status, reply["code"]) == (502, "login_required")
    assert (await entry(client))["login_required"] is True

    status, reply = await log_in(server, "mock-login")
    assert (status, reply) == (200, {"ok": True, "agent": AGENT, "method_id": "mock-login"})
    assert ids((await entry(client))["auth_methods"]) == METHODS
    assert "login_required" not in await entry(client)
    assert (await client.turn(session, "hello"))[0] == 200  # the conversation goes on
    assert (await entry(client))["login_required"] is False

    status, reply = await server.admin().post(f"/admin/agents/{AGENT}/logout")
    assert (status, reply) == (200, {"ok": True, "agent": AGENT, "login_required": True})
    status, reply = await client.turn(await client.create(AGENT), "hello")
    assert (status, reply["code"], ids(reply["auth_methods"])) == (502, "login_required", METHODS)


async def test_login_is_refused_with_a_reason(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.services.logins, "timeout", 1.0)
    cases = [
        ("none", AGENT, 400, "bad_request"),
        ("mock-terminal", AGENT, 400, "not_supported"),
        ("mock-slow", AGENT, 504, "agent_timeout"),
        ("x", "open", 400, "bad_request"),
        ("x", "dies", 502, "agent_unavailable"),
        ("x", "nothing", 404, "not_found"),
    ]
    for method, agent, *expected in cases:
        status, reply = await log_in(server, method, agent)
        assert [status, reply["code"]] == expected
    status, reply = await server.admin().post("/admin/agents/open/logout")
    assert (status, reply["code"]) == (400, "not_supported")


async def test_app_cannot_change_the_login(server: LocalServer, client: Client) -> None:
    body = {"method_id": "mock-login"}
    status, reply = await client.post(f"/admin/agents/{AGENT}/authenticate", body)
    assert (status, reply["code"]) == (403, "forbidden")
    status, reply = await client.post(f"/admin/agents/{AGENT}/logout")
    assert (status, reply["code"]) == (403, "forbidden")


async def test_acp_client_gets_the_methods_once_a_login_is_required(
    server: LocalServer, client: Client, backend: str, login: Path
) -> None:
    acp = await connect(client, initialize=None)
    initialized = await acp.call("initialize", **INITIALIZE)
    assert initialized["authMethods"] == []  # it has not been started for this app
    if backend == "host":
        with pytest.raises(ResponseError) as failure:
            await acp.new_session()
        assert failure.value.code == -32000
        assert ids(failure.value.data["authMethods"]) == METHODS
    else:  # its session/new does not start the agent
        await client.turn(await client.create(AGENT), "hello")
    acp = await connect(client, initialize=None)
    initialized = await acp.call("initialize", **INITIALIZE)
    assert ids(initialized["authMethods"]) == METHODS[:2]

    with pytest.raises(ResponseError) as failure:
        await acp.call("authenticate", methodId="mock-login")
    assert failure.value.code == -32000
    assert not login.exists()
    login.touch()  # the operator logs in
    with pytest.raises(ResponseError) as failure:
        await acp.call("authenticate", methodId="none")
    assert failure.value.code == -32602
    assert await acp.call("authenticate", methodId="mock-login") == {}
    with pytest.raises(ResponseError) as failure:
        await acp.call("logout")
    assert failure.value.code == -32601
    session = await acp.new_session()
    assert await acp.prompt(session, "hello") == {"stopReason": "end_turn"}
