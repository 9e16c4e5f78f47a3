"""MCP servers, directories and other options of sessions over ACP."""

from __future__ import annotations

from pathlib import Path

from ..conftest import Serve
from ..support.acp_client import INITIALIZE, connect
from ..support.harness import Client, Json, LocalServer, mock_agent, run_step

SECRET = "hunter2-hunter2"
STDIO: Json = {
    "name": "files",
    "command": "/bin/mcp-files",
    "args": [],
    "env": [{"name": "KEY", "value": SECRET}],
}
HTTP: Json = {"type": "http", "name": "web", "url": "http://mcp.example/", "headers": []}
AGENTS = {"mock": mock_agent("--mcp", "--directories"), "plain": mock_agent()}


async def opened(client: Client, session: str) -> Json:
    await client.call("PATCH", f"/sessions/{session}", {"permission": "approve-all"})
    method, params = (await run_step(client, session, {"report": True}))["opened"]
    return {"method": method, **params}


async def hibernate(server: LocalServer, session: str) -> None:
    found = await server.services.sessions.find(session)
    assert found is not None
    assert await found.agent.hibernate()


async def test_mcp_servers_and_options_of_an_acp_client_reach_the_agent(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(agents=AGENTS, workspace_roots=(tmp_path.resolve(),))
    client = await server.client()
    meta = {"clawdforge": {"ask_timeout_secs": 20, "env": {"A": "1"}}}
    acp = await connect(client, initialize={**INITIALIZE, "_meta": meta})
    capabilities = acp.messages[0]["result"]["agentCapabilities"]
    assert capabilities["mcpCapabilities"] == {"http": True, "sse": True}
    assert capabilities["sessionCapabilities"]["additionalDirectories"] == {}
    more, cwd = tmp_path / "more", tmp_path / "cwd"
    more.mkdir()
    cwd.mkdir()
    created = await acp.call(
        "session/new",
        cwd=str(cwd),
        mcpServers=[STDIO],
        additionalDirectories=[str(more)],
        _meta={"clawdforge": {"askTimeoutSecs": 30}},
    )
    assert created["_meta"]["clawdforge"]["ignored"] == []
    session = created["sessionId"]
    state = await client.state(session)
    assert (state["ask_timeout_secs"], state["env"]) == (30, ["A"])
    assert state["mcp_servers"] == [{"name": "files", "type": "stdio", "env": ["KEY"]}]
    found = await opened(client, session)
    assert (found["mcpServers"], found["additionalDirectories"]) == ([STDIO], [str(more)])

    # Without servers, a load changes nothing; with others, it replaces them.
    params = {"sessionId": session, "cwd": str(cwd)}
    await acp.call("session/load", **params, mcpServers=[])
    assert (await client.state(session))["mcp_servers"] == state["mcp_servers"]
    await acp.call("session/resume", **params, mcpServers=[HTTP])
    await hibernate(server, session)
    found = await opened(client, session)
    assert (found["method"], found["mcpServers"]) == ("session/load", [HTTP])
    assert found["additionalDirectories"] == [str(more)]


async def test_initialize_reports_the_mcp_capabilities_of_the_agent(serve: Serve) -> None:
    server = await serve(agents=AGENTS, default_agent="plain")
    acp = await connect(await server.client())
    capabilities = acp.messages[0]["result"]["agentCapabilities"]
    assert capabilities["mcpCapabilities"] == {"http": False, "sse": False}
    assert "additionalDirectories" not in capabilities["sessionCapabilities"]
