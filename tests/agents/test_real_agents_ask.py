"""Real agents with permission ``ask``: none writes without a permission, also after hibernation.

Each agent starts twice, which takes seconds: `make agents` and `.ci/run` run these tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Serve
from ..support import real_agents
from ..support.anthropic_stand_in import (
    Failure,
    Hang,
    Json,
    StandIn,
    Text,
    ToolUse,
    serve_api,
    stand_in,
)
from ..support.harness import Client, LocalServer
from ..support.model_stand_ins import ChatApi, GeminiApi, ResponsesApi

pytestmark = [pytest.mark.agents, pytest.mark.timeout(240)]

KEY = "sk-a-dummy-of-the-tests"


def write_json(path: Path, value: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def claude(_: Path, api: StandIn) -> dict[str, str]:
    return {**api.environ, "CLAUDE_CODE_MAX_RETRIES": "0"}


def codex(home: Path, api: StandIn) -> dict[str, str]:
    """Write the files of ``codex login --with-api-key``, with the stand-in as the provider."""
    write_json(home / ".codex" / "auth.json", {"OPENAI_API_KEY": KEY})
    (home / ".codex" / "config.toml").write_text(
        f"""
model_provider = "stand-in"
check_for_update_on_startup = false
[model_providers.stand-in]
name = "stand-in"
base_url = "{api.url}/v1"
wire_api = "responses"
requires_openai_auth = true
request_max_retries = 0
stream_max_retries = 0
[analytics]
enabled = false
[feedback]
enabled = false
""",
        "utf-8",
    )
    return {}


def gemini(home: Path, api: StandIn) -> dict[str, str]:
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
    }
    write_json(home / ".gemini" / "settings.json", settings)
    return {
        "GEMINI_API_KEY": KEY,
        "GOOGLE_GEMINI_BASE_URL": api.url,
        "GEMINI_MODEL": "gemini-2.5-flash",
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
    }


def qwen(home: Path, api: StandIn) -> dict[str, str]:
    models = ("qwen3-vl-plus", "qwen3-coder-plus")  # it sends images to models of certain names
    provider = {"envKey": "OPENAI_API_KEY", "baseUrl": f"{api.url}/v1"}
    settings = {
        "modelProviders": {"openai": [{"id": name, "name": name, **provider} for name in models]},
        "model": {"name": models[0]},
        "security": {"auth": {"selectedType": "openai"}},
        "general": {"enableAutoUpdate": False},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
    }
    write_json(home / ".qwen" / "settings.json", settings)
    return {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{api.url}/v1",
        "OPENAI_MODEL": models[0],
    }


IMAGES = {"input": ["text", "image"], "output": ["text"]}


def opencode(_: Path, api: StandIn) -> dict[str, str]:
    names = ("model", "other")
    limit = {"context": 100_000, "output": 4_000}
    provider = {
        "npm": "@ai-sdk/anthropic",
        "options": {"baseURL": f"{api.url}/v1", "apiKey": KEY},
        "models": {
            name: {"name": name, "limit": limit, "attachment": True, "modalities": IMAGES}
            for name in names
        },
    }
    config = {
        "provider": {"stand-in": provider},
        "enabled_providers": ["stand-in"],
        "model": "stand-in/model",
        "autoupdate": False,
        "share": "disabled",
    }
    return {
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        "OPENCODE_PURE": "1",
        "npm_config_registry": "http://127.0.0.1:9/",
    }


QUESTION = "Which database?"
DATABASE = {
    "question": QUESTION,
    "header": "Database",
    "options": [
        {"label": "SQLite", "description": "A file"},
        {"label": "Postgres", "description": "A server"},
    ],
    "multiSelect": False,
}
ASK_USER = ToolUse("AskUserQuestion", {"questions": [DATABASE]})


def patch(path: Path) -> ToolUse:
    """A call of Codex's tool, which runs JavaScript that calls other tools."""
    text = f"*** Begin Patch\n*** Add File: {path}\n+written\n*** End Patch\n"
    return ToolUse("exec", {"input": f"await tools.apply_patch({json.dumps(text)})"})


