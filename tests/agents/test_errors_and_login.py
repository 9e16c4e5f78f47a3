"""Agents that crash, cannot load, do not start or write invalid output; and their environment."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket as sockets
import stat
from pathlib import Path

import pytest

from server.agent_commands import AgentCommand
from server.agents.host import backend as host
from server.agents.host.handover import StdioHandover
from server.agents.process import environ

from ..conftest import Serve
from ..support.harness import (
    MOCKS,
    Client,
    Json,
    LocalServer,
    environ_of,
    eventually,
    is_running,
    mock_agent,
    run_step,
    script,
    texts_of,
)

HISTORY = script({"history": True})
REPORT = script({"report": True})


def handover_of(server: LocalServer) -> StdioHandover:
    """The socket at which launchers hand over their stdio."""
    backend = server.services.sessions.backend
    assert isinstance(backend, host.HostBackend)
    return backend.handover


# Crashes.


@pytest.mark.parametrize("death", [{"exit": 1}, {"exit": 0}, {"crash": "SIGKILL"}])
async def test_crash_ends_the_turn_and_the_next_prompt_has_the_context(
    client: Client, death: Json
) -> None:
    socket = await client.connect(await client.create(), after=0)
    await socket.turn("remember me")
    words = {"burst": {"count": 2000, "text": "last words"}}
    end = await socket.turn(script(words, {"say": "the very last"}, death))
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "agent_failed")
    assert end["error"]["retryable"] is True
    # All output is logged, before the end of the turn.
    assert socket.text(2).endswith("1999:last wordsthe very last")
    assert [e["type"] for e in socket.entries if e["turn_index"] == 2][-1] == "turn_end"

    await socket.turn(HISTORY)
    assert socket.contexts() == ["new", "kept", "kept"]
    assert json.loads(socket.text(3))[0] == "remember me"


async def test_agent_that_dies_between_turns_is_restarted_with_its_context(
    client: Client,
) -> None:
    session = await client.create()
    pid = (await run_step(client, session, {"report": True}))["pid"]
    os.kill(pid, signal.SIGKILL)
    await client.until_hibernated(session)
    assert len(await run_step(client, session, {"history": True})) == 2
    starts = [e for e in await client.events(session) if e["type"] == "turn_start"]
    assert [start["context"] for start in starts] == ["new", "kept"]


async def test_prompt_right_after_the_agents_death_never_fails_as_unavailable(
    client: Client,
) -> None:
    session = await client.create()
    for _ in range(12):  # acpx notices the death before, while or after it accepts the prompt
        pid = (await run_step(client, session, {"report": True}))["pid"]
        os.kill(pid, signal.SIGKILL)
        status, reply = await client.turn(session, "after")
        assert status == 200 or reply["code"] == "agent_failed", reply


async def test_first_turn_has_context_new_after_an_early_crash(client: Client) -> None:
    session = await client.create("mock-fail-load")

    async def is_live() -> bool:
        return (await client.state(session))["commands"] is not None

    await eventually("the agent to start", is_live)
    # A crash before any prompt loses nothing.
    socket = await client.connect(session, after=0)
    await kill_agent(client, session)
    await socket.turn("hello")
    assert socket.contexts() == ["new"]


async def kill_agent(client: Client, session: str) -> None:
    pids = agents_of(session)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await client.until_hibernated(session)


def agents_of(session: str) -> list[int]:
    """The processes that are tagged with the session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                mark = environ_of(int(entry.name)).get("AGENT_SESSION", "")
            except OSError:
                continue
            if mark.startswith(session) and is_running(int(entry.name)):
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("agent", ["mock-no-load", "mock-fail-load"])
async def test_agent_that_cannot_load_has_context_lost(client: Client, agent: str) -> None:
    session = await client.create(agent)
    socket = await client.connect(session, after=0)
    await socket.turn("remember me")
    await socket.turn(script({"exit": 1}))
    end = await socket.turn(HISTORY)
    assert end["stop_reason"] == "end_turn"
    assert socket.contexts() == ["new", "kept", "lost"]
    assert json.loads(socket.text(3)) == [HISTORY]
    await socket.turn(HISTORY)
    assert socket.contexts()[3:] == ["kept"]
    assert len(agents_of(session)) == 1  # the process that failed to load has ended


