"""MCP servers of sessions, with the official SDK's servers and the real claude."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Serve
from ..support.anthropic_stand_in import StandIn, Text, ToolUse
from ..support.harness import ROOT, Client, Json, LocalServer, eventually
from ..support.harness import texts_of as texts_of_turn
from .test_real_agents import api, hibernate, machine

pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]
__all__ = ["api", "machine"]

SECRET = "open-sesame-open-sesame"
SERVER = ROOT / "tests" / "stand_ins" / "mcp_server.py"
STDIO: Json = {
    "name": "local",
    "command": sys.executable,
    "args": [str(SERVER), "stdio"],
    "env": [{"name": "MCP_SECRET", "value": SECRET}],
}


@contextlib.contextmanager
def remote_server(transport: str, folder: Path) -> Iterator[Path]:
    port_file = folder / f"{transport}.port"
    process = subprocess.Popen(
        [sys.executable, str(SERVER), transport, str(port_file)],
        env={**os.environ, "MCP_SECRET": SECRET},
    )
    try:
        yield port_file
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def remote(tmp_path: Path) -> Any:
    """The real HTTP server and the real SSE server, as ACP's McpServer objects."""
    servers = []
    with contextlib.ExitStack() as stack:
        for transport, path in (("http", "/mcp"), ("sse", "/sse")):
            port_file = stack.enter_context(remote_server(transport, tmp_path))
            await eventually(f"the {transport} server", port_file.exists)
            servers.append(
                {
                    "type": transport,
                    "name": transport,
                    "url": f"http://127.0.0.1:{port_file.read_text()}{path}",
                    "headers": [{"name": "Authorization", "value": SECRET}],
                }
            )
        yield servers


async def check_tool(client: Client, session: str, api: StandIn, server: str, kind: str) -> None:
    """Check that the agent calls the tool of a server, and that its result returns."""
    api.plan(ToolUse(f"mcp__{server}__weigh", {"text": "feather"}), Text("It is light."))
    status, reply = await client.turn(session, "Weigh a feather.")
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    assert texts_of_turn(reply["events"]) == "It is light."
    (*_, result) = api.tool_results()
    assert f"{kind} weighed 7" in str(result["content"]), result
    calls = [
        event["params"]["update"]
        for event in reply["events"]
        if event.get("params", {}).get("update", {}).get("sessionUpdate") == "tool_call_update"
    ]
    assert any(call.get("status") == "completed" for call in calls)
    assert SECRET not in str(reply)


async def test_claude_calls_tools_of_stdio_http_and_sse_servers(
    serve: Serve, machine: Path, api: StandIn, remote: list[Json]
) -> None:
    server: LocalServer = await serve()
    client = await server.client()
    # In its first mode the newest adapter asks a model whether a call is safe.
    session = await client.create("claude", mode="default", mcp_servers=[STDIO, *remote])
    for name, kind in (("local", "stdio"), ("http", "http"), ("sse", "sse")):
        await check_tool(client, session, api, name, kind)
    await hibernate(server, session)
    for name, kind in (("local", "stdio"), ("http", "http")):
        await check_tool(client, session, api, name, kind)


async def test_claude_keeps_its_system_prompt_folders_tools_and_limit_after_hibernation(
    serve: Serve, machine: Path, api: StandIn, tmp_path: Path
) -> None:
    more, cwd, other = (tmp_path / name for name in ("more", "cwd", "other"))
    for folder in (more, cwd, other):
        folder.mkdir()
        (folder / "note").write_text(f"a note in {folder.name}")
    server = await serve(workspace_roots=(tmp_path.resolve(),))
    client = await server.client()
    session = await client.create(
        "claude",
        permission="deny-all",
        system="Speak like a pirate.",
        cwd=str(cwd),
        additional_directories=[str(more)],
        allowed_tools=["Bash(echo *)"],
        max_turns=3,
    )

    async def result_of(tool: ToolUse) -> str:
        api.plan(tool, Text("Arr."))
        status, reply = await client.turn(session, "Hello.")
        assert status == 200, reply
        assert "Speak like a pirate." in api.system()
        return str(api.tool_results()[-1]["content"])

    for _ in range(2):
        assert "a note in more" in await result_of(
            ToolUse("Read", {"file_path": str(more / "note")})
        )
        denied = await result_of(ToolUse("Read", {"file_path": str(other / "note")}))
        assert "a note in other" not in denied
        # Allowed without a request for permission, which would be denied.
        assert "ahoy" in await result_of(ToolUse("Bash", {"command": "echo ahoy"}))
        touch = {"command": f"touch {cwd / 'made'}"}
        await result_of(ToolUse("Bash", touch))
        assert not (cwd / "made").exists()
        await hibernate(server, session)
    api.always(ToolUse("Bash", {"command": "echo again"}))
    status, reply = await client.turn(session, "Do it forever.")
    assert (status, reply["code"]) == (502, "agent_failed"), reply
    assert "maximum number of turns" in reply["error"]


async def test_claude_uses_the_key_of_its_app(
    serve: Serve, machine: Path, api: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    server = await serve()
    key = {"env": {"ANTHROPIC_API_KEY": "sk-ant-the-key-of-the-app"}}
    _, reply = await server.admin().post("/admin/tokens", {"name": "shop", **key})
    client = server.anonymous()
    client.token = reply["token"]
    api.plan(Text("Hello."))
    status, reply = await client.turn(await client.create("claude"), "Hello.")
    assert (status, texts_of_turn(reply["events"])) == (200, "Hello."), reply
    other = await server.client("other")
    status, reply = await other.turn(await other.create("claude"), "Hello.")
    assert (status, reply["code"]) == (502, "login_required")
