"""The settings of sessions with acpx's command line: in force at each prompt, as with the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.agent_commands import AgentCommand
from server.agents.base import WantedSettings
from server.agents.cli.relayed_settings import RelayedSettings, RelaySettings

from ..conftest import Serve
from ..support.harness import (
    MOCKS,
    Client,
    Json,
    LocalServer,
    mock_agent,
    script,
    texts_of,
)

REPORT = script({"report": True})
FULL = {"mode": "code", "model": "mock-large", "config_options": {"thought_level": "high"}}
RESETS = ("--modes", "--resets")
AGENTS = {
    **MOCKS,
    "resets": mock_agent(*RESETS),
    "quiet": mock_agent(*RESETS, "--quiet"),
    "models": mock_agent(*RESETS, "--models"),
    "options": mock_agent(*RESETS, "--options-only"),
    "refuses": mock_agent(*RESETS, "--refuse-mode=code"),
    "asking": AgentCommand(mock_agent(*RESETS, "--auto").argv, asks_in="ask"),
    "hanging": mock_agent("--modes", "--hang-mode"),
}
RESTORED = [("model", "mock-large"), ("thought_level", "high"), ("mode", "code")]


async def settings_of(client: Client, session: str) -> Json:
    """Run a prompt and return the settings in which the agent ran it."""
    status, reply = await client.turn(session, REPORT)
    assert status == 200, reply
    told = json.loads(texts_of(reply["events"]))["session"]
    return {"mode": told["mode"], **told["config"]}


async def notices(client: Client, session: str) -> list[Json]:
    return [entry for entry in await client.events(session) if entry["type"] == "notice"]


async def restored(client: Client, session: str) -> set[tuple[str, str]]:
    found = [one for one in await notices(client, session) if one["notice"] == "restored"]
    return {(one["setting"], one["value"]) for one in found}


async def hibernate(server: LocalServer, client: Client, session: str) -> None:
    assert await server.services.sessions.cached[session].agent.hibernate()
    await client.until_hibernated(session)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["resets", "quiet", "models", "options"])
async def test_settings_are_in_force_after_each_start_of_the_agent(
    serve: Serve, agent: str
) -> None:
    server = await serve(agent_backend="cli", agents=AGENTS)
    client = await server.client()
    session = await client.create(agent, **FULL)
    expected = {"mode": "code", "model": "mock-large", "thought_level": "high"}
    assert await settings_of(client, session) == expected
    assert await notices(client, session) == []
    await hibernate(server, client, session)
    assert await settings_of(client, session) == expected
    assert ("mode", "code") in await restored(client, session)
    assert (await client.turn(session, script({"exit": 1})))[1]["code"] == "agent_failed"
    assert await settings_of(client, session) == expected
    contexts = [e["context"] for e in await client.events(session) if e["type"] == "turn_start"]
    assert contexts == ["new", "kept", "kept", "kept"]
    state = await client.state(session)
    assert (state["mode"], state["model"]) == ("code", "mock-large")


@pytest.mark.slow
async def test_policy_puts_the_agent_into_its_asking_mode(serve: Serve) -> None:
    server = await serve(agent_backend="cli", agents=AGENTS)
    client = await server.client()
    session = await client.create("asking", permission="deny-all")
    for _ in range(2):
        status, reply = await client.turn(session, script({"write": "file"}))
        assert status == 200, reply
        told = json.loads(texts_of(reply["events"]))
        assert told == {"mode": "ask", "asked": True, "wrote": False}
        await hibernate(server, client, session)
    assert (await client.state(session))["asks"] is True
    assert [one for one in await notices(client, session) if one["notice"] == "asks"] == []
    # A process that was started without a policy does not continue with one.
    free = await client.create("asking")
    assert json.loads(
        texts_of((await client.turn(free, script({"write": "file"})))[1]["events"])
    ) == {"mode": "auto", "asked": False, "wrote": True}
    assert (await client.call("PATCH", f"/sessions/{free}", {"permission": "deny-all"}))[0] == 200
    assert json.loads(
        texts_of((await client.turn(free, script({"write": "other"})))[1]["events"])
    ) == {"mode": "ask", "asked": True, "wrote": False}


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["refuses", "hanging"])
async def test_prompt_does_not_reach_an_agent_that_refuses_a_setting(
    serve: Serve, agent: str
) -> None:
    server = await serve(agent_backend="cli", agents=AGENTS)
    server.services.sessions.backend.timeouts.setting = 1
    client = await server.client()
    session = await client.create(agent, mode="code")
    for _ in range(2):
        status, reply = await client.turn(session, script({"touch": "seen"}))
        expected = (400, "bad_request") if agent == "refuses" else (502, "agent_failed")
        assert (status, reply["code"], reply["events"]) == (*expected, [])
        assert "mode" in reply["error"]
        assert "code" in reply["error"]
    assert not (Path((await client.state(session))["cwd"]) / "seen").exists()


@pytest.mark.slow
async def test_changes_of_a_running_agent_are_reported_and_kept(serve: Serve) -> None:
    server = await serve(agent_backend="cli", agents=AGENTS)
    client = await server.client()
    session = await client.create("options")
    socket = await client.connect(session)
    await socket.turn("hello")
    await socket.send("set_mode", mode="code")  # the agent offers it as an option only
    await socket.send("set_model", model="mock-large")
    await socket.turn(REPORT)
    told = json.loads(socket.text(2))["session"]
    assert (told["mode"], told["config"]["model"]) == ("code", "mock-large")
    state = await client.state(session)
    assert state["models"]["currentModelId"] == "mock-large"
    assert state["modes"]["currentModeId"] == "code"
    await hibernate(server, client, session)
    assert (await settings_of(client, session))["mode"] == "code"
    # A mode into which the agent goes by itself stays in force.
    other = await client.create("resets", mode="code")
    await client.turn(other, script({"mode": "ask"}))
    assert (await settings_of(client, other))["mode"] == "ask"


@pytest.mark.slow
async def test_cost_of_turns_counts(serve: Serve) -> None:
    server = await serve(agent_backend="cli")
    client = await server.client()
    session = await client.create()
    cost = {"amount": 0.5, "currency": "USD"}
    update = {"sessionUpdate": "usage_update", "used": 10, "size": 100, "cost": cost}
    assert (await client.turn(session, script({"update": update})))[0] == 200
    usage = (await client.state(session))["usage"]
    assert usage == {"cost": cost, "context": {"used": 10, "size": 100}}


@pytest.mark.slow
async def test_odd_response_of_an_agent_does_not_end_its_session_forever(serve: Serve) -> None:
    server = await serve(agent_backend="cli")
    client = await server.client()
    session = await client.create()
    status, reply = await client.turn(session, script({"result": {"stopReason": 5}}))
    assert (status, reply["code"]) == (502, "agent_failed")
    assert (await client.turn(session, "hello"))[0] == 200


def test_relay_notes_settings_of_its_own_session_only() -> None:
    settings = RelayedSettings()
    settings.note_request({"id": 1, "method": "session/new", "params": {}})
    modes = {"currentModeId": "auto", "availableModes": [{"id": "auto"}, {"id": "ask"}]}
    settings.note_response({"id": 1, "result": {"sessionId": "s", "modes": modes}})
    wanted = RelaySettings(WantedSettings(mode="ask"), {}, "mark", 1)
    assert [step.key for step in settings.steps(wanted, {})] == [("mode", "ask")]
    update = {"sessionUpdate": "current_mode_update", "currentModeId": "ask"}
    ignored: list[Any] = [None, [], {"sessionId": "s"}, {"sessionId": "t", "update": update}]
    for params in ignored:
        settings.note_update({"method": "session/update", "params": params})
        assert settings.steps(wanted, {})
    settings.note_update(
        {"method": "session/update", "params": {"sessionId": "s", "update": update}}
    )
    assert settings.steps(wanted, {}) == []