@pytest.mark.slow
async def test_process_that_failed_to_load_is_killed_if_it_ignores_sigterm(
    serve: Serve,
) -> None:
    agent = mock_agent("--fail-load", "--ignore-eof", "--ignore-sigterm")
    server = await serve(agents={"stubborn": agent}, default_agent="stubborn")
    client = await server.client()
    session = await client.create("stubborn")
    await client.turn(session, script({"exit": 1}))
    assert (await client.turn(session, "again"))[0] == 200
    await eventually("one agent to remain", lambda: len(agents_of(session)) == 1)


async def test_agent_that_resumes_without_a_replay_has_its_context(client: Client) -> None:
    socket = await client.connect(await client.create("mock-resume"), after=0)
    await socket.turn("remember me")
    await socket.turn(script({"exit": 1}))
    await socket.turn(HISTORY)
    assert socket.contexts() == ["new", "kept", "kept"]
    assert json.loads(socket.text(3))[0] == "remember me"


async def test_replay_of_a_load_is_not_logged_again(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.turn("once")
    await kill_agent(client, session)
    await socket.turn("twice")
    texts = [e for e in socket.entries if e["type"] == "event" and "once" in json.dumps(e)]
    assert len(texts) == 1
    assert socket.text() == "echo: onceecho: twice"


# Starts.


@pytest.mark.parametrize(
    ("agent", "text"),
    [
        ("mock-dies", "AGENT_STARTUP_FAILED"),
        ("mock-fail-new", "the mock was started with --fail-new"),
        ("mock-silent", ""),
    ],
)
async def test_turn_fails_as_unavailable_if_the_agent_does_not_start(
    serve: Serve, agent: str, text: str
) -> None:
    server = await serve(agent_start_timeout_secs=0.5 if agent == "mock-silent" else 20)
    client = await server.client()
    session = await client.create(agent)
    socket = await client.connect(session)
    for index in (1, 2):  # the session stays open for another attempt
        end = await socket.turn("hello")
        assert (end["turn_index"], end["stop_reason"]) == (index, "error")
        assert end["error"]["code"] == "agent_unavailable"
        assert text in end["error"]["message"]
    status, reply = await client.turn(session, "hello")
    assert (status, reply["code"], reply["events"]) == (502, "agent_unavailable", [])
    assert (await client.state(session))["state"] == "idle"


async def test_error_contains_the_stderr_of_an_agent_that_fails_to_start(serve: Serve) -> None:
    agent = mock_agent("--stderr=set MY_KEY first", "--die-at-start=3")
    server = await serve(agents={"keyless": agent}, default_agent="keyless")
    client = await server.client()
    _, reply = await client.turn(await client.create("keyless"), "hello")
    assert "set MY_KEY first" in reply["error"]


async def test_session_is_rejected_if_the_agents_program_is_missing(client: Client) -> None:
    status, reply = await client.post("/sessions", {"agent": "missing"})
    assert (status, reply["code"]) == (502, "agent_unavailable")
    assert "no-such-program-anywhere" in reply["error"]


async def test_turn_fails_while_the_agents_program_is_missing(serve: Serve, tmp_path: Path) -> None:
    program = tmp_path / "agent"
    argv = " ".join(f"'{part}'" for part in MOCKS["mock"].argv)
    program.write_text(f"#!/bin/sh\nexec {argv}\n")
    program.chmod(0o700)
    server = await serve(agents={"own": AgentCommand((str(program),))}, default_agent="own")
    client = await server.client()
    session = await client.create("own")
    await client.turn(session, script({"say": "one"}))
    program.rename(tmp_path / "gone")
    await kill_agent(client, session)
    status, reply = await client.turn(session, "two")
    assert (status, reply["code"]) == (502, "agent_unavailable"), reply
    (tmp_path / "gone").rename(program)
    assert (await run_step(client, session, {"history": True}))[0] == script({"say": "one"})


async def test_output_before_the_first_message_is_ignored(serve: Serve) -> None:
    banner = "\n".join(
        ["A new version is there!", *(json.dumps({"level": 30, "id": n}) for n in range(4))]
    )
    agent = mock_agent(f"--banner={banner}", "--stderr=warning: old")
    server = await serve(agents={"chatty": agent}, default_agent="chatty")
    client = await server.client()
    session = await client.create("chatty")
    assert texts_of((await client.turn(session, "hi"))[1]["events"]) == "echo: hi"
    assert "new version" not in json.dumps(await client.events(session))


# Output.


async def test_line_that_is_not_a_message_is_skipped(client: Client) -> None:
    session = await client.create()
    garbage: list[Json] = [
        {"raw": text}
        for text in ("garbage", "", "   ", "[1,2]", "7", "null", '"text"', '{"half":', "{'a': 1}")
    ]
    binary = {"raw": {"base64": base64.b64encode(bytes(range(256))).decode()}}
    nan = {"raw": '{"jsonrpc":"2.0","method":"session/update","params":{"n":NaN}}'}
    steps: list[Json] = [
        {"say": "before "},
        *garbage,
        binary,
        {"bad_utf8": True},
        nan,
        {"say": "after"},
    ]
    status, reply = await client.turn(session, script(*steps))
    assert (status, texts_of(reply["events"])) == (200, "before after")
    assert len(reply["events"]) == 3


async def test_json_that_is_not_json_rpc_is_skipped(
    client: Client,
) -> None:
    """Log lines with the ids of requests, and malformed messages."""
    session = await client.create()
    almost: list[Json] = [
        {"level": 30},
        {"result": {"stopReason": "refusal"}},
        {"jsonrpc": "2.0"},
        {"jsonrpc": 2.0, "result": {}},
        {"jsonrpc": "1.0", "error": {"code": 1, "message": "no"}},
        {"jsonrpc": "2.0", "result": {}, "error": {"code": 1, "message": "no"}},
        {"jsonrpc": "2.0", "method": 7},
    ]
    ids = [*range(8), True, False, [1], {}]
    text = "\n".join(json.dumps({**line, "id": one}) for line in almost for one in ids)
    status, reply = await client.turn(session, script({"raw": text}, {"say": "after"}))
    assert (status, reply["stop_reason"], texts_of(reply["events"])) == (200, "end_turn", "after")
    assert len(reply["events"]) == 2


async def test_incomplete_line_loses_only_the_message_that_completes_it(client: Client) -> None:
    session = await client.create()
    half = {"raw": {"text": '{"jsonrpc":"2.0","me', "newline": False}}
    steps: list[Json] = [{"say": "one "}, half, {"say": "swallowed"}, {"say": "two"}]
    status, reply = await client.turn(session, script(*steps))
    assert (status, texts_of(reply["events"])) == (200, "one two")


async def test_text_before_a_crash_in_mid_line_is_logged(client: Client) -> None:
    session = await client.create()
    half = {"raw": {"text": '{"jsonrpc":"2.0","me', "newline": False}}
    status, reply = await client.turn(session, script({"say": "words"}, half, {"exit": 1}))
    assert (status, reply["code"]) == (502, "agent_failed")
    assert texts_of(reply["events"]) == "words"
    assert (await client.turn(session, "again"))[0] == 200


async def test_chunk_of_a_megabyte_is_delivered_whole(client: Client) -> None:
    socket = await client.connect(await client.create())
    await socket.turn(script({"chunk": 1 << 20}))
    assert socket.text() == "x" * (1 << 20)


@pytest.mark.parametrize(("value", "count"), [("[],", 200_001), ("0,", 200_001)])
async def test_message_with_too_many_values_ends_its_agent(
    client: Client, value: str, count: int
) -> None:
    session = await client.create()
    line = '{"jsonrpc":"2.0","method":"x","params":[' + count * value + "0]}"
    status, reply = await client.turn(session, script({"raw": line}, {"say": "unheard"}))
    assert (status, reply["code"]) == (502, "agent_failed")
    assert texts_of(reply["events"]) == ""
    assert (await client.turn(session, "again"))[0] == 200


async def test_message_over_the_limit_ends_only_its_agent(serve: Serve) -> None:
    server = await serve(max_agent_message_bytes=1 << 20)
    client = await server.client()
    other = await client.connect(await client.create())
    await other.send("prompt", prompt=script({"say": "in"}, {"sleep": 300}, {"say": "out"}))
    await other.until_text("in")

    session = await client.create()
    socket = await client.connect(session, after=0)
    end = await socket.turn(script({"say": "small"}, {"chunk": 3 << 20}, {"say": "unheard"}))
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "agent_failed")
    assert socket.text() == "small"
    await socket.turn(HISTORY)
    assert socket.contexts() == ["new", "kept"]
    assert (await other.until("turn_end"))["stop_reason"] == "end_turn"


