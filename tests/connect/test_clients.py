"""Real clients and recorded editors, started as ``docs/howto/editors.md`` says."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from server.agents.catalog import find_node

from ..support.acp_sdk import SdkClient, script_blocks
from ..support.editors import Editor, editor
from ..support.harness import ROOT, Client, Json, eventually, run_program

PAGE = (ROOT / "docs" / "howto" / "editors.md").read_text("utf-8")
RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.ndjson"))
NODE = find_node()
COMMAND = ["/srv/clawdforge/.venv/bin/python", "/srv/clawdforge/server"]


def block(name: str) -> str:
    """The code of the page after the comment ``<!-- name -->``."""
    (found,) = re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def here(argv: list[str]) -> list[str]:
    """A command of the page, for this repository and the mock agent."""
    assert argv[:2] == COMMAND, argv
    return [sys.executable, str(ROOT / "server"), *argv[2:-1], "mock-modes"]


def environ_for(client: Client) -> dict[str, str]:
    return {"CLAWDFORGE_TOKEN": str(client.token), "CLAWDFORGE_URL": client.url}


# The settings of the page.


@pytest.mark.parametrize("name", ["zed", "jetbrains"])
async def test_settings_of_the_page_name_the_command(name: str) -> None:
    settings = json.loads(block(name))["agent_servers"]["clawdforge"]
    assert [settings["command"], *settings["args"]] == [*COMMAND, "connect", "--agent", "claude"]
    assert settings["env"].keys() == {"CLAWDFORGE_TOKEN"}


@pytest.mark.parametrize("name", ["codecompanion", "agent-shell"])
async def test_programs_of_the_page_name_the_command(name: str) -> None:
    strings = re.findall(r'"([^"]*)"', block(name))
    first = strings.index(COMMAND[0])
    used = {*strings[first:]}
    assert {*COMMAND, "connect", "--token-file", "--agent"} <= used


@pytest.mark.slow
async def test_python_sdk_starts_the_agent_of_the_page(client: Client, tmp_path: Path) -> None:
    import acp  # slow: see `acp_sdk.py`

    settings = json.loads(block("zed"))["agent_servers"]["clawdforge"]
    program, *argv = here([settings["command"], *settings["args"]])
    me = SdkClient()
    spawned = acp.spawn_agent_process(
        cast(Any, me), program, *argv, env=environ_for(client), cwd=tmp_path
    )
    async with spawned as (agent, process):
        await agent.initialize(protocol_version=acp.PROTOCOL_VERSION)
        made = await agent.new_session(cwd="/", mcp_servers=[])
        assert made.modes is not None
        session = made.session_id
        answer = await agent.prompt(session_id=session, prompt=[acp.text_block("hello")])
        assert (answer.stop_reason, me.texts[session]) == ("end_turn", "echo: hello")
        asking = script_blocks({"permission": {"title": "edit"}})
        assert (await agent.prompt(session_id=session, prompt=asking)).stop_reason == "end_turn"
        assert me.asked == [(session, "edit")]
        hanging = script_blocks({"say": "begun"}, {"hang": True})
        task = asyncio.create_task(agent.prompt(session_id=session, prompt=hanging))
        await me.until_text(session, "begun")
        await agent.cancel(session_id=session)
        assert (await task).stop_reason == "cancelled"
        listed = await agent.list_sessions()
        assert session in [one.session_id for one in listed.sessions]
        await agent.close_session(session_id=session)
    assert process.returncode == 0


@pytest.mark.slow
async def test_acpx_runs_a_prompt_through_the_command_of_the_page(
    client: Client, tmp_path: Path
) -> None:
    (line,) = [line for line in block("toad").splitlines() if line.startswith("acpx ")]
    _, option, command, *rest = shlex.split(line)
    assert (option, rest) == ("--agent", ["exec", "hello"])
    command = shlex.join(here([*shlex.split(command), "--agent", "mock"]))
    acpx = [NODE, str(ROOT / "node_modules" / "acpx" / "dist" / "cli.js")]
    options = ["--format", "json", "--approve-all", "--cwd", str(tmp_path), option, command]
    status, out, err = await run_program(
        *acpx, *options, *rest, HOME=str(tmp_path), **environ_for(client)
    )
    assert status == 0, err
    assert '"text":"echo: hello"' in out


@pytest.mark.slow
async def test_vercel_ai_sdk_gets_answers(client: Client, tmp_path: Path) -> None:
    for source in (Path(__file__).parent / "ai_sdk").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    npm = Path(NODE).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--prefix", str(tmp_path), "--ignore-scripts", "--no-audit", "--no-fund"]
    status, _, err = await run_program(NODE, str(npm), "ci", *options)
    assert status == 0, err
    command = json.dumps(here([*COMMAND, "connect", "--agent", "mock"]))
    status, out, err = await run_program(
        NODE, str(tmp_path / "client.mjs"), COMMAND=command, **environ_for(client)
    )
    assert status == 0, err
    answers = {"text": "echo: hello", "finishReason": "stop", "streamed": "echo: again"}
    assert json.loads(out) == answers


# Recorded editors.


class Replay:
    """Sends the recorded messages of an editor, with the ids of this session.

    Attributes:
        results: of the editor's requests, by method; the last one of each.
    """

    def __init__(self, client: Client, me: Editor, cwd: str) -> None:
        self.client = client
        self.me = me
        self.cwd = cwd
        self.session = ""
        self.asked: Any = None
        self.results: dict[str, Any] = {}
        self.stops: list[str] = []
        self._prompt: Any = None

    async def run(self, lines: list[str]) -> None:
        for line in lines:
            await self.send(line)
        await self.end_prompt()

    async def send(self, line: str) -> None:
        line = line.replace("$SESSION", self.session).replace("$CWD", self.cwd)
        if '"$ASKED"' in line:
            asked = await self.me.until(method="session/request_permission")
            line = line.replace('"$ASKED"', json.dumps(asked["id"]))
        message: Json = json.loads(line)
        method = message.get("method")
        if method is not None and "id" in message:
            await self.end_prompt()
        elif method == "session/cancel":
            await eventually("the turn to run", self.is_running)
        await self.me.ws.send_str(line)
        if method == "session/prompt":
            self._prompt = message["id"]
        elif method is not None and "id" in message:
            self.results[method] = await self.me.response_to(message["id"])
            if method == "session/new":
                self.session = self.results[method]["sessionId"]

    async def is_running(self) -> bool:
        return bool((await self.client.state(self.session))["state"] == "running")

    async def end_prompt(self) -> None:
        if self._prompt is not None:
            result = await self.me.response_to(self._prompt)
            self.stops.append(result["stopReason"])
            self._prompt = None


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
async def test_recorded_editor_is_served(client: Client, tmp_path: Path, recorded: Path) -> None:
    async with editor(client, "/acp?agent=mock-modes") as me:
        replay = Replay(client, me, str(tmp_path))
        await replay.run(recorded.read_text("utf-8").splitlines())
        assert replay.stops == ["end_turn", "end_turn", "cancelled"]
        assert me.text(replay.session).startswith("echo: ")
        methods = {m["method"] for m in me.messages if "method" in m}
        assert methods <= {"session/update", "session/request_permission"}