@dataclasses.dataclass(frozen=True)
class Real:
    """One real agent.

    Attributes:
        name: acpx's name of the agent.
        command: the name of the program that acpx starts.
        find: returns the path of that program.
        serve_api: starts the stand-in for its model's API.
        prepare: writes its settings into a home and returns its environment variables.
        writes: returns the tool call that writes a file.
        model: a model for ``set_model``; None if the agent has only one.
        requested: a part of the name of that model in requests to the API.
        calls: returns the tool calls that call a tool of an MCP server, from its name and
            arguments; None if the model gets the definition of the tool.
        question: the tool call that asks the user, which some agents refuse over ACP.
        other_mode: a mode in which it does not begin, and which is not the one that asks.
        asks_with: values of its options with which it may ask.
    """

    name: str
    command: str
    find: Callable[[], Path]
    serve_api: Callable[[], contextlib.AbstractAsyncContextManager[StandIn]]
    prepare: Callable[[Path, StandIn], dict[str, str]]
    writes: Callable[[Path], ToolUse]
    question: ToolUse
    other_mode: str
    model: str | None = None
    requested: str = ""
    calls: Callable[[str, Json], tuple[ToolUse, ...]] | None = None
    asks_with: Json | None = None


def tool(name: str, path_key: str) -> Callable[[Path], ToolUse]:
    return lambda path: ToolUse(name, {path_key: str(path), "content": "written"})


def claude_with(find: Callable[[], Path]) -> Real:
    return Real(
        "claude",
        "claude-agent-acp",
        find,
        stand_in,
        claude,
        tool("Write", "file_path"),
        ASK_USER,
        "acceptEdits",
        model="haiku",
        requested="haiku",
    )


def calls_by_script(name: str, arguments: Json) -> tuple[ToolUse, ...]:
    """Call a tool that codex defers."""
    return (ToolUse("exec", {"input": f"text(await tools.{name}({json.dumps(arguments)}))"}),)


def calls_after_search(name: str, arguments: Json) -> tuple[ToolUse, ...]:
    """Call a tool that qwen defers."""
    search = ToolUse("tool_search", {"query": f"select:{name}"})
    return search, ToolUse("tool_call", {"name": name, "arguments": arguments})


AGENTS = {
    "claude-0.76": claude_with(real_agents.find_claude_adapter),
    "claude-newest": claude_with(real_agents.find_newest_claude_adapter),
    "codex": Real(
        "codex",
        "codex-acp",
        lambda: real_agents.find_program("codex-acp"),
        lambda: serve_api(ResponsesApi),
        codex,
        patch,
        ToolUse("request_user_input", {"questions": [{**DATABASE, "id": "database"}]}),
        "agent-full-access",
        model="gpt-6-sol",
        requested="gpt-6-sol",
        calls=calls_by_script,
        asks_with={"collaboration_mode": "plan"},
    ),
    "gemini": Real(
        "gemini",
        "gemini",
        lambda: real_agents.find_program("gemini"),
        lambda: serve_api(GeminiApi),
        gemini,
        tool("write_file", "file_path"),
        ToolUse("ask_user", {"questions": [{**DATABASE, "type": "choice"}]}),
        "autoEdit",
        model="gemini-2.5-pro",
        requested="gemini-2.5-pro",
    ),
    "opencode": Real(
        "opencode",
        "opencode",
        real_agents.find_opencode,
        stand_in,
        opencode,
        tool("write", "filePath"),
        ToolUse("question", {"questions": [DATABASE]}),
        "plan",
        model="stand-in/other",
        requested="other",
    ),
    "qwen": Real(
        "qwen",
        "qwen",
        lambda: real_agents.find_program("qwen"),
        lambda: serve_api(ChatApi),
        qwen,
        tool("write_file", "file_path"),
        ToolUse("ask_user_question", {"questions": [DATABASE]}),
        "plan",
        model="qwen3-coder-plus(openai)",
        requested="qwen3-coder-plus",
        calls=calls_after_search,
    ),
}