async def test_message_of_seventy_megabytes_fails_the_turn(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(session, script({"chunk": 70 << 20}))
    assert (status, reply["code"], reply["events"]) == (502, "agent_failed", [])
    assert (await client.turn(session, "small"))[0] == 200


async def test_agent_that_closes_its_stdout_fails_its_turn_and_is_replaced(
    client: Client,
) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    end = await socket.turn(script({"report": True}, {"close_stdout": True}, {"hang": True}))
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "agent_failed")
    pid = json.loads(socket.text(1))["pid"]
    await socket.turn(HISTORY)
    assert socket.contexts() == ["new", "kept"]
    assert agents_of(session) != [pid]
    await eventually("the mute agent to end", lambda: not is_running(pid))


async def test_cancel_ends_an_agent_that_stops_reading(serve: Serve) -> None:
    server = await serve(cancel_grace_secs=0.3)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session, after=0)
    # The agent reads the response to its request and nothing after it.
    params: Json = {"toolCall": {}, "options": []}
    request = {"id": "last", "method": "session/request_permission", "params": params}
    steps: list[Json] = [{"stop_reading": True}, {"raw": json.dumps({"jsonrpc": "2.0", **request})}]
    await socket.send("prompt", prompt=script(*steps, {"say": "still talking"}, {"hang": True}))
    await socket.until_text("still talking")
    await socket.send("cancel")
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)
    await socket.turn(HISTORY)
    assert socket.contexts() == ["new", "kept"]


