"""The parameters of agents: MCP servers, folders, tools and variables, after each load."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from server.mcp_servers import presets

from ..conftest import Serve
from ..support.acp_client import ResponseError, connect
from ..support.engine import only_sqlite
from ..support.harness import (
    Client,
    Json,
    LocalServer,
    eventually,
    failure,
    mock_agent,
    run_step,
)

SECRET = "hunter2-hunter2"
STDIO = {
    "name": "files",
    "command": "/bin/mcp-files",
    "args": ["--root", "/"],
    "env": [{"name": "KEY", "value": SECRET}],
}
HTTP = {
    "type": "http",
    "name": "web",
    "url": f"https://mcp.example/?key={SECRET}",
    "headers": [{"name": "Authorization", "value": SECRET}],
}
AGENTS = {
    "mock": mock_agent("--mcp", "--directories"),
    "resuming": mock_agent("--mcp", "--directories", "--resume", "--no-load"),
    "plain": mock_agent(),
    "claude": mock_agent(),
    "loud": mock_agent("--die-at-start"),
}
PRESETS = presets('{"search": {"type": "sse", "url": "http://search.example/"}}')


async def opened(client: Client, session: str) -> tuple[str, Json]:
    """The method and the params of the request that opened the agent's conversation."""
    method, params = (await run_step(client, session, {"report": True}))["opened"]
    return method, params


async def hibernate(server: LocalServer, client: Client, session: str) -> None:
    agent = (await server.services.sessions.find(session)).agent  # type: ignore[union-attr]
    assert await agent.hibernate()
    await client.until_hibernated(session)