@pytest.fixture(params=AGENTS)
def real(request: pytest.FixtureRequest) -> Real:
    return AGENTS[request.param]


@pytest.fixture
async def api(real: Real) -> AsyncIterator[StandIn]:
    async with real.serve_api() as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path, real: Real, api: StandIn, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who has this agent on the PATH and no network."""
    programs, home = tmp_path / "bin", tmp_path / "home"
    for folder in (programs, home):
        folder.mkdir()
    try:
        (programs / real.command).symlink_to(real.find())
    except real_agents.NotInstalledError as error:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))
    (programs / "node").symlink_to(real_agents.NODE / "bin/node")
    settings = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9"),
        **real.prepare(home, api),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("IS_SANDBOX", raising=False)
    return home


async def hibernate(server: LocalServer, session: str) -> None:
    found = server.services.sessions.cached[session]
    assert await found.agent.hibernate()


async def until_asked(
    client: Client, session: str, turn: asyncio.Task[Any], field: str = "pending_permissions"
) -> list[Json]:
    """Wait until the agent asks during a turn; return that field of the session's state."""
    asked: list[Json] = []
    while not asked:
        assert not turn.done(), f"the agent did not ask: {turn.result()}"
        await asyncio.wait({turn}, timeout=0.05)
        asked = (await client.state(session))[field]
    return asked


async def write(
    client: Client, session: str, api: StandIn, real: Real, name: str, kind: str = "allow_once"
) -> None:
    """Make the agent write a file. It must request a permission first, and obey the outcome."""
    path = Path((await client.state(session))["cwd"]) / name

    def answer(body: Json) -> Text | ToolUse:
        """The tool call, once; requests that the agent sends between two turns get a text."""
        said = json.dumps(body)
        is_new = f"Write {name}." in said and str(path) not in said
        return real.writes(path) if is_new else Text("Done.")

    api.always(answer)
    # Over REST, whose timeout allows for a slow start of the agent.
    turn = asyncio.create_task(client.turn(session, f"Write {name}."))
    asked = await until_asked(client, session, turn)
    assert not path.exists()
    options = {option["kind"]: option["optionId"] for option in asked[0]["request"]["options"]}
    url = f"/sessions/{session}/permissions/{asked[0]['request_id']}"
    assert (await client.post(url, {"option_id": options[kind]}))[0] == 200
    status, reply = await turn
    assert status == 200, reply
    assert path.exists() == (kind == "allow_once")
    api.always(Text("Done."))


