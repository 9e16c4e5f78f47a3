"""The real fast-agent, which runs on Python and never asks: its work and its table row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from server.config import AgentCommand

from ..conftest import Serve
from ..support import fast_agent
from ..support.anthropic_stand_in import Failure, Text, ToolUse, stand_in
from ..support.harness import texts_of
from ..support.real_agents import NotInstalledError
from .test_real_agents_ask import KEY, Real, hibernate
from .test_real_agents_mcp import STDIO
from .test_real_agents_table import (
    SYSTEM,
    accepts_image,
    calls_mcp_tool,
    cancels,
    check_row,
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
        session = await client.create(NAME, system=SYSTEM)
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
        other = await client.create(NAME, mcp_servers=[STDIO])
        has_mcp = await calls_mcp_tool(client, other, api, as_real())

        api.always(Failure(401, "invalid x-api-key"))
        status, reply = await client.turn(session, "Go on.")
        assert (status, reply["stop_reason"]) == (200, "refusal"), reply
        assert "401" in texts_of(reply["events"])
    cells = ["yes" if able else "no" for able in (has_image, has_system, has_mcp)]
    further = ["no", *("yes" if able else "no" for able in (can_steer, forks))]
    check_row(NAME, f"| {NAME} | {' | '.join([*cells, *further])} | never asks |")


def as_real() -> Real:
    """The agent for the helpers of the other tests."""
    return Real(NAME, NAME, Path, stand_in, lambda *_: {}, lambda _: ToolUse("bash", {}))
