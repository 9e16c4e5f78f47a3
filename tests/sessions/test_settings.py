"""Settings of an agent: they are in force at each prompt, or the prompt is not run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from server.agent_commands import AgentCommand
from server.agents.host.backend import HostBackend
from server.errors import not_stored
from server.storage.writer import DatabaseWriter

from ..conftest import Serve, Spawn
from ..support.acp_client import ResponseError, connect
from ..support.engine import only_sqlite
from ..support.harness import (
    Client,
    Clock,
    Json,
    LocalServer,
    Socket,
    eventually,
    local_server,
    mock_agent,
    new_client,
    script,
    texts_of,
)

REPORT = script({"report": True})
WRITE = script({"write": "file"})
FULL = {"mode": "code", "model": "mock-large", "config_options": {"thought_level": "high"}}


def asking(*flags: str) -> AgentCommand:
    """An agent that asks in its mode ``ask`` only, and starts in another mode."""
    argv = mock_agent("--modes", "--resets", "--auto", *flags).argv
    return AgentCommand(argv, asks_in="ask")


AGENTS: dict[str, AgentCommand] = {
    "resets": mock_agent("--modes", "--resets"),
    "asking": asking(),
    "asking-options": asking("--options-only"),
    "quiet": mock_agent("--modes", "--resets", "--quiet"),
    "models": mock_agent("--modes", "--resets", "--models"),
    "options": mock_agent("--modes", "--resets", "--options-only"),
    "no-load": mock_agent("--modes", "--no-load"),
    "refuses": mock_agent("--modes", "--resets", "--refuse-mode=code"),
    "pretends": mock_agent("--modes", "--resets", "--pretend-mode"),
    "model-sets-mode": mock_agent("--modes", "--model-sets-mode"),
    "plain": mock_agent("--system-echo"),
    "never": AgentCommand(mock_agent().argv, asks_in=None),
    "claude": mock_agent("--modes", "--system-echo"),
    "asks-first": AgentCommand(mock_agent("--modes").argv, asks_in="ask"),
    "asks-without-modes": AgentCommand(mock_agent().argv, asks_in="ask"),
    "commands": mock_agent("--commands"),
    "hanging": mock_agent("--modes", "--hang-mode"),
    "switches": mock_agent("--modes", "--resets", "--boolean"),
}
CLOCK = Clock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("settings") / "data"
    options: Json = {"agents": AGENTS, "default_agent": "plain", "agent_idle_secs": 60}
    async with local_server(folder, CLOCK, **options) as server:
        yield server


async def settings_of(client: Client, session: str) -> Json:
    """Run a prompt and return the settings in which the agent ran it."""
    status, reply = await client.turn(session, REPORT)
    assert status == 200, reply
    told = json.loads(texts_of(reply["events"]))["session"]
    return {"mode": told["mode"], **told["config"]}


async def notices(client: Client, session: str) -> list[Json]:
    entries = await client.events(session)
    left_out = ("type", "seq", "ts", "turn_index")
    return [
        {key: value for key, value in entry.items() if key not in left_out}
        for entry in entries
        if entry["type"] == "notice"
    ]


async def hibernate(server: LocalServer, client: Client, session: str) -> None:
    CLOCK.advance(61)
    await server.services.sessions.sweeper.sweep()
    await client.until_hibernated(session)


async def kill_agent(server: LocalServer, client: Client, session: str) -> None:
    _, reply = await client.turn(session, REPORT)
    os.kill(json.loads(texts_of(reply["events"]))["pid"], signal.SIGKILL)
    await client.until_hibernated(session)


async def kill_host(server: LocalServer, client: Client, session: str) -> None:
    backend = server.services.sessions.backend
    assert isinstance(backend, HostBackend)
    restarts = backend.restarts
    _, reply = await client.turn(session, REPORT)
    host = json.loads(texts_of(reply["events"]))["ppid"]
    os.kill(host, signal.SIGKILL)
    await eventually("the host to be replaced", lambda: backend.restarts > restarts)
    await client.until_hibernated(session)


FULL_SET = {"mode": "code", "model": "mock-large", "thought_level": "high"}
RESTORED = [
    {"notice": "restored", "setting": "model", "value": "mock-large"},
    {"notice": "restored", "setting": "thought_level", "value": "high"},
    {"notice": "restored", "setting": "mode", "value": "code"},
]


@pytest.mark.parametrize(
    ("agent", "end"),
    [
        ("resets", hibernate),
        ("quiet", kill_agent),
        ("no-load", hibernate),
        ("options", kill_host),
    ],
)
async def test_settings_of_creation_are_in_force_at_each_prompt(
    server: LocalServer, client: Client, agent: str, end: Any
) -> None:
    session = await client.create(agent, **FULL)
    assert await settings_of(client, session) == FULL_SET
    assert await notices(client, session) == []
    await end(server, client, session)
    assert await settings_of(client, session) == FULL_SET
    assert await notices(client, session) == RESTORED
    state = await client.state(session)
    assert (state["mode"], state["model"]) == ("code", "mock-large")
    if agent != "quiet":
        assert state["modes"]["currentModeId"] == "code"
        assert state["models"]["currentModelId"] == "mock-large"


@pytest.mark.parametrize("agent", ["models", "options"])
async def test_settings_of_frames_are_restored_like_those_of_creation(
    server: LocalServer, client: Client, agent: str
) -> None:
    session = await client.create(agent)
    socket = await client.connect(session)
    await socket.send("set_mode", mode="code")
    await socket.send("set_model", model="mock-large")
    await socket.send("set_config_option", key="thought_level", value="high")
    end = await socket.turn(REPORT)  # it waits for the changes
    assert end["stop_reason"] == "end_turn"
    told = json.loads(socket.text(1))["session"]
    assert {"mode": told["mode"], **told["config"]} == FULL_SET
    state = await client.state(session)
    assert state["models"]["currentModelId"] == "mock-large"
    assert [one["modelId"] for one in state["models"]["availableModels"]] == [
        "mock-small",
        "mock-large",
    ]
    assert state["modes"]["currentModeId"] == "code"
    await hibernate(server, client, session)
    assert await settings_of(client, session) == FULL_SET
    assert await notices(client, session) == RESTORED


async def test_setting_made_during_hibernation_is_in_force_at_the_next_prompt(
    server: LocalServer, client: Client
) -> None:
    socket = await hibernated_session(server, client)
    await socket.send("set_mode", mode="code")
    await socket.turn(REPORT)
    assert json.loads(socket.text(2))["session"]["mode"] == "code"


async def hibernated_session(server: LocalServer, client: Client) -> Socket:
    """The socket of a session whose agent has reported its settings and sleeps."""
    session = await client.create("resets")
    await client.turn(session, "hello")
    await hibernate(server, client, session)
    return await client.connect(session)


async def test_setting_that_a_hibernated_agent_refuses_is_a_bad_request(
    server: LocalServer, client: Client
) -> None:
    socket = await hibernated_session(server, client)
    await socket.send("set_mode", mode="no-such")
    assert (await socket.until("error"))["code"] == "bad_request"
    await socket.send("set_mode", mode="code")
    await socket.turn(REPORT)
    assert json.loads(socket.text(2))["session"]["mode"] == "code"


@pytest.mark.slow
async def test_settings_are_in_force_after_server_was_killed(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    agents = json.dumps({"resets": list(AGENTS["resets"].argv)})
    server = await spawn(AGENTS=agents, DEFAULT_AGENT="resets")
    client = await new_client(server.url, http)
    session = await client.create("resets", config_options=FULL["config_options"])
    socket = await client.connect(session)
    await socket.send("set_mode", mode="code")
    await socket.send("set_model", model="mock-large")
    await socket.turn("hello")
    await server.kill()
    server = await spawn(AGENTS=agents, DEFAULT_AGENT="resets")
    client = Client(server.url, client.token, http)
    assert (await client.state(session))["model"] == "mock-large"
    assert await settings_of(client, session) == FULL_SET
    assert await notices(client, session) == RESTORED


@only_sqlite
async def test_prewarmed_agent_gets_the_settings_of_its_session(serve: Serve) -> None:
    server = await serve(
        agents={"mock": mock_agent("--modes")}, default_agent="mock", prewarmed_agents=1
    )
    client = await server.client()
    prewarmer = server.services.sessions.prewarmer
    await eventually("an agent to be ready", lambda: any(one.is_ready for one in prewarmer.agents))
    (spare,) = prewarmer.agents
    session = await client.create("mock", mode="code", config_options=FULL["config_options"])
    assert session == spare.id
    told = await settings_of(client, session)
    assert (told["mode"], told["thought_level"]) == ("code", "high")
    assert await notices(client, session) == []


async def test_agent_in_the_wanted_settings_gets_no_setting_requests(
    serve: Serve, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    server = await serve(agents={"mock": mock_agent("--modes", f"--set-file={asked}")})
    client = await server.client()
    session = await client.create("mock", mode="ask", model="mock-small")
    await client.turn(session, "hello")
    assert not asked.exists()
    other = await client.create("mock", mode="code")
    for _ in range(2):
        await client.turn(other, "hello")
    assert asked.read_text() == "set_mode=code\n"


@pytest.mark.parametrize(
    ("agent", "body", "setting", "value"),
    [
        ("resets", {"mode": "no-such"}, "mode", "no-such"),
        ("plain", {"mode": "code"}, "mode", "code"),
        ("options", {"mode": "no-such"}, "mode", "no-such"),
        ("refuses", {"mode": "code"}, "mode", "code"),
        ("pretends", {"mode": "code"}, "mode", "code"),
        ("resets", {"model": "no-such"}, "model", "no-such"),
        ("models", {"model": "no-such"}, "model", "no-such"),
        ("plain", {"model": "mock-large"}, "model", "mock-large"),
        ("resets", {"config_options": {"thought_level": "no-such"}}, "thought_level", "no-such"),
        ("resets", {"config_options": {"no-such": "high"}}, "no-such", "high"),
    ],
)
async def test_prompt_is_not_run_if_agent_cannot_be_put_into_a_setting(
    client: Client, agent: str, body: Json, setting: str, value: str
) -> None:
    session = await client.create(agent, **body)
    for _ in range(2):
        status, reply = await client.turn(session, script({"touch": "seen"}))
        assert (status, reply["code"], reply["events"]) == (400, "bad_request", [])
        assert setting in reply["error"]
        assert value in reply["error"]
    assert not (Path((await client.state(session))["cwd"]) / "seen").exists()


async def test_setting_can_be_changed_after_a_refused_one(client: Client) -> None:
    session = await client.create("resets", mode="no-such")
    assert (await client.turn(session, "hello"))[1]["code"] == "bad_request"
    socket = await client.connect(session)
    await socket.send("set_mode", mode="code")
    await socket.turn(REPORT)
    assert json.loads(socket.text())["session"]["mode"] == "code"


async def test_refused_restored_setting_fails_turn(serve: Serve, tmp_path: Path) -> None:
    server = await serve(agents={"mock": mock_agent("--modes", "--resets")}, data_dir=tmp_path)
    client = await server.client()
    session = await client.create("mock", mode="code")
    await client.turn(session, "hello")
    await server.stop()
    server = await serve(
        agents={"mock": mock_agent("--modes", "--resets", "--refuse-mode=code")},
        data_dir=tmp_path,
    )
    again = Client(server.url, client.token, client.http)
    for _ in range(2):
        status, reply = await again.turn(session, script({"touch": "seen"}))
        assert status in (400, 502)
        assert "mode" in reply["error"]
        assert "code" in reply["error"]
    assert not (Path((await again.state(session))["cwd"]) / "seen").exists()


async def test_prompt_that_waits_for_settings_can_be_cancelled(
    serve: Serve, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    hanging = mock_agent("--modes", "--hang-mode", f"--set-file={asked}")
    client = await (await serve(agents={"mock": hanging})).client()
    session = await client.create("mock", mode="code")
    socket = await client.connect(session)
    await socket.send("prompt", prompt="hello")
    await eventually("the agent to be asked", asked.exists)
    await socket.send("cancel")
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)


async def test_prompts_after_a_failed_change_are_not_run(client: Client) -> None:
    socket = await client.connect(await client.create("resets"))
    await socket.turn("hello")
    await socket.send("set_mode", mode="no-such", id="change")
    await socket.send("prompt", prompt="not in another mode")
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "bad_request")
    assert "no-such" in end["error"]["message"]
    await socket.turn(script({"history": True}))
    assert "not in another mode" not in socket.text()


@pytest.mark.parametrize(
    ("body", "frame", "setting"),
    [
        ({"model": "mock-large"}, ("set_model", {"model": "mock-small"}), "model"),
        ({"mode": "code"}, ("set_mode", {"mode": "ask"}), "mode"),
    ],
)
async def test_option_that_is_the_model_or_mode_is_replaced_by_a_change_of_it(
    client: Client, body: Json, frame: tuple[str, Json], setting: str
) -> None:
    session = await client.create("options", config_options=body)
    assert (await settings_of(client, session))[setting] == body[setting]
    socket = await client.connect(session)
    await socket.send(frame[0], **frame[1])
    assert (await settings_of(client, session))[setting] == frame[1][setting]


async def test_mode_set_as_an_option_counts_as_the_mode(client: Client) -> None:
    session = await client.create(
        "asking-options", permission="ask", config_options={"mode": "auto"}
    )
    assert (await settings_of(client, session))["mode"] == "auto"
    assert await notices(client, session) == [{"notice": "asks", "asks": False}]


@pytest.mark.parametrize("is_busy", [False, True])
async def test_agent_that_does_not_respond_to_a_change_is_ended_before_the_next_prompt(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    monkeypatch.setattr(server.services.sessions.backend.timeouts, "setting", 0.05)
    socket = await client.connect(await client.create("hanging"))
    await socket.turn("hello")
    if is_busy:
        await socket.send("prompt", prompt=script({"wait_for": "cancel"}))
        await socket.until("turn_start")
    await socket.send("set_mode", mode="code", id="change")
    assert (await socket.until("error", id="change"))["code"] == "agent_failed"
    if is_busy:  # the agent may answer after its turn
        await socket.send("cancel")
        assert (await socket.until("turn_end"))["stop_reason"] == "cancelled"
    end = await socket.turn("again")
    assert end["stop_reason"] == "end_turn"


async def test_change_that_is_not_stored_is_an_error_and_not_in_force(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(writer: DatabaseWriter, statements: Any) -> None:
        raise not_stored()

    session = await client.create("resets", mode="ask")
    socket = await client.connect(session)
    await socket.turn("hello")
    with monkeypatch.context() as patch:
        patch.setattr(DatabaseWriter, "commit", fail)
        await socket.send("set_mode", mode="code", id="change")
        assert (await socket.until("error"))["code"] == "internal"
    assert (await settings_of(client, session))["mode"] == "ask"


async def test_mode_stays_if_model_is_changed(client: Client) -> None:
    session = await client.create("model-sets-mode", mode="code")
    socket = await client.connect(session)
    await socket.turn("hello")
    await socket.send("set_model", model="mock-large")
    await socket.turn(REPORT)
    told = json.loads(socket.text(2))["session"]
    assert (told["mode"], told["config"]["model"]) == ("code", "mock-large")


async def test_mode_that_agent_changes_itself_stays_in_force(
    server: LocalServer, client: Client
) -> None:
    session = await client.create("resets", mode="ask")
    await client.turn(session, script({"mode": "code"}))
    assert (await client.state(session))["modes"]["currentModeId"] == "code"
    assert (await settings_of(client, session))["mode"] == "code"
    await hibernate(server, client, session)
    assert (await settings_of(client, session))["mode"] == "code"


async def test_acp_settings_of_creation_are_in_force_in_its_response(
    client: Client,
) -> None:
    acp = await connect(client)
    for options in ("configOptions", "config_options"):
        options_meta = {"agent": "resets", "mode": "code", options: {"thought_level": "high"}}
        meta = {"clawdforge": options_meta}
        created = await acp.call("session/new", cwd="/", mcpServers=[], _meta=meta)
        assert created["modes"]["currentModeId"] == "code"
        current = {one["id"]: one["currentValue"] for one in created["configOptions"]}
        assert current["thought_level"] == "high"
    meta = {"clawdforge": {"agent": "resets", "mode": "no-such"}}
    with pytest.raises(ResponseError) as failure:
        await acp.call("session/new", cwd="/", mcpServers=[], _meta=meta)
    assert failure.value.data["code"] == "bad_request"


@pytest.mark.parametrize(
    "body",
    [
        {"mode": ""},
        {"mode": 1},
        {"config_options": []},
        {"config_options": {"a": 1}},
        {"config_options": {"": "x"}},
        {"config_options": {f"o{n}": "x" for n in range(65)}},
    ],
)
async def test_invalid_settings_are_refused(client: Client, body: Json) -> None:
    status, reply = await client.post("/sessions", {"agent": "resets", **body})
    assert (status, reply["code"]) == (400, "bad_request")
    assert next(iter(body)) in reply["error"]


# Agents that ask for permission, and agents that do not


@pytest.mark.parametrize(
    ("agent", "permission"),
    [("asking", "ask"), ("asking-options", "approve-reads"), ("asking", "deny-all")],
)
async def test_permission_puts_agent_into_its_asking_mode(
    server: LocalServer, client: Client, agent: str, permission: str
) -> None:
    session = await client.create(agent, permission=permission)
    for turn in (1, 2):
        if permission == "ask":
            socket = await client.connect(session)
            await socket.send("prompt", prompt=WRITE)
            request = await socket.until("permission_request")
            answer = {"request_id": request["request_id"], "option_id": "reject_once"}
            await socket.send("permission", **answer)
            await socket.until("turn_end")
            told = json.loads(socket.text(turn))
        else:
            _, reply = await client.turn(session, WRITE)
            told = json.loads(texts_of(reply["events"]))
        assert told == {"mode": "ask", "asked": True, "wrote": False}
        state = await client.state(session)
        assert (state["asks"], state["mode"]) == (True, "ask")
        assert not (Path(state["cwd"]) / "file").exists()
        await hibernate(server, client, session)
    assert {"notice": "restored", "setting": "mode", "value": "ask"} in await notices(
        client, session
    )


async def test_approve_all_leaves_agent_in_its_own_mode(client: Client) -> None:
    session = await client.create("asking")
    assert (await settings_of(client, session))["mode"] == "auto"
    assert (await client.state(session))["asks"] is False
    assert await notices(client, session) == []


async def test_mode_that_does_not_ask_overrides_permission_and_is_logged(
    client: Client,
) -> None:
    session = await client.create("asking", permission="ask", mode="auto")
    _, reply = await client.turn(session, WRITE)
    assert json.loads(texts_of(reply["events"]))["mode"] == "auto"
    assert (await client.state(session))["asks"] is False
    assert await notices(client, session) == [{"notice": "asks", "asks": False}]
    socket = await client.connect(session)
    await socket.send("set_mode", mode="ask")
    await socket.until("notice", asks=True)
    assert (await client.state(session))["asks"] is True


@pytest.mark.parametrize("agent", ["asking", "asks-first"])
async def test_agent_that_leaves_its_asking_mode_is_put_back_each_time(
    client: Client, agent: str
) -> None:
    session = await client.create(agent, permission="deny-all")
    for _ in range(2):
        await client.turn(session, script({"mode": "code"}))
        assert (await client.state(session))["asks"] is False
        _, reply = await client.turn(session, WRITE)
        told = json.loads(texts_of(reply["events"]))
        assert told == {"mode": "ask", "asked": True, "wrote": False}
    restored = {"notice": "restored", "setting": "mode", "value": "ask"}
    assert (await notices(client, session)).count(restored) == 2


async def test_agent_that_never_asks_reports_it_and_cannot_have_deny_all(client: Client) -> None:
    status, reply = await client.post("/sessions", {"agent": "never", "permission": "deny-all"})
    assert (status, reply["code"]) == (400, "bad_request")
    session = await client.create("never", permission="ask")
    assert (await client.state(session))["asks"] is False
    socket = await client.connect(session, after=0)
    await socket.until("notice", asks=False)
    assert await notices(client, session) == [{"notice": "asks", "asks": False}]
    await client.turn(session, "hello")
    assert await notices(client, session) == [{"notice": "asks", "asks": False}]


async def test_agent_without_its_asking_mode_does_not_ask(
    client: Client,
) -> None:
    session = await client.create("asks-without-modes", permission="ask")
    assert (await client.turn(session, "hello"))[0] == 200
    state = await client.state(session)
    assert (state["mode"], state["asks"]) == (None, False)
    assert await notices(client, session) == [{"notice": "asks", "asks": False}]


async def test_asks_is_unknown_for_an_unknown_agent_until_it_asks(client: Client) -> None:
    session = await client.create("resets", permission="deny-all")
    assert (await client.state(session))["asks"] is None
    await client.turn(session, WRITE)
    assert (await client.state(session))["asks"] is True


async def test_run_uses_the_asking_mode(client: Client) -> None:
    status, reply = await client.post("/run", {"agent": "asking", "prompt": WRITE})
    assert (status, reply["result"]) == (200, {"mode": "ask", "asked": True, "wrote": False})


# System prompt


async def test_agent_without_system_prompts_gets_it_before_its_first_prompt(
    server: LocalServer, client: Client
) -> None:
    session = await client.create("no-load", system="Be brief.")
    assert (await client.state(session))["system_delivery"] == "prompt"
    for _ in range(2):
        _, reply = await client.turn(session, script({"echo": True}))
        await client.turn(session, "hello")
    await hibernate(server, client, session)  # the conversation is lost
    _, reply = await client.turn(session, "again")
    assert texts_of(reply["events"]) == "echo: Be brief.\nagain"
    _, reply = await client.turn(session, script({"history": True}))
    assert json.loads(texts_of(reply["events"]))[1:] == [script({"history": True})]
    starts = [e for e in await client.events(session) if e["type"] == "turn_start"]
    assert all(len(start["prompt"]) == 1 for start in starts)


async def test_system_prompt_precedes_the_first_prompt_that_is_not_a_command(
    server: LocalServer, client: Client
) -> None:
    session = await client.create("commands", system="Be brief.")

    async def told() -> bool:
        return bool((await client.state(session))["commands"])

    await eventually("the agent to tell its commands", told)
    _, reply = await client.turn(session, "/mock all")
    assert texts_of(reply["events"]) == "echo: /mock all"
    await hibernate(server, client, session)
    for echoed in ("Be brief.\n/unknown", "hello"):
        _, reply = await client.turn(session, echoed.removeprefix("Be brief.\n"))
        assert texts_of(reply["events"]) == f"echo: {echoed}"


async def test_agent_with_system_prompts_gets_it_as_such(client: Client) -> None:
    session = await client.create("claude", system="Be brief.")
    assert (await client.state(session))["system_delivery"] == "agent"
    _, reply = await client.turn(session, "hello")
    assert texts_of(reply["events"]) == 'system: "Be brief."echo: hello'


async def test_run_passes_its_system_prompt_to_agent(client: Client) -> None:
    body = {"agent": "options", "prompt": "hello", "system": "Be brief."}
    status, reply = await client.post("/run", body)
    assert (status, reply["result"]) == (200, "echo: Be brief.\nhello")


@pytest.mark.parametrize("agent", ["resets", "models", "options"])
async def test_state_lists_modes_and_models_with_their_current_values_after_each_change(
    client: Client, agent: str
) -> None:
    session = await client.create(agent)
    socket = await client.connect(session)
    await socket.turn("hello")

    async def current() -> tuple[str, str, str]:
        await socket.send("ping")
        await socket.until("pong")
        await client.turn(session, "after the changes")
        state = await client.state(session)
        modes, models = state["modes"], state["models"]
        assert [mode["id"] for mode in modes["availableModes"]] == ["ask", "code"]
        assert [model["modelId"] for model in models["availableModels"]] == [
            "mock-small",
            "mock-large",
        ]
        assert state["mode"] == modes["currentModeId"]
        return modes["currentModeId"], models["currentModelId"], state["model"]

    assert (await current())[:2] == ("ask", "mock-small")
    await socket.send("set_model", model="mock-large")
    await socket.send("set_mode", mode="code")
    assert await current() == ("code", "mock-large", "mock-large")
    if agent != "models":
        await socket.send("set_config_option", key="model", value="mock-small")
        assert await current() == ("code", "mock-small", "mock-small")
    if agent == "options":
        await socket.send("set_config_option", key="mode", value="ask")
        assert (await current())[0] == "ask"
    await client.turn(session, script({"mode": "ask"}))
    assert (await current())[0] == "ask"
    assert not [frame for frame in socket.frames if frame["type"] == "error"]


async def test_option_that_is_true_or_false_is_announced_set_and_restored(
    server: LocalServer, client: Client
) -> None:
    session = await client.create("switches", config_options={"verbose": True})

    async def verbose() -> Any:
        options = (await client.state(session))["config_options"]
        return next(one for one in options if one["id"] == "verbose")["currentValue"]

    assert (await settings_of(client, session))["verbose"] is True
    assert await verbose() is True
    await hibernate(server, client, session)
    assert (await settings_of(client, session))["verbose"] is True
    assert {"notice": "restored", "setting": "verbose", "value": True} in await notices(
        client, session
    )
    socket = await client.connect(session)
    await socket.send("set_config_option", key="verbose", value=False)
    assert (await settings_of(client, session))["verbose"] is False
    assert await verbose() is False
    await socket.send("set_config_option", id="no", key="no_such", value=True)
    assert (await socket.until("error"))["code"] == "bad_request"

    await hibernate(server, client, session)
    await socket.send("set_config_option", key="verbose", value=True)
    assert (await settings_of(client, session))["verbose"] is True


async def test_settings_of_a_subagents_session_are_not_the_sessions_own(client: Client) -> None:
    session = await client.create("resets")
    update = {"sessionUpdate": "current_mode_update", "currentModeId": "code"}
    params = {"sessionId": "of a subagent", "update": update}
    notify = {"method": "session/update", "params": params}
    status, reply = await client.turn(session, script({"notify": notify}))
    assert status == 200
    assert {"jsonrpc": "2.0", **notify} in reply["events"]
    assert (await client.state(session))["mode"] == "ask"
