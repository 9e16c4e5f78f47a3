"""Both agent backends, the acpx host and acpx's command line: the same behaviour and the same
transcript, with the exceptions that docs/howto/agents.md lists."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

import aiohttp
import pytest

from server.agents.base import AgentSpec
from server.agents.cli.backend import CliBackend
from server.agents.cli.commands import AcpxCommands, socket_folder

from ..conftest import Serve, Spawn
from ..stand_ins import mock_agent
from ..support.acp_client import ResponseError, connect
from ..support.harness import (
    MOCKS,
    Client,
    Clock,
    Json,
    LocalServer,
    descendants,
    descendants_of_agents,
    eventually,
    is_running,
    new_client,
    run_step,
    script,
)
from ..support.harness import mock_agent as mock

# Each step has a timeout of its own; together they take long on a busy machine.
pytestmark = pytest.mark.timeout(240)

HISTORY = script({"history": True})
HANG = script({"say": "hanging"}, {"hang": True})


@pytest.fixture(params=["host", "cli"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# The variant with the command line runs in `make slow`: each acpx command takes 1 s of CPU time.
slow_with_cli = pytest.mark.parametrize(
    "backend", ["host", pytest.param("cli", marks=pytest.mark.slow)]
)


@pytest.fixture
async def server(serve: Serve, backend: str) -> LocalServer:
    return await serve(agent_backend=backend)


@slow_with_cli
async def test_conversation_survives_crash_and_hibernation(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    clock = Clock()
    server = await serve(agent_backend=backend, clock=clock, agent_idle_secs=10)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session, after=0)
    spawn = {"spawn": {"pid_file": str(tmp_path / "pid"), "double_fork": True}}
    prompt = script(spawn, {"say": "last words"}, {"exit": 1})
    end = await socket.turn(prompt)
    assert end["error"]["code"] == "agent_failed"
    assert "process ended" in end["error"]["message"]
    assert socket.text(1) == "last words"
    pid = int((tmp_path / "pid").read_text())
    await eventually("the agent's child process to end", lambda: not is_running(pid))

    assert await run_step(client, session, {"history": True}) == [prompt, HISTORY]
    clock.advance(11)
    await server.services.sessions.sweeper.sweep()
    assert (await client.state(session))["agent_state"] == "hibernated"
    assert not [pid for pid in descendants(os.getpid()) if session in environ_text(pid)]
    assert await run_step(client, session, {"history": True}) == [prompt, HISTORY, HISTORY]
    await socket.until("turn_end", turn_index=3)
    assert socket.contexts() == ["new", "kept", "kept"]
    assert (await client.state(session))["agent_state"] == "live"


def environ_text(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:  # it has ended
        return ""


@slow_with_cli
async def test_cancel_ends_the_turn_and_kills_an_agent_that_ignores_it(
    serve: Serve, backend: str
) -> None:
    # With the command line, a process must start before the agent receives the cancel.
    server = await serve(agent_backend=backend, cancel_grace_secs=2 if backend == "host" else 6)
    client = await server.client()
    obedient, deaf = [await client.connect(await client.create(), after=0) for _ in range(2)]
    await deaf.send("prompt", prompt=script({"ignore_cancel": True}, {"say": "on"}, {"hang": True}))
    await obedient.send("prompt", prompt=script({"sleep": 60_000}))
    await obedient.until("accepted")
    await obedient.send("cancel")
    assert (await obedient.until("turn_end"))["stop_reason"] == "cancelled"

    await obedient.send("prompt", prompt=script({"history": True}, {"say": "hanging"}, {"hang": 1}))
    await obedient.until_text("hanging")
    if backend == "cli":  # a process starts first, so the cancel arrives before the prompt
        assert "sleep" not in obedient.text()
    await obedient.send("cancel")
    end = await obedient.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)
    assert obedient.entries[-2]["event"]["result"] == {"stopReason": "cancelled"}

    await deaf.until_text("on")
    await deaf.send("cancel")
    end = await deaf.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)
    await deaf.turn(HISTORY)
    assert deaf.contexts() == ["new", "kept"]
    assert "ignore_cancel" in deaf.text(2)


@slow_with_cli
async def test_policy_outcomes_are_logged_and_reach_the_agent(client: Client) -> None:
    async def decide(policy: str) -> list[str]:
        session = await client.create(permission=policy)
        socket = await client.connect(session, after=0)
        end = await socket.turn(script({"permission": [{"kind": "read"}, {"kind": "edit"}]}))
        assert end["stop_reason"] == "end_turn"
        resolved = [e for e in socket.entries if e["type"] == "permission_resolved"]
        requested = [e for e in socket.entries if e["type"] == "permission_request"]
        assert [e["request_id"] for e in resolved] == [e["request_id"] for e in requested]
        assert {e["by"] for e in resolved} == {"policy"}
        outcomes = [e["outcome"] for e in resolved]
        assert json.loads(socket.text())["permissions"] == outcomes
        assert (await client.state(session))["pending_permissions"] == []
        return [outcome["optionId"] for outcome in outcomes]

    found = await asyncio.gather(*map(decide, ("approve-reads", "deny-all")))
    assert found == [["allow_once", "reject_once"], ["reject_once", "reject_once"]]


@slow_with_cli
async def test_unicode_line_separators_are_plain_text(client: Client) -> None:
    odd = "a\u2028b\u2029c"
    session = await client.create(system=odd)
    assert (await client.turn(session, odd))[0] == 200
    # The system prompt precedes the first prompt.
    assert await run_step(client, session, {"history": True}) == [f"{odd}\n{odd}", HISTORY]
    for path, body in (("/sessions", {}), ("/run", {"prompt": "hi"})):
        status, reply = await client.post(path, {"agent": odd, **body})
        assert (status, reply["code"]) == (400, "bad_request"), reply


@slow_with_cli
async def test_agent_that_does_not_start_is_unavailable(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    patient = await (await serve(agent_backend=backend)).client()
    hasty = await serve(
        agent_backend=backend, agent_start_timeout_secs=1, data_dir=tmp_path / "other"
    )

    async def fail(client: Client, agent: str) -> str:
        status, reply = await client.turn(await client.create(agent), "hello")
        assert (status, reply["code"]) == (502, "agent_unavailable"), reply
        return str(reply["error"])

    dies, refuses, _ = await asyncio.gather(
        fail(patient, "mock-dies"),
        fail(patient, "mock-fail-new"),
        fail(await hasty.client(), "mock-silent"),
    )
    assert "exit=1" in dies
    assert "--fail-new" in refuses
    assert "there is no more to it" in refuses
    status, reply = await patient.post("/sessions", {"agent": "missing"})
    assert (status, reply["code"]) == (502, "agent_unavailable")
    await eventually(
        "all mock agents to end", lambda: not [p for p in descendants(os.getpid()) if is_mock(p)]
    )


def is_mock(pid: int) -> bool:
    try:
        return b"mock_agent.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@slow_with_cli
async def test_settings_reach_the_agent_and_rejections_reach_the_client(client: Client) -> None:
    session = await client.create("mock-modes", system="Be brief.")
    socket = await client.connect(session)
    await socket.turn("hello")
    await socket.send("set_mode", mode="code")
    await socket.send("set_config_option", key="thought_level", value="high")
    await socket.send("set_mode", mode="no-such-mode")
    assert (await socket.until("error"))["code"] == "bad_request"
    report = (await run_step(client, session, {"report": True}))["session"]
    assert (report["mode"], report["config"]["thought_level"]) == ("code", "high")
    assert report["params"]["_meta"]["systemPrompt"] == "Be brief."
    state = await client.state(session)
    assert state["modes"]["currentModeId"] == "code"
    assert {o["id"]: o["currentValue"] for o in state["config_options"]}["thought_level"] == "high"


@slow_with_cli
async def test_run_has_a_home_of_its_own_and_leaves_no_files(
    client: Client, server: LocalServer, backend: str
) -> None:
    steps = script({"env": ["HOME", "AGENT_SESSION", "CLAWDFORGE_ADMIN_TOKEN"]})
    status, reply = await client.post("/run", {"prompt": steps, "agent": "mock"})
    assert status == 200, reply
    homes = server.services.settings.data_dir / "homes"
    assert Path(reply["result"]["HOME"]).parent == homes
    assert reply["result"]["CLAWDFORGE_ADMIN_TOKEN"] is None
    run = reply["result"]["AGENT_SESSION"].partition(":")[0]
    left = [path for path in server.services.settings.data_dir.rglob("*") if run in path.name]
    assert left == []
    assert (await client.get("/healthz"))[1]["acpx_version"] == "0.19.1"


# The command line alone.


@pytest.mark.slow
async def test_acp_session_requests_no_permission_and_can_be_loaded(serve: Serve) -> None:
    server = await serve(agent_backend="cli")
    client = await server.client()
    acp = await connect(client)
    session = await acp.new_session()
    ask = {"permission": {"title": "edit", "kind": "edit"}}
    assert await acp.prompt(session, script({"say": "yes: "}, ask)) == {"stopReason": "end_turn"}
    assert acp.text().startswith("yes: ")
    assert '"optionId": "allow_once"' in acp.text()
    hanging = await acp.start_prompt(session, HANG)
    await acp.until_text("hanging")
    await acp.notify("session/cancel", sessionId=session)
    assert await acp.response_to(hanging) == {"stopReason": "cancelled"}
    assert [one for one in acp.messages if "id" in one and "method" in one] == []

    again = await connect(client)
    await again.call("session/load", sessionId=session, cwd="/", mcpServers=[])
    assert again.text() == acp.text()
    assert again.text(kind="user_message_chunk").endswith(HANG)

    # The cli backend does not support permission "ask".
    with pytest.raises(ResponseError) as refused:
        await acp.new_session(_meta={"clawdforge": {"permission": "ask"}})
    assert refused.value.code == -32602
    status, reply = await client.post("/sessions", {"agent": "mock", "permission": "ask"})
    assert (status, reply["code"]) == (400, "not_supported")
    assert reply["error"].startswith("permission")


@pytest.mark.slow
async def test_acpxrc_file_in_the_workspace_has_no_effect(serve: Serve, tmp_path: Path) -> None:
    server = await serve(agent_backend="cli", workspace_roots=(tmp_path,))
    client = await server.client()
    work = tmp_path / "work"
    work.mkdir()
    intruder = {"command": "touch", "args": [str(tmp_path / "intruder")]}
    (work / ".acpxrc.json").write_text(
        json.dumps(
            {
                "defaultPermissions": "approve-all",
                "defaultAgent": "intruder",
                "agents": {"intruder": intruder, "mock": intruder, "codex": intruder},
                "mcpServers": [{"name": "intruder", **intruder}],
                "format": "text",
                "timeout": 0.001,
                "ttl": 0.001,
            }
        )
    )
    session = await client.create(permission="deny-all", cwd=str(work))
    socket = await client.connect(session)
    await socket.turn(script({"permission": True}, {"report": True}))
    outcome, report = re.fullmatch(r"(\{.*?\}\})(.*)", socket.text()).groups()  # type: ignore[union-attr]
    assert json.loads(outcome)["permission"]["optionId"] == "reject_once"
    assert json.loads(report)["session"]["params"]["mcpServers"] == []
    assert not (tmp_path / "intruder").exists()
    # It is not even opened: a link would show the start of a file of the server in acpx's error.
    (work / ".acpxrc.json").unlink()
    os.mkfifo(work / ".acpxrc.json")
    assert (await client.turn(session, "hello"))[0] == 200


@pytest.mark.slow
async def test_closed_session_leaves_no_process_and_deleted_session_no_file(serve: Serve) -> None:
    clock = Clock()
    server = await serve(agent_backend="cli", clock=clock)
    server.services.sessions.backend.timeouts.close = 0.2  # the agent would use the whole timeout
    client = await server.client()
    session = await client.create("mock-stubborn")
    await run_step(client, session, {"report": True})
    home = server.services.settings.data_dir / "acpx-cli" / "homes" / session
    assert socket_folder(home).exists()
    below = descendants_of_agents(os.getpid())
    assert any(map(is_mock, below))
    await client.delete(f"/sessions/{session}")
    assert not any(map(is_running, below))
    assert not socket_folder(home).exists()
    assert home.exists()
    clock.advance(100_000)
    await server.services.sessions.sweeper.sweep()
    assert not home.exists()


async def test_session_closed_before_its_agent_is_found_starts_no_process(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(agent_backend="cli")
    client = await server.client()
    finds, looking, go_on = CliBackend._find_commands, asyncio.Event(), asyncio.Event()

    async def find_slowly(backend: CliBackend, spec: AgentSpec) -> AcpxCommands:
        looking.set()
        await go_on.wait()
        return await finds(backend, spec)

    monkeypatch.setattr(CliBackend, "_find_commands", find_slowly)
    session = await client.create()
    agent = server.services.sessions.cached[session].agent
    assert agent is not None
    await looking.wait()
    before = set(descendants(os.getpid()))
    await client.delete(f"/sessions/{session}")
    go_on.set()
    await eventually("the start to be abandoned", lambda: not agent.is_live)
    assert set(descendants(os.getpid())) <= before


@pytest.mark.slow
async def test_no_process_outlives_a_killed_server(
    spawn: Spawn, serve: Serve, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(AGENT_BACKEND="cli")
    client = await new_client(server.url, http)
    session = await client.create("mock-stubborn")
    hidden = {"double_fork": True, "clear_env": True, "ignore_sigterm": True}
    step = {"spawn": {"pid_file": str(tmp_path / "pid"), **hidden}}
    status, reply = await client.turn(session, script(step, {"say": "started"}))
    assert status == 200, reply
    below = descendants(server.pid)
    assert int((tmp_path / "pid").read_text()) in below
    await server.kill()
    await eventually(
        "all descendants of the server to end", lambda: not any(map(is_running, below))
    )

    sockets = socket_folder(tmp_path / "data" / "acpx-cli" / "homes" / session)
    assert sockets.exists()
    await serve(agent_backend="cli", data_dir=tmp_path / "data")
    assert not sockets.exists()


# The same transcript.

# Steps without output of their own, and steps whose output differs by design.
NOT_COMPARED = {
    "report": "reports process ids",
    "chunk": "the same as say, except for the size",
    "bad_utf8": "acpx repairs such a line, the host drops it",
    "mode": "has tests of its own",
    "write": "has tests of its own",
    "elicit": "the cli backend cannot ask questions",
    "stop_reading": "the agent is mute or deaf after it",
    "close_stdout": "the agent is mute or deaf after it",
    "sleep": "takes time",
    "ignore_cancel": "has a test of its own",
    "hang": "is cancelled in that test",
}
STARTED = '"name": "mock", "description": "Does nothing"'
PICTURE = {"type": "image", "mimeType": "image/png", "data": "iVBORw0KGgo="}
LINK = {"type": "resource_link", "name": "notes", "uri": "file:///tmp/notes.txt"}
CONTENT = {"type": "content", "content": {"type": "text", "text": "grüße 🙂"}}
CALL = {"toolCallId": "t1", "title": "Look", "kind": "read", "status": "pending"}
UPDATES = [
    {"sessionUpdate": "user_message_chunk", "content": PICTURE},
    {"sessionUpdate": "tool_call", **CALL},
    {"sessionUpdate": "tool_call_update", "toolCallId": "t1", "content": [CONTENT]},
    {
        "sessionUpdate": "plan",
        "entries": [{"content": "x", "priority": "low", "status": "pending"}],
    },
    {"sessionUpdate": "available_commands_update", "availableCommands": []},
    {"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": 0.25}},
    {"sessionUpdate": "of_tomorrow", "_meta": {"deep": [1, None, True, {"a": "\u2028"}]}},
]
CONVERSATIONS: dict[str, list[str | list[Json]]] = {
    "updates, requests and memory": [
        [{"type": "text", "text": "see"}, PICTURE, LINK],
        script(
            {"echo": True},
            {"think": "hm"},
            *({"update": update} for update in UPDATES),
            {"notify": {"method": "_vendor/note", "params": {"n": 1}}},
            {"raw": "no JSON"},
            {"stderr": "a word"},
            {"burst": {"count": 30, "batch": 7}},
            {"repeat": {"times": 2, "steps": [{"say": "{i}"}]}},
            {"env": ["LANG"]},
            {"touch": "gate"},
            {"gate": "gate"},
            {"permission": True},
            {"permission": [{"kind": "read"}, {"kind": "edit", "title": "Write"}]},
            {"permission": {"options": [{"optionId": "x", "name": "X", "kind": "allow_always"}]}},
            {"request": {"method": "fs/read_text_file", "params": {"path": "/etc/hostname"}}},
            {"request": {"method": "_vendor/ask", "params": {}}},
            {"history": True},
            {"say": {"at": "last"}},
            {"late": [{"say": "late"}]},
        ),
    ],
    "results": [
        script({"say": "x"}, {"stop": "max_tokens"}),
        script({"error": {"code": -32000, "message": "log in first", "data": {"n": 1}}}),
        script({"result": {"stopReason": "end_turn", "usage": {"outputTokens": 5}}}),
        script({"result": {"no": "stop reason"}}),
    ],
    "ends": [
        script({"permission": {"options": []}}),
        script({"say": "hanging"}, {"wait_for": "cancel"}, {"say": "bye"}),
        script({"say": "x"}, {"exit": 0}),
        script({"spawn": {}}, {"ignore_sigterm": True}, {"ignore_eof": True}, {"crash": "SIGKILL"}),
        HISTORY,
    ],
    "mock-fail-load": [script({"exit": 1}), HISTORY],
}


async def converse(client: Client, name: str) -> list[Json]:
    """Hold the conversation with the agent of that name, else with ``mock``; return its log."""
    session = await client.create(name if name in MOCKS else "mock")
    socket = await client.connect(session, after=0)
    for index, prompt in enumerate(CONVERSATIONS[name], start=1):
        await socket.send("prompt", prompt=prompt)
        if "hanging" in str(prompt):
            await socket.until_text("hanging")
            await socket.send("cancel")
        await socket.until("turn_end", turn_index=index)
        if '"late"' in str(prompt):
            await socket.until_text("late")
    return socket.entries


def comparable(entries: list[Json]) -> list[Json]:
    """The entries without times, random ids and the updates that an agent sends when it starts."""
    text = json.dumps([e for e in entries if STARTED not in json.dumps(e)])
    for pattern, name in (
        (r'"(seq|ts|duration_ms|expires_at)": \d+', r'"\1": 0'),
        (r'"(request_id|sessionId)": "[0-9a-f-]+"', r'"\1": "…"'),
        (r"call-[0-9a-f]{8}", "call"),
        (r'"jsonrpc": "2.0", "id": \d+', '"jsonrpc": "2.0", "id": 0'),
    ):
        text = re.sub(pattern, name, text)
    compared: list[Json] = json.loads(text)
    return compared


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if number else ())
        for number, name in enumerate(CONVERSATIONS)
    ],
)
async def test_backends_log_the_same_transcript(serve: Serve, tmp_path: Path, name: str) -> None:
    clients = []
    for backend in ("host", "cli"):
        server = await serve(agent_backend=backend, data_dir=tmp_path / backend)
        clients.append(await server.client())
    by_host, by_cli = await asyncio.gather(*(converse(client, name) for client in clients))
    assert comparable(by_cli) == comparable(by_host)
    assert name not in MOCKS or '"context": "lost"' in json.dumps(by_host)


def test_transcripts_cover_every_step_of_the_mock_agent() -> None:
    steps = set(re.findall(r'"(\w+)":', json.dumps(CONVERSATIONS).replace("\\", "")))
    assert set(mock_agent.STEPS) - steps == set(NOT_COMPARED)


LOGIN = [{"id": "mock-login", "name": "Log in"}]


@slow_with_cli
async def test_agent_that_needs_a_login_fails_with_login_required(
    serve: Serve, backend: str
) -> None:
    server = await serve(
        agent_backend=backend,
        agents={
            **MOCKS,
            "new": mock("--fail-new=-32000", "--login"),
            "load": mock("--fail-load=-32000", "--login"),
            "turn": mock("--login"),
            "says": mock("--stderr=You are not logged in.", "--die-at-start"),
        },
    )
    client = await server.client()

    async def fail_login(name: str, prompt: str = "hello") -> Json:
        session = await client.create(name)
        if name == "load" and backend == "host":  # acpx's command line loads immediately
            assert (await client.turn(session, "hello"))[0] == 200
            found = server.services.sessions.cached[session]
            assert await found.agent.hibernate()
        status, reply = await client.turn(session, prompt)
        assert (status, reply["code"], reply["retryable"]) == (502, "login_required", False), reply
        return reply

    error = {"code": -32603, "message": "x", "data": {"details": "401 Incorrect API key provided"}}
    new, load, _, turn = await asyncio.gather(
        fail_login("new"),
        fail_login("load"),
        fail_login("says"),
        fail_login("turn", script({"error": error})),
    )
    if backend == "host":  # acpx's command line hides the output of a start
        assert new["auth_methods"] == LOGIN
    assert load["auth_methods"] == turn["auth_methods"] == LOGIN


@slow_with_cli
async def test_error_contains_the_last_output_of_an_agent_that_exits(
    serve: Serve, backend: str
) -> None:
    goes = mock("--banner=no longer maintained", "--stderr=\x1b[31mmove on", "--die-at-start=0")
    key = "cf-a-key-that-nobody-may-see"
    stays = mock(MOCK_API_KEY=key)
    client = await (
        await serve(agent_backend=backend, agents={**MOCKS, "goes": goes, "stays": stays})
    ).client()

    async def fail(name: str, prompt: str, code: str) -> str:
        status, reply = await client.turn(await client.create(name), prompt)
        assert (status, reply["code"]) == (502, code), reply
        return str(reply["error"])

    start, turn = await asyncio.gather(
        fail("goes", "hello", "agent_unavailable"),
        fail(
            "stays",
            script({"stderr": f"no memory {key}"}, {"raw": "half a line\nand half"}, {"exit": 3}),
            "agent_failed",
        ),
    )
    assert "move on" in start
    assert "\x1b" not in start
    if backend == "host":  # acpx's command line hides an agent's stdout and a turn's stderr
        assert "no longer maintained" in start
        assert "half a line" in turn
        assert "and half" in turn
        assert "no memory" in turn
    assert key not in turn