# The environment of an agent.


def test_bundled_node_is_the_last_on_an_agents_path() -> None:
    assert environ.with_folder_of("/n/bin/node", {"PATH": "/a:/b", "X": "1"}) == {
        "PATH": "/a:/b:/n/bin",
        "X": "1",
    }
    assert environ.with_folder_of("/n/bin/node", {}) == {"PATH": "/n/bin"}


async def test_agent_environment_has_allowed_names_and_no_server_secrets(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAWDFORGE_ADMIN_TOKEN", "secret of the server")
    monkeypatch.setenv("MY_DATABASE_PASSWORD", "secret of the operator")
    monkeypatch.setenv("LET_THROUGH", "yes")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "for the agent")
    agents = {"mock": mock_agent(OWN="its own")}
    server = await serve(agents=agents, agent_env=("LET_THROUGH",))
    client = await server.client()
    session = await client.create()
    names = (await run_step(client, session, {"report": True}))["env"]
    allowed = environ.ALLOWED_NAMES | {"LET_THROUGH", "OWN", "AGENT_SESSION", "ACPX_HOST"}
    others = [n for n in names if n not in allowed and not n.startswith(environ.ALLOWED_PREFIXES)]
    assert others == []
    assert {"PATH", "HOME", "LET_THROUGH", "ANTHROPIC_API_KEY", "OWN"} <= set(names)

    (pid,) = agents_of(session)
    start = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"secret" not in start
    assert b"CLAWDFORGE_" not in start


async def test_agent_runs_in_its_own_folder_and_inherits_only_its_pipes(
    client: Client, server: LocalServer
) -> None:
    first, second = await client.create(), await client.create()
    reports = [await run_step(client, session, {"report": True}) for session in (first, second)]
    for session, report in zip((first, second), reports, strict=True):
        folder = server.services.settings.data_dir / "workspaces" / session
        assert Path(report["cwd"]) == Path(report["session"]["cwd"]) == folder.resolve()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert report["pid"] == report["pgid"] == report["sid"]
        assert [fd for fd in report["fds"] if fd > 2][1:] == []  # except the one that lists them
    assert stat.S_IMODE(server.services.settings.data_dir.stat().st_mode) == 0o700


# The handover of stdio.


async def test_unannounced_process_is_refused_at_the_handover_socket(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_of(server), "timeout", 0.2)
    await client.turn(await client.create(), "an agent runs")
    connect = (
        "import socket, sys, os\n"
        "s = socket.socket(socket.AF_UNIX); s.connect('\\0' + sys.argv[1])\n"
        "read, write = os.pipe()\n"
        "socket.send_fds(s, [b'\\n'], [read, write])\n"
        "s.settimeout(5)\n"
        "try:\n"
        "    print(socket.recv_fds(s, 4096, 4)[:2])\n"
        "except ConnectionResetError:\n"
        "    print('refused')\n"
    )
    name = handover_of(server).name
    stranger = await asyncio.create_subprocess_exec(
        *MOCKS["mock"].argv[:3], "-c", connect, name, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await stranger.communicate()
    assert output.decode().strip() in ("refused", "(b'', [])")
    assert (await client.turn(await client.create(), "a new agent is accepted"))[0] == 200


async def test_connection_of_the_server_is_refused_at_the_handover_socket(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_of(server), "timeout", 0.1)
    with sockets.socket(sockets.AF_UNIX) as stranger:
        stranger.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stranger, "\0" + handover_of(server).name)
        assert await asyncio.wait_for(loop.sock_recv(stranger, 100), 5) == b""