async def test_agent_requests_permission_before_it_writes_also_after_hibernation(
    serve: Serve, machine: Path, real: Real, api: StandIn
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    session = await client.create(real.name, permission="ask")
    await write(client, session, api, real, "first")
    if real.model is not None:
        socket = await client.connect(session)
        await socket.send("set_model", model=real.model)
        status, reply = await client.turn(session, "Which model are you?")
        assert status == 200, reply
        assert real.requested in api.requests[-1]["model"]
        await socket.close()

    await hibernate(server, session)
    await write(client, session, api, real, "second")
    await write(client, session, api, real, "third", "reject_once")
    assert real.requested in api.requests[-1]["model"]

    api.always(Failure(401, "Incorrect API key provided."))
    status, reply = await client.turn(session, "Go on.")
    assert (status, reply["code"], reply["retryable"]) == (502, "login_required", False), reply
    assert isinstance(reply["auth_methods"], list)


CLAUDES = [AGENTS["claude-0.76"], AGENTS["claude-newest"]]


def tools_of(api: StandIn) -> set[str]:
    return {tool["name"] for tool in api.requests[-1]["tools"]}


@pytest.mark.parametrize("real", CLAUDES, ids=["0.76", "newest"])
async def test_claude_asks_its_user_with_a_form_if_clients_can_show_it(
    serve: Serve, machine: Path, real: Real, api: StandIn
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    session = await client.create(real.name)
    api.always(Text("Done."))
    status, reply = await client.turn(session, "Hello.")
    assert status == 200, reply
    assert "AskUserQuestion" not in tools_of(api)

    status, state = await client.call("PATCH", f"/sessions/{session}", {"elicitation": "ask"})
    assert (status, state["elicitation"]) == (200, "ask")
    api.plan(ASK_USER)
    turn = asyncio.create_task(client.turn(session, "Ask me."))
    asked = await until_asked(client, session, turn, "pending_elicitations")
    assert "AskUserQuestion" in tools_of(api)
    request = asked[0]["request"]
    assert (request["mode"], request["message"]) == ("form", QUESTION)
    (name, field) = next(iter(request["requestedSchema"]["properties"].items()))
    assert [one["const"] for one in field["oneOf"]] == ["SQLite", "Postgres"]
    url = f"/sessions/{session}/elicitations/{asked[0]['request_id']}"
    wrong = {"action": "accept", "content": {name: "Oracle"}}
    status, reply = await client.post(url, wrong)
    assert (status, reply["field"]) == (400, name)
    answer = {"action": "accept", "content": {name: "Postgres"}}
    assert await client.post(url, answer) == (200, {"ok": True})
    status, reply = await turn
    assert status == 200, reply
    assert "Postgres" in json.dumps(api.tool_results()[-1])
    starts = [e for e in await client.events(session) if e["type"] == "turn_start"]
    assert [start["context"] for start in starts] == ["new", "kept"]


STEERABLE = ("claude-0.76", "claude-newest", "codex")


@pytest.mark.parametrize("real", [AGENTS[name] for name in STEERABLE], ids=STEERABLE)
async def test_agent_accepts_a_prompt_for_its_running_turn(
    serve: Serve, machine: Path, real: Real, api: StandIn
) -> None:
    server = await serve(default_agent=None)
    client = await server.client()
    session = await client.create(real.name, permission="ask")
    socket = await client.connect(session, after=0)
    path = Path((await client.state(session))["cwd"]) / "file"
    api.always(Text("Done."))
    api.plan(real.writes(path))
    turn = asyncio.create_task(client.turn(session, "Write it."))
    asked = await until_asked(client, session, turn)
    assert (await client.state(session))["steering"] is True
    await socket.send("prompt", prompt="To the left.", steer=True, id="s1")
    accepted = await socket.until("accepted", id="s1")
    assert (accepted["turn_index"], accepted["steered"]) == (1, True)
    assert (await socket.until("turn_steer"))["prompt"][0]["text"] == "To the left."

    options = {option["kind"]: option["optionId"] for option in asked[0]["request"]["options"]}
    answer = {"option_id": options["allow_once"]}
    await client.post(f"/sessions/{session}/permissions/{asked[0]['request_id']}", answer)
    status, reply = await turn
    assert (status, reply["stop_reason"]) == (200, "end_turn"), reply
    assert json.dumps(api.requests[-1]).count("To the left.") == 1

    # Without a running turn it is an ordinary prompt, and the agent gets it once.
    body = {"prompt": "To the right.", "steer": True}
    status, reply = await client.post(f"/sessions/{session}/turn", body)
    assert (status, reply["turn_index"], reply["steered"]) == (200, 2, False), reply
    assert json.dumps(api.requests[-1]).count("To the right.") == 1

    if real.name == "claude":  # which stops its answer for the prompt
        api.plan(Hang("So "))
        await socket.send("prompt", prompt="Hang.")
        await socket.until_text("So ")
        await socket.send("prompt", prompt="Go on.", steer=True, id="s2")
        assert (await socket.until("accepted", id="s2"))["steered"] is True
        end = await socket.until("turn_end", turn_index=3)
        assert (end["stop_reason"], end["error"]) == ("end_turn", None)
        assert json.dumps(api.requests[-1]).count("Go on.") == 1