@pytest.mark.parametrize(("agent", "method"), [("mock", "load"), ("resuming", "resume")])
async def test_parameters_reach_the_agent_after_each_load(
    serve: Serve, tmp_path: Path, agent: str, method: str
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    settings: Json = {
        "agents": AGENTS,
        "workspace_roots": (tmp_path.resolve(),),
        "mcp_servers": PRESETS,
    }
    server = await serve(**settings)
    client = await server.client()
    session = await client.create(
        agent,
        mcp_servers=[STDIO, HTTP, "search"],
        additional_directories=[str(more)],
        env={"API_KEY": SECRET},
    )
    search = {"type": "sse", "name": "search", "url": "http://search.example/", "headers": []}

    async def check(expected: str) -> int:
        report = await run_step(client, session, {"report": True})
        found, params = report["opened"]
        assert found == f"session/{expected}"
        assert params["mcpServers"] == [STDIO, HTTP, search]
        assert params["additionalDirectories"] == [str(more.resolve())]
        assert await run_step(client, session, {"env": ["API_KEY"]}) == {"API_KEY": SECRET}
        return int(report["pid"])

    pid = await check("new")
    os.kill(pid, signal.SIGKILL)
    await client.until_hibernated(session)
    await check(method)
    await hibernate(server, client, session)
    await check(method)
    token = client.token
    await server.stop()
    server = await serve(**settings)
    client = server.anonymous()
    client.token = token
    await check(method)
    stored = [
        path
        for path in server.services.settings.data_dir.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    # The mock agent stores the params of session/new itself.
    assert {path.name for path in stored if ".mock-agent" not in path.parts} <= {
        "clawdforge.db",
        "clawdforge.db-wal",
        "search.db",  # the agent has said them
        "search.db-wal",
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in stored if ".db" in path.name)


async def test_agent_without_a_capability_fails_the_turn_and_keeps_its_conversation(
    share: Serve,
) -> None:
    server = await share(agents=AGENTS)
    client = await server.client()
    session = await client.create("plain", mcp_servers=[HTTP])
    for _ in range(2):
        message = failure(await client.turn(session, "hello"), 400, "not_supported")
        assert "web" in message
        assert SECRET not in message
    entries = await client.events(session)
    assert SECRET not in str(entries)
    session = await client.create("plain", mcp_servers=[STDIO])
    assert (await opened(client, session))[1]["mcpServers"] == [STDIO]


@pytest.mark.slow
async def test_preset_that_was_removed_fails_the_turn_until_it_is_back(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(agents=AGENTS, mcp_servers=PRESETS)
    client = await server.client()
    session = await client.create(mcp_servers=["search"])
    assert await run_step(client, session, {"history": True})
    await server.stop()
    token = client.token
    for known in ({}, PRESETS):
        server = await serve(agents=AGENTS, mcp_servers=known)
        client = server.anonymous()
        client.token = token
        if known:
            assert len(await run_step(client, session, {"history": True})) == 2
        else:
            failure(await client.turn(session, "hello"), 400, "bad_request")
        await server.stop()


async def test_claude_gets_its_options_and_system_prompt_after_each_load(share: Serve) -> None:
    server = await share(agents=AGENTS)
    client = await server.client()
    session = await client.create(
        "claude", allowed_tools=["Read", "mcp__web"], max_turns=3, system="Be brief."
    )

    async def check(expected: str) -> None:
        method, params = await opened(client, session)
        assert method == expected
        options = params["_meta"]["claudeCode"]["options"]
        assert (options["allowedTools"], options["maxTurns"]) == (["Read", "mcp__web"], 3)
        assert params["_meta"]["systemPrompt"] == "Be brief."

    await check("session/new")
    await hibernate(server, client, session)
    await check("session/load")


async def test_option_that_the_agent_cannot_take_is_refused(share: Serve) -> None:
    server = await share(agents=AGENTS)
    client = await server.client()
    session = await client.create("mock")
    acp = await connect(client)
    for name, value in (("allowed_tools", ["Read"]), ("max_turns", 1)):
        body = {"agent": "mock", name: value}
        message = failure(await client.post("/sessions", body), 400, "not_supported")
        assert name in message
        assert "'mock'" in message
        meta = {"clawdforge": {name: value}}
        with pytest.raises(ResponseError) as refused:
            await acp.call("session/load", sessionId=session, cwd="/", mcpServers=[], _meta=meta)
        assert refused.value.data["code"] == "not_supported"


async def test_additional_directory_must_be_in_a_workspace_root(
    serve: Serve, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    server = await serve(agents=AGENTS, workspace_roots=(root.resolve(),))
    client = await server.client()
    for path in ("/etc", "relative", str(root / "missing"), str(root / "link"), str(root / "..")):
        body = {"agent": "mock", "additional_directories": [path]}
        assert "additional_directories" in failure(
            await client.post("/sessions", body), 400, "bad_request"
        )


async def test_directory_that_became_a_link_stops_the_agent(serve: Serve, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    server = await serve(agents=AGENTS, workspace_roots=(tmp_path.resolve(),))
    client = await server.client()
    session = await client.create(additional_directories=[str(more)])
    await run_step(client, session, {"report": True})
    await hibernate(server, client, session)
    more.rmdir()
    more.symlink_to("/etc")
    failure(await client.turn(session, "hello"), 400, "bad_request")


async def test_output_of_an_agent_that_dies_hides_the_variables(
    serve: Serve, tmp_path: Path
) -> None:
    shows = mock_agent("--die-at-start", f"--stderr=the value is {SECRET}")
    server = await serve(agents={"mock": shows})
    client = await server.client()
    session = await client.create(env={"PLAIN": SECRET})
    message = failure(await client.turn(session, "hello"), 502, "agent_unavailable")
    assert "the value is" in message
    assert SECRET not in message


@only_sqlite
async def test_session_with_parameters_takes_no_prewarmed_agent(serve: Serve) -> None:
    server = await serve(agents=AGENTS, prewarmed_agents=1)
    client = await server.client()
    prewarmer = server.services.sessions.prewarmer
    await eventually("a prewarmed agent", lambda: any(one.is_ready for one in prewarmer.agents))
    session = await client.create(mcp_servers=[STDIO])
    assert (await opened(client, session))[1]["mcpServers"] == [STDIO]
    assert [one.is_ready for one in prewarmer.agents] == [True]
    session = await client.create(ask_timeout_secs=10, mcp_servers=[], env={})
    assert (await client.state(session))["agent_state"] == "prewarmed"


@pytest.mark.slow  # each acpx command takes 1 s of CPU time
async def test_cli_backend_passes_servers_and_variables(serve: Serve) -> None:
    server = await serve(agents=AGENTS, agent_backend="cli")
    client = await server.client("shop")
    session = await client.create(mcp_servers=[STDIO], env={"API_KEY": SECRET})
    assert (await opened(client, session))[1]["mcpServers"] == [STDIO]
    assert await run_step(client, session, {"env": ["API_KEY"]}) == {"API_KEY": SECRET}
    change = {"env": {"APP_KEY": "of the app"}}
    assert (await server.admin().call("PATCH", "/admin/tokens/shop", change))[0] == 200
    await hibernate(server, client, session)
    found = await run_step(client, session, {"env": ["API_KEY", "APP_KEY"]})
    assert found == {"API_KEY": SECRET, "APP_KEY": "of the app"}
    options: Any
    for options in (
        {"allowed_tools": ["Read"]},
        {"additional_directories": ["/"]},
    ):
        reply = await client.post("/sessions", {"agent": "mock", **options})
        assert reply[0] == 400


async def test_fork_keeps_the_options_that_its_agent_takes(share: Serve) -> None:
    server = await share(agents=AGENTS)
    client = await server.client()
    session = await client.create("claude", mcp_servers=[STDIO], max_turns=3)
    await run_step(client, session, {"report": True})
    for agent, limit in (("claude", 3), ("mock", None)):
        status, reply = await client.post(f"/sessions/{session}/fork", {"agent": agent})
        assert (status, reply["max_turns"]) == (200, limit), reply
        assert [one["name"] for one in reply["mcp_servers"]] == ["files"]
