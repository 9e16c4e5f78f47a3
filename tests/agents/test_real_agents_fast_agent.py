"""The real fast-agent, which runs on Python and asks only for tools of MCP servers."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from server.agent_commands import AgentCommand

from ..conftest import Serve
from ..support import fast_agent
from ..support.anthropic_stand_in import Failure, StandIn, Text, ToolUse, stand_in
from ..support.harness import Client, Json, texts_of
from ..support.real_agents import NotInstalledError
from .test_real_agents_ask import ASK_USER, KEY, Real, hibernate, until_asked
from .test_real_agents_mcp import STDIO
from .test_real_agents_table import (
    SYSTEM,
    accepts_image,
    asks_user,
    cancels,
    change_settings,
    check_row,
    check_settings,
    name_of_tool,
    turn,
)

pytestmark = [pytest.mark.agents, pytest.mark.timeout(600)]

NAME = "fast-agent"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentCommand:
    """The command of fast-agent for a user without a network."""
    try:
        argv = fast_agent.find_fast_agent()
    except NotInstalledError as error:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    environ = {
        "NO_PROXY": "127.0.0.1",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "ANTHROPIC_API_KEY": KEY,
        "FAST_AGENT_RETRIES": "0",
    }
    return AgentCommand((*argv, "--model", "haiku", "--shell"), environ)


async def weigh(client: Client, session: str, api: StandIn, name: str, kind: str) -> Json:
    """Call the MCP server's tool, for which the agent asks. Return the model's last request."""
    api.plan(ToolUse(name, {"text": "feather"}))
    weighing = asyncio.create_task(client.turn(session, "Weigh a feather."))
    asked = await until_asked(client, session, weighing)
    options = {option["kind"]: option["optionId"] for option in asked[0]["request"]["options"]}
    url = f"/sessions/{session}/permissions/{asked[0]['request_id']}"
    assert (await client.post(url, {"option_id": options[kind]}))[0] == 200
    status, reply = await weighing
    assert status == 200, reply
    return api.requests[-1]


async def test_fast_agent_works_and_keeps_its_conversation(
    serve: Serve, command: AgentCommand
) -> None:
    async with stand_in() as api:
        environ = {**command.env, "ANTHROPIC_BASE_URL": api.url}
        settings: Any = {
            "default_agent": None,
            "agents": {NAME: AgentCommand(command.argv, environ)},
        }
        server = await serve(**settings)
        client = await server.client()
        asking: Json = {"permission": "ask", "elicitation": "ask"}
        session = await client.create(NAME, system=SYSTEM, **asking)
        api.always(Text("Done."))
        await turn(client, session, "Hello.")
        has_system = SYSTEM in json.dumps(api.requests[-1])
        assert (await client.state(session))["asks"] is False
        path = Path((await client.state(session))["cwd"]) / "written"
        api.plan(ToolUse("bash", {"command": f"echo written > '{path}'"}))
        await turn(client, session, "Write it.")
        assert path.read_text("utf-8") == "written\n"
        has_image = await accepts_image(client, session, api)
        can_steer = await cancels(client, session, api)
        await turn(client, session, "Go on.")

        await hibernate(server, session)
        await turn(client, session, "What did I say?")
        assert "Write it." in json.dumps(api.requests[-1])
        starts = [one for one in await client.events(session) if one["type"] == "turn_start"]
        assert [one["context"] for one in starts] == ["new", *["kept"] * (len(starts) - 1)]
        capabilities = server.services.sessions.cached[session].agent.reported.capabilities
        forks = (capabilities.get("sessionCapabilities") or {}).get("fork") is not None
        other = await client.create(NAME, mcp_servers=[STDIO], **asking)
        await turn(client, other, "Hello.")
        await hibernate(server, other)
        name = await name_of_tool(client, other, api)
        assert name is not None
        allowed = await weigh(client, other, api, name, "allow_once")
        assert json.dumps(allowed).count("stdio weighed 7") == 1
        rejected = await weigh(client, other, api, name, "reject_once")
        assert json.dumps(rejected).count("stdio weighed 7") == 1
        mode = (await client.state(session))["mode"]
        real = Real(
            NAME, NAME, Path, stand_in, lambda *_: {}, lambda _: ToolUse("bash", {}), ASK_USER, mode
        )
        question = await asks_user(client, session, api, real)

        # It has one mode and no choice of models.
        has_models = await change_settings(client, session, real)
        await check_settings(server, client, session, api, real)
        await server.stop()
        server = await serve(**settings)
        client = Client(server.url, client.token, client.http)
        await check_settings(server, client, session, api, real)
        assert "What did I say?" in json.dumps(api.requests[-1])

        api.always(Failure(401, "invalid x-api-key"))
        status, reply = await client.turn(session, "Go on.")
        assert (status, reply["stop_reason"]) == (200, "refusal"), reply
        assert "401" in texts_of(reply["events"])
    cells = ["yes" if able else "no" for able in (has_image, has_system)]
    further = ["yes" if able else "no" for able in (can_steer, forks, has_models)]
    check_row(NAME, f"| {NAME} | {' | '.join([*cells, 'yes', question, *further])} | no mode |")
