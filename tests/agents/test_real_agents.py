"""Sessions of real agents from npm, with a stand-in for their model's API."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ..conftest import Serve
from ..support import real_agents
from ..support.anthropic_stand_in import Failure, Hang, StandIn, Text, ToolUse, stand_in, texts_of
from ..support.harness import Client, Json, LocalServer, Socket
from ..support.harness import texts_of as texts_of_turn

# Each step has a timeout of its own; together they take long on a busy machine.
pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]

WritesFile = Callable[[Path], ToolUse]


@pytest.fixture
async def api() -> AsyncIterator[StandIn]:
    async with stand_in() as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path, api: StandIn, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who has the agents on the PATH."""
    programs = tmp_path / "bin"
    home = tmp_path / "home"
    for folder in (programs, home):
        folder.mkdir()
    try:
        found = {
            "claude": real_agents.find_claude(),
            "claude-agent-acp": real_agents.find_newest_claude_adapter(),
            "opencode": real_agents.find_opencode(),
        }
    except real_agents.NotInstalledError as error:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))
    for name, program in {**found, "node": real_agents.NODE / "bin/node"}.items():
        (programs / name).symlink_to(program)
    settings = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(home),
        **api.environ,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    # With it claude accepts flags as root that it otherwise rejects.
    monkeypatch.delenv("IS_SANDBOX", raising=False)
    return home


async def check_turns(client: Client, session: str, api: StandIn, writes: WritesFile) -> Socket:
    """Check turns with text, an allowed and a rejected tool, a cancel and an error of the API."""
    api.always(Text("and so on"))
    api.plan(Text("Hello from the stand-in."))
    # Over REST, whose timeout allows for a slow start of the agent.
    status, reply = await client.turn(session, "Say hello.")
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    assert texts_of_turn(reply["events"]) == "Hello from the stand-in."
    socket = await client.connect(session, after=0)
    await socket.until("turn_end")
    assert "Say hello." in "".join(texts_of(api.requests[0]))

    folder = Path((await client.state(session))["cwd"])
    for kind in ("allow_once", "reject_once"):
        api.plan(writes(folder / kind))
        await socket.send("prompt", prompt=f"Write {kind}.")
        asked = await socket.until("permission_request")
        options = {o["kind"]: o["optionId"] for o in asked["request"]["options"]}
        await socket.send("permission", request_id=asked["request_id"], option_id=options[kind])
        assert (await socket.until("turn_end"))["stop_reason"] in ("end_turn", "cancelled")
        assert (folder / kind).exists() == (kind == "allow_once")

    # After the first word: an earlier cancel may leave an error for the next turn in claude's
    # adapter (docs/howto/agents.md).
    api.plan(Hang("So "))
    await socket.send("prompt", prompt="Hang.")
    await socket.until_text("So ")
    await socket.send("cancel")
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)

    api.always(Failure(400, "no such thing"))
    end = await socket.turn("Fail.")
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "agent_failed")
    assert "no such thing" in end["error"]["message"]
    api.always(Text("and so on"))
    assert (await socket.turn("Go on."))["error"] is None
    return socket


def claude_writes(path: Path) -> ToolUse:
    return ToolUse("Write", {"file_path": str(path), "content": "written"})


def opencode_writes(path: Path) -> ToolUse:
    return ToolUse("write", {"filePath": str(path), "content": "written"})


async def agents_of(client: Client) -> dict[str, Json]:
    _, reply = await client.get("/agents")
    return {agent["name"]: agent for agent in reply["agents"]}


async def test_installed_claude_is_the_default_and_completes_turns(
    serve: Serve, machine: Path, api: StandIn
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    agents = await agents_of(client)
    assert [name for name, one in agents.items() if one["default"]] == ["claude"]
    status, reply = await client.post("/sessions", {"permission": "ask"})
    assert (status, reply["agent"]) == (200, "claude")
    session = reply["session_id"]
    socket = await check_turns(client, session, api, claude_writes)

    await hibernate(server, session)
    status, reply = await client.turn(session, "What did I say first?")
    assert status == 200, reply
    await socket.until("turn_end")
    assert socket.contexts()[-1] == "kept"
    assert "Say hello." in "".join(texts_of(api.requests[-1]))


async def hibernate(server: LocalServer, session: str) -> None:
    found = server.services.sessions.cached[session]
    assert await found.agent.hibernate()


async def test_claude_completes_turns_with_the_cli_backend(
    serve: Serve, machine: Path, api: StandIn
) -> None:
    server = await serve(default_agent=None, agent_backend="cli")
    client = await server.client()
    session = await client.create("claude", permission="approve-all")
    path = Path((await client.state(session))["cwd"]) / "file"
    api.plan(claude_writes(path), Text("Written."), Hang("So"))
    status, reply = await client.turn(session, "Write.")
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    assert texts_of_turn(reply["events"]).endswith("Written.")  # claude may begin with a warning
    assert path.read_text() == "written"
    home = server.services.settings.data_dir / "homes" / session
    assert (home / ".claude").exists()  # not the home of acpx, nor that of the server's user
    assert not (machine / ".claude").exists()

    socket = await client.connect(session)
    api.asked.clear()
    await socket.send("prompt", prompt="Hang.")
    await api.asked.wait()
    await socket.send("cancel")
    assert (await socket.until("turn_end"))["stop_reason"] == "cancelled"
    assert "Write." in "".join(texts_of(api.requests[-1]))


async def test_claude_without_a_login_fails_with_login_required(
    serve: Serve, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    client = await (await serve()).client()
    status, reply = await client.turn(await client.create("claude"), "hello")
    assert (status, reply["code"], reply["retryable"]) == (502, "login_required", False)


async def test_opencode_completes_turns(
    serve: Serve, machine: Path, api: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = {
        "npm": "@ai-sdk/anthropic",
        "options": {"baseURL": f"{api.url}/v1", "apiKey": "a dummy"},
        "models": {"model": {"name": "Stand-in", "limit": {"context": 100_000, "output": 4_000}}},
    }
    config = {
        "provider": {"stand-in": provider},
        "enabled_providers": ["stand-in"],
        "model": "stand-in/model",
        "permission": {"edit": "ask"},
        "autoupdate": False,
        "share": "disabled",
    }
    for name, value in {
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        # No connections to other hosts.
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        "OPENCODE_PURE": "1",
        "npm_config_registry": "http://127.0.0.1:9/",
    }.items():
        monkeypatch.setenv(name, value)
    client = await (await serve()).client()
    session = await client.create("opencode", permission="ask")
    await check_turns(client, session, api, opencode_writes)
