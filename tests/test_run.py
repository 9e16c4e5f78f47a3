"""``POST /run``: on a fake claude that misbehaves to order, on the real one, and through acpx."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.runner import Queue, claude_environ, result_json
from server.store import RunRow

from .anthropic_stand_in import Failure, Hang, StandIn, Text, ToolUse, stand_in, texts_of
from .conftest import Serve, Spawn
from .harness import (
    ROOT,
    Client,
    Json,
    LocalServer,
    descendants,
    eventually,
    is_running,
    new_client,
    script,
)
from .real_claude import NotInstallableError, find_claude

KEYS = {"ok", "result", "duration_ms", "stop_reason"}
FAILURE_KEYS = {"ok", "error", "code", "stderr", "duration_ms", "stop_reason"}


def steps(*steps: Json) -> str:
    """A prompt that the fake claude carries out; see its table of steps."""
    return json.dumps(steps)


@pytest.fixture
def fake_claude(tmp_path: Path) -> str:
    """The fake program, started by this Python without delay."""
    source = (ROOT / "tests" / "agents" / "fake_claude.py").read_text("utf-8")
    program = tmp_path / "claude"
    program.write_text(f"#!{sys.executable} -IS\n{source}", "utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
async def server(serve: Serve, fake_claude: str) -> LocalServer:
    return await serve(claude_bin=fake_claude, cancel_grace_secs=0.2)


async def post(client: Client, body: Json) -> tuple[int, Json]:
    # A body of megabytes has to be a file for aiohttp's client.
    return await client.call("POST", "/run", data=io.BytesIO(json.dumps(body).encode()))


async def run(client: Client, prompt: str, **body: Any) -> Any:
    """The result of a run that ends well."""
    status, reply = await post(client, {"prompt": prompt, **body})
    assert status == 200, reply
    assert set(reply) == KEYS
    assert reply["ok"] is True
    return reply["result"]


async def fail(client: Client, prompt: str, **body: Any) -> Json:
    """The reply to a run that does not."""
    status, reply = await client.post("/run", {"prompt": prompt, **body})
    assert status == 502, reply
    assert set(reply) >= FAILURE_KEYS
    assert reply["ok"] is False
    return reply


def read_rows(data_dir: Path) -> list[RunRow]:
    """The table of runs, in the order of their start."""
    columns = ", ".join(field.name for field in dataclasses.fields(RunRow))
    with contextlib.closing(sqlite3.connect(data_dir / "clawdforge.db")) as database:
        found = database.execute(f"SELECT {columns} FROM runs ORDER BY rowid").fetchall()
    return [RunRow(*row) for row in found]


async def rows(server: LocalServer) -> list[RunRow]:
    return await asyncio.to_thread(read_rows, server.services.settings.data_dir)


def is_clean(server: LocalServer) -> bool:
    """Whether no run has left a folder."""
    return not list((server.services.settings.data_dir / "runs").iterdir())


async def pid_in(path: Path) -> int:
    """The pid that a step writes to *path*."""
    return int(await eventually(f"{path.name} to be written", lambda: _text_of(path)))


def _text_of(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def gone(pid: int) -> None:
    await eventually(f"process {pid} to end", lambda: not is_running(pid))


# Answers.


async def test_an_answer_has_exactly_four_keys(client: Client) -> None:
    status, reply = await client.post("/run", {"prompt": "hello"})
    assert status == 200
    assert reply == {
        "ok": True,
        "result": "hello",
        "duration_ms": reply["duration_ms"],
        "stop_reason": "end_turn",
    }
    assert isinstance(reply["duration_ms"], int)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain words", "plain words"),
        (" spaces stay \n", " spaces stay \n"),
        ("", ""),
        ('{"a": [1, 2.50, null]}', {"a": [1, 2.5, None]}),
        ('\n {"a": 1} \n', {"a": 1}),
        ("42", 42),
        ("12345678901234567890123", 12345678901234567890123),
        ('"a string"', "a string"),
        ("null", None),
        ("NaN", "NaN"),
        ("{'a': 1}", "{'a': 1}"),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("  ```\n[1,\n2]\n```\n", [1, 2]),
        ("```python\n  x = 1\ny = 2\n```", "  x = 1\ny = 2"),
        ("```\n```", ""),
        ("Here:\n```json\n{}\n```", "Here:\n```json\n{}\n```"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
        ("```json {}```", "```json {}```"),
        ("cut \ud83d", "cut \ud83d"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_result_is_json_where_it_is_json_and_loses_its_fence(text: str, result: Any) -> None:
    assert json.loads(result_json(text)) == result


async def test_the_answer_is_what_the_program_says(client: Client) -> None:
    assert await run(client, steps({"result": '```json\n{"n": 1}\n```'})) == {"n": 1}
    message = {"type": "result", "is_error": False, "result": "found"}
    noisy = steps({"print": "a new version is there"}, {"result": "found"})
    verbose = steps({"print": json.dumps([{"type": "system"}, message])})
    for prompt in (noisy, verbose, steps({"stderr": "a warning"}, {"result": "found"})):
        assert await run(client, prompt) == "found"
    prompt = steps({"result": "x", "stop_reason": "stop_sequence"})
    assert (await post(client, {"prompt": prompt}))[1]["stop_reason"] == "stop_sequence"


async def test_the_prompt_goes_by_stdin_whatever_its_size(client: Client) -> None:
    prompt = steps({"report": True}) + "\n" + " " * (5 << 20)
    report = await run(client, prompt)
    assert report["prompt_bytes"] == len(prompt)
    assert report["argv"][:3] == ["-p", "--output-format", "json"]
    assert await run(client, "-p --not-an-option") == "-p --not-an-option"


async def test_what_claude_would_not_take_is_too_large(client: Client) -> None:
    status, reply = await post(client, {"prompt": "x" * ((10 << 20) + 1)})
    assert (status, reply["code"]) == (413, "payload_too_large")
    assert "prompt" in reply["error"]


async def test_fields_become_options(client: Client) -> None:
    report = await run(client, steps({"report": True}), model="opus", effort="max", system="Be.")
    argv = report["argv"]
    for option, value in (("--model", "opus"), ("--effort", "max"), ("--system-prompt", "Be.")):
        assert argv[argv.index(option) + 1] == value
    appended = await run(client, steps({"report": True}), system="-p", system_mode="append")
    assert appended["argv"][-2:] == ["--append-system-prompt", "-p"]
    # Nothing is allowed that the operator has not allowed.
    assert argv[argv.index("--permission-mode") + 1] == "dontAsk"
    assert "--no-session-persistence" in argv
    assert not [option for option in argv if "dangerously" in option]


BAD_FIELDS: list[tuple[str, Any]] = [
    ("prompt", None),
    ("prompt", ""),
    ("prompt", " \n"),
    ("prompt", ["x"]),
    ("model", ""),
    ("model", "--dangerously-skip-permissions"),
    ("model", "a\0b"),
    ("model", 1),
    ("system", "a\0b"),
    ("system", "x" * ((1 << 20) + 1)),
    ("system_mode", "prepend"),
    ("effort", "extreme"),
    ("files", "ff_x"),
    ("files", [1]),
    ("files", ["ff_unknown"]),
    ("files", ["ff_x"] * 101),
    ("timeout_secs", 0),
    ("timeout_secs", "60"),
    ("timeout_secs", 86401),
    ("agent", "no-such-agent"),
    ("agent", 7),
]


async def test_a_bad_field_is_named(server: LocalServer, client: Client) -> None:
    for field, value in BAD_FIELDS:
        status, reply = await post(client, {"prompt": "x", field: value})
        assert (status, reply["code"]) == (400, "bad_request"), (field, str(value)[:50])
        assert field in reply["error"]
        assert reply["ok"] is False
    assert await rows(server) == []


async def test_a_run_needs_a_prompt_and_a_token(server: LocalServer, client: Client) -> None:
    status, reply = await client.post("/run", {})
    assert (status, reply["code"]) == (400, "bad_request")
    assert "prompt" in reply["error"]
    assert (await server.anonymous().post("/run", {"prompt": "x"}))[0] == 401
    assert await rows(server) == []


# Files and folders.


async def upload(client: Client, content: bytes, name: str = "notes.txt") -> str:
    form = aiohttp.FormData()
    form.add_field("file", content, filename=name)
    async with client.http.post(
        client.url + "/files", data=form, headers=client.headers()
    ) as response:
        assert response.status == 200
        return str((await response.json())["file_token"])


async def test_files_are_named_in_front_of_the_prompt(client: Client) -> None:
    tokens = [await upload(client, b"one"), await upload(client, b"two")]
    head, *paths, prompt = (await run(client, "read these", files=tokens)).split("\n")
    assert (head, prompt) == ("[Attached files]", "read these")
    assert [Path(path).read_bytes() for path in paths] == [b"one", b"two"]
    argv = (await run(client, steps({"report": True}), files=tokens))["argv"]
    at = argv.index("--add-dir")
    assert argv[at + 1 :] == [str(Path(path).parent) for path in paths]


async def test_another_apps_file_is_unknown(server: LocalServer, client: Client) -> None:
    token = await upload(client, b"mine")
    other = await server.client("other")
    status, reply = await other.post("/run", {"prompt": "x", "files": [token]})
    assert (status, reply["code"]) == (400, "bad_request")


async def test_each_run_has_a_folder_of_its_own_for_its_time(
    server: LocalServer, client: Client
) -> None:
    prompt = steps({"touch": "left behind"}, {"report": True})
    folders = [Path((await run(client, prompt))["cwd"]) for _ in range(2)]
    assert folders[0] != folders[1]
    assert all(folder.is_relative_to(server.services.settings.data_dir) for folder in folders)
    assert is_clean(server)


async def test_the_program_gets_the_allowed_environment(
    serve: Serve, fake_claude: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a key")
    monkeypatch.setenv("CLAWDFORGE_ADMIN_TOKEN", "a secret")
    monkeypatch.setenv("SOMETHING_ELSE", "private")
    client = await (await serve(claude_bin=fake_claude)).client()
    environ = (await run(client, steps({"report": True})))["env"]
    assert environ["ANTHROPIC_API_KEY"] == "a key"
    assert not [name for name in environ if name.startswith("CLAWDFORGE_")]
    assert "SOMETHING_ELSE" not in environ


def test_retries_are_bounded_so_that_a_run_ends_in_time() -> None:
    environ = claude_environ({"HOME": "/h"}, 60)
    retries, timeout = int(environ["CLAUDE_CODE_MAX_RETRIES"]), int(environ["API_TIMEOUT_MS"])
    assert (retries + 1) * timeout < 60_000
    assert environ["HOME"] == "/h"
    own = {"CLAUDE_CODE_MAX_RETRIES": "9", "API_TIMEOUT_MS": "1000"}
    assert own.items() <= claude_environ(own, 60).items()


# Failures.


BAD_TIMES = [
    (steps({"signal": "SIGKILL"}), "killed by signal 9", True),
    (steps({"result": "late"}, {"signal": "SIGTERM"}), "late", True),
    (steps({"exit": 0}), "without an answer", True),
    (steps({"stderr": "first\nno such flag"}, {"exit": 1}), "status 1: no such flag", True),
    (steps({"print": "Segmentation fault"}), "what it wrote is none", True),
    (steps({"print": "[]"}), "what it wrote is none", True),
    (steps({"print": '{"type":"result"}'}), "without an answer", True),
    (steps({"print": '{"type":"result","result":7}'}), "without an answer", True),
    (steps({"result": "late", "is_error": True}), "late", True),
    (steps({"result": "fine"}, {"exit": 1}), "fine", True),
    (
        steps({"result": "429 slow down", "is_error": True, "api_error_status": 429}),
        "429 slow down",
        True,
    ),
    (
        steps({"result": "400 no", "is_error": True, "api_error_status": 400}, {"exit": 1}),
        "400 no",
        False,
    ),
    (
        steps({"print": '{"subtype":"error_max_turns","errors":["too many turns"]}'}),
        "too many turns",
        True,
    ),
]


async def test_whatever_goes_wrong_is_a_502_that_says_what(client: Client) -> None:
    for prompt, error, retryable in BAD_TIMES:
        reply = await fail(client, prompt)
        assert error in reply["error"], prompt
        assert (reply["code"], reply["stop_reason"]) == ("agent_failed", "error"), prompt
        assert reply["retryable"] is retryable, prompt


async def test_stderr_is_told_but_for_its_beginning(client: Client) -> None:
    reply = await fail(client, steps({"stderr": "x" * 100_000}, {"stderr": "end"}, {"exit": 2}))
    assert reply["stderr"].endswith("x\nend")
    assert len(reply["stderr"]) <= 8192


async def test_a_refused_credential_is_not_a_passing_failure(client: Client) -> None:
    told = {"is_error": True, "api_error_status": 401}
    reply = await fail(client, steps({"result": "Failed to authenticate", **told}, {"exit": 1}))
    assert (reply["code"], reply["retryable"]) == ("agent_unavailable", False)


async def test_an_endless_answer_is_cut_off(client: Client) -> None:
    reply = await fail(client, steps({"flood": 70}, {"sleep": 100}))
    assert "64 MiB" in reply["error"]


async def test_a_named_program_that_is_not_there_is_unavailable(serve: Serve) -> None:
    server = await serve(claude_bin="/no/such/claude")
    client = await server.client()
    for body in ({}, {"agent": "claude"}):
        reply = await fail(client, "x", **body)
        assert (reply["code"], reply["stop_reason"]) == ("agent_unavailable", "error")
        assert "npm install" in reply["error"]
    assert [row.error for row in await rows(server)] == ["agent_unavailable"] * 2


async def test_a_program_that_cannot_be_started_is_told(serve: Serve, tmp_path: Path) -> None:
    program = tmp_path / "claude"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    client = await (await serve(claude_bin=str(program))).client()
    reply = await fail(client, "x")
    assert "No such file or directory" in reply["error"]
    assert "No such file or directory" in reply["stderr"]


async def test_a_run_that_cannot_have_a_folder_fails_as_internal(
    server: LocalServer, client: Client
) -> None:
    runs = server.services.settings.data_dir / "runs"
    runs.rmdir()
    runs.touch()
    status, reply = await client.post("/run", {"prompt": "x"})
    assert (status, reply["code"]) == (502, "internal")
    assert (await rows(server))[-1].error == "internal"


# Ends.


async def test_over_its_time_a_run_ends_as_timeout(client: Client) -> None:
    reply = await fail(client, steps({"stderr": "thinking"}, {"sleep": 100}), timeout_secs=1)
    assert (reply["code"], reply["stop_reason"]) == ("agent_timeout", "timeout")
    assert reply["stderr"] == "thinking"
    assert reply["duration_ms"] >= 1000


async def test_the_servers_own_bound_on_time_holds_too(serve: Serve, fake_claude: str) -> None:
    server = await serve(claude_bin=fake_claude, run_timeout_secs=0.2)
    reply = await fail(await server.client(), steps({"sleep": 100}), timeout_secs=100)
    assert reply["stop_reason"] == "timeout"


async def test_a_program_that_ignores_sigterm_is_killed_with_its_tools(
    client: Client, tmp_path: Path
) -> None:
    program, tool = tmp_path / "program", tmp_path / "tool"
    ignoring = steps(
        {"ignore_sigterm": True}, {"spawn": str(tool)}, {"touch": str(program)}, {"sleep": 100}
    )
    asked = asyncio.create_task(post(client, {"prompt": ignoring}))
    pids = [await pid_in(program), await pid_in(tool)]
    asked.cancel()
    for pid in pids:
        await gone(pid)


async def test_a_program_may_clean_up_when_it_is_stopped(client: Client, tmp_path: Path) -> None:
    began, cleaned = tmp_path / "began", tmp_path / "cleaned"
    prompt = steps({"on_sigterm": str(cleaned)}, {"touch": str(began)}, {"sleep": 100})
    asked = asyncio.create_task(post(client, {"prompt": prompt}))
    pid = await pid_in(began)
    asked.cancel()
    assert await pid_in(cleaned) == pid
    await gone(pid)


async def test_no_tool_outlives_its_run(client: Client, tmp_path: Path) -> None:
    endings: list[Json] = [{"result": "done"}, {"exit": 1}, {"signal": "SIGKILL"}]
    for number, ending in enumerate(endings):
        tool = tmp_path / f"tool-{number}"
        await post(client, {"prompt": steps({"spawn": str(tool)}, ending)})
        assert not is_running(await pid_in(tool)), ending


async def test_a_client_that_hangs_up_stops_its_run(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    tool, program = tmp_path / "tool", tmp_path / "program"
    prompt = steps({"touch": str(program)}, {"spawn": str(tool)}, {"sleep": 100})
    asked = asyncio.create_task(client.post("/run", {"prompt": prompt}))
    pids = [await pid_in(program), await pid_in(tool)]
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    for pid in pids:
        await gone(pid)
    await eventually("the run's row to be ended", lambda: _last_reason(server, "cancelled"))
    assert is_clean(server)


async def _last_reason(server: LocalServer, reason: str) -> bool:
    return (await rows(server))[-1].stop_reason == reason


async def test_a_killed_server_leaves_nothing_of_its_runs(
    spawn: Spawn, http: aiohttp.ClientSession, fake_claude: str, tmp_path: Path
) -> None:
    process = await spawn(CLAUDE_BIN=fake_claude)
    client = await new_client(process.url, http)
    tool, program = tmp_path / "tool", tmp_path / "program"
    prompt = steps(
        {"ignore_sigterm": True}, {"touch": str(program)}, {"spawn": str(tool)}, {"sleep": 100}
    )
    other = script({"touch": str(tmp_path / "other")}, {"hang": True})
    asked = [
        asyncio.create_task(client.post("/run", {"prompt": prompt})),
        asyncio.create_task(client.post("/run", {"prompt": other, "agent": "mock"})),
    ]
    await eventually("the other to run", (tmp_path / "other").exists)
    below = {await pid_in(program), await pid_in(tool), *descendants(process.pid)}
    await process.kill()
    await asyncio.gather(*asked, return_exceptions=True)
    for pid in below:
        await gone(pid)
    await spawn(CLAUDE_BIN=fake_claude)
    found = await asyncio.to_thread(read_rows, tmp_path / "data")
    assert [(row.stop_reason, row.error) for row in found] == [("error", "server_restarted")] * 2
    for kind in ("runs", "acpx/sessions"):
        assert list((tmp_path / "data" / kind).iterdir()) == []


async def test_a_killed_supervisor_leaves_nothing_either(client: Client, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    asked = asyncio.create_task(fail(client, steps({"spawn": str(tool)}, {"sleep": 100})))
    pid = await pid_in(tool)
    program = parent_of(pid)
    os.kill(parent_of(program), signal.SIGKILL)
    assert "lost" in (await asked)["error"]
    await gone(program)
    await gone(pid)


async def test_a_killed_starter_is_started_again(client: Client) -> None:
    await run(client, "x")
    starter = next(pid for pid in descendants(os.getpid()) if b"spawn.py" in command_line(pid))
    os.kill(starter, signal.SIGKILL)
    await gone(starter)
    assert await run(client, "still here") == "still here"


# Many at once.


def _is_queued(server: LocalServer, count: int) -> bool:
    return server.services.runner.queued == count


async def test_of_fifty_at_once_each_is_answered_or_refused(
    serve: Serve, fake_claude: str, tmp_path: Path
) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=4, run_queue=10)
    client = await server.client()
    runner, gate = server.services.runner, tmp_path / "gate"

    async def ask(number: int) -> tuple[int, Json]:
        prompt = steps(
            {"touch": str(tmp_path / f"began-{number}")},
            {"gate": str(gate)},
            {"result": str(number)},
        )
        return await client.post("/run", {"prompt": prompt})

    asked = [asyncio.create_task(ask(number)) for number in range(50)]
    await eventually("36 to be refused", lambda: sum(task.done() for task in asked) == 36)
    assert int(client.last_headers["Retry-After"]) > 0
    assert (runner.running, runner.queued) == (4, 10)
    await eventually("four to begin", lambda: len(list(tmp_path.glob("began-*[0-9]"))) == 4)
    gate.touch()
    answers = await asyncio.gather(*asked)
    assert sorted(status for status, _ in answers) == [200] * 14 + [503] * 36
    for number, (status, reply) in enumerate(answers):
        if status == 200:
            assert reply["result"] == number
        else:
            assert (reply["ok"], reply["code"]) == (False, "pool_full")
    assert (runner.running, runner.queued) == (0, 0)
    assert is_clean(server)


async def test_the_queue_is_first_come_first_served(
    serve: Serve, fake_claude: str, tmp_path: Path
) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1)
    gate = tmp_path / "gate"
    prompts = [steps({"gate": str(gate)}), *("x" * size for size in (5, 3, 4, 1, 2))]
    asked = []
    for queued, prompt in enumerate(prompts):
        client = await server.client(f"app-{queued}")
        asked.append(asyncio.create_task(client.post("/run", {"prompt": prompt})))
        await eventually("it to be queued", functools.partial(_is_queued, server, queued))
    gate.touch()
    await asyncio.gather(*asked)
    assert [row.prompt_bytes for row in await rows(server)][1:] == [5, 3, 4, 1, 2]


async def test_nobody_waits_in_the_queue_for_long(serve: Serve, fake_claude: str) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1, run_queue_secs=0.1)
    client = await server.client()
    held = asyncio.create_task(client.post("/run", {"prompt": steps({"sleep": 100})}))
    await eventually("it to run", lambda: server.services.runner.running == 1)
    status, reply = await client.post("/run", {"prompt": "x"})
    assert (status, reply["code"]) == (503, "pool_full")
    assert len(await rows(server)) == 1  # what never ran leaves none
    held.cancel()


async def test_who_hangs_up_in_the_queue_makes_room(serve: Serve, fake_claude: str) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1, run_queue=1)
    client = await server.client()
    runner = server.services.runner
    asked = []
    for queued in (0, 1):
        asked.append(asyncio.create_task(client.post("/run", {"prompt": steps({"sleep": 100})})))
        await eventually("it to be queued", functools.partial(_is_queued, server, queued))
    asked[1].cancel()
    await eventually("the queue to be empty", lambda: runner.queued == 0)
    assert runner.running == 1
    asked[0].cancel()
    assert await run(client, "x") == "x"


async def test_a_place_that_comes_with_the_hang_up_is_not_lost() -> None:
    queue = Queue(1, 1, 10)
    nobody = asyncio.get_running_loop().create_future()

    async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with queue.place(nobody):
            entered.set()
            await leave.wait()

    entered, leave = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold(entered, leave))
    await entered.wait()
    second = asyncio.create_task(hold(asyncio.Event(), leave))
    await eventually("the second to wait", lambda: len(queue))
    leave.set()
    await first  # the second has its place now, and does not know it yet
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    async with asyncio.timeout(1), queue.place(nobody):
        pass


async def test_a_server_that_stops_ends_its_runs(
    serve: Serve, fake_claude: str, tmp_path: Path
) -> None:
    server = await serve(claude_bin=fake_claude, max_runs=1, drain_secs=0)
    client = await server.client()
    tool = tmp_path / "tool"
    prompt = steps({"spawn": str(tool)}, {"sleep": 100})
    running = asyncio.create_task(client.post("/run", {"prompt": prompt}))
    pid = await pid_in(tool)
    queued = asyncio.create_task(client.post("/run", {"prompt": "x"}))
    await eventually("one to wait", lambda: server.services.runner.queued == 1)
    await server.stop()
    status, reply = await running
    assert (status, reply["code"], reply["stop_reason"]) == (502, "server_restarted", "cancelled")
    status, reply = await queued
    assert (status, reply["code"]) == (503, "draining")
    assert not is_running(pid)


async def test_a_server_that_stops_lets_runs_finish_for_a_while(
    serve: Serve, fake_claude: str, tmp_path: Path
) -> None:
    server = await serve(claude_bin=fake_claude)
    client = await server.client()
    began, gate = tmp_path / "began", tmp_path / "gate"
    prompt = steps({"touch": str(began)}, {"gate": str(gate)}, {"result": "done"})
    running = asyncio.create_task(run(client, prompt))
    await pid_in(began)
    stopping = asyncio.create_task(server.stop())
    await eventually("the stop to begin", lambda: server.services.sessions.is_draining)
    gate.touch()
    assert await running == "done"
    await stopping


# The record.


async def test_every_run_has_a_row_without_its_words(server: LocalServer, client: Client) -> None:
    await run(client, "do you remember zanzibar?", model="opus")
    await fail(client, steps({"stderr": "zanzibar"}, {"exit": 1}))
    await run(client, "zanzibar", agent="mock")
    good, bad, other = await rows(server)
    assert (good.app_name, good.agent, good.model) == ("app", "claude", "opus")
    assert (good.prompt_bytes, good.result_bytes) == (25, 27)
    assert (good.stop_reason, good.error) == ("end_turn", None)
    assert good.duration_ms is not None
    assert good.duration_ms > 0
    assert abs(good.started_at - time.time()) < 60
    assert (bad.stop_reason, bad.error, bad.result_bytes) == ("error", "agent_failed", None)
    assert other.agent == "mock"
    await server.stop()
    data = server.services.settings.data_dir
    stored = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert b"zanzibar" not in stored


# Another agent, through acpx.


def mock_agents() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if b"mock_agent.py" in command_line(pid)]


def records_of(server: LocalServer) -> list[Path]:
    return list((server.services.settings.data_dir / "acpx" / "sessions").glob("*.json"))


async def test_another_agent_answers_by_the_same_contract(
    server: LocalServer, client: Client
) -> None:
    assert await run(client, "hello", agent="mock") == "echo: hello"
    told = script({"think": "hm"}, {"say": "```json\n"}, {"say": '{"a": 1}'}, {"say": "\n```"})
    assert await run(client, told, agent="mock") == {"a": 1}
    _, reply = await client.post("/run", {"prompt": script({"stop": "refusal"}), "agent": "mock"})
    assert (reply["result"], reply["stop_reason"]) == ("", "refusal")
    token = await upload(client, b"x")
    assert "[Attached files]" in await run(client, "with a file", agent="mock", files=[token])
    # And nothing is left of any.
    assert mock_agents() == []
    assert records_of(server) == []
    assert is_clean(server)
    assert (await client.get("/sessions"))[1]["count"] == 0


async def test_another_agent_may_read_and_no_more(client: Client) -> None:
    for kind, allowed in (("read", True), ("search", True), ("edit", False), ("execute", False)):
        said = await run(client, script({"permission": {"kind": kind}}), agent="mock")
        assert said["permission"]["optionId"] == ("allow_once" if allowed else "reject_once")


async def test_another_agent_gets_model_and_system(client: Client) -> None:
    report = script({"report": True})
    replaced = await run(client, report, agent="mock", system="Be brief.")
    assert "Be brief." in json.dumps(replaced["session"])
    appended = await run(client, report, agent="mock", system="Be kind.", system_mode="append")
    assert {"append": "Be kind."} in _values(appended["session"])
    status, reply = await client.post("/run", {"prompt": "x", "agent": "mock", "effort": "low"})
    assert (status, reply["code"]) == (400, "bad_request")
    assert "effort" in reply["error"]


def _values(value: Any) -> list[Any]:
    """*value* and all that is in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(found for one in inner for found in _values(one))]


BAD_AGENTS = [
    ("mock", script({"say": "half"}, {"exit": 1}), "agent_failed"),
    ("mock", script({"error": {"code": -32603, "message": "no credit"}}), "agent_failed"),
    ("mock", script({"stop": "cancelled"}), "agent_failed"),
    ("mock-fail-new", "x", "agent_unavailable"),
    ("mock-dies", "x", "agent_unavailable"),
    ("missing", "x", "agent_unavailable"),
]


async def test_another_agents_failures_are_told_alike(server: LocalServer, client: Client) -> None:
    for agent, prompt, code in BAD_AGENTS:
        reply = await fail(client, prompt, agent=agent)
        assert reply["code"] == code, (agent, prompt)
        assert "no credit" not in prompt or "no credit" in reply["error"]
        assert (await rows(server))[-1].error == code
    assert records_of(server) == []
    assert is_clean(server)


async def test_other_agents_are_ended_in_time(server: LocalServer, client: Client) -> None:
    async def hang(agent: str) -> None:
        prompt = script({"ignore_cancel": True}, {"hang": True})
        reply = await fail(client, prompt, agent=agent, timeout_secs=1)
        assert (reply["code"], reply["stop_reason"]) == ("agent_timeout", "timeout")

    await asyncio.gather(*map(hang, ("mock", "mock-stubborn", "mock-silent")))
    assert mock_agents() == []
    assert records_of(server) == []


async def test_a_hang_up_ends_another_agent_with_its_tools(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    tool = tmp_path / "tool"
    left = {"pid_file": str(tool), "setsid": True, "ignore_sigterm": True}
    prompt = script({"spawn": left}, {"ignore_cancel": True}, {"hang": True})
    asked = asyncio.create_task(post(client, {"prompt": prompt, "agent": "mock-stubborn"}))
    pid = await pid_in(tool)
    asked.cancel()
    await eventually("the row to be ended", lambda: _last_reason(server, "cancelled"))
    await gone(pid)
    assert mock_agents() == []


async def test_without_claude_the_default_agent_answers(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no claude is there
    server = await serve()
    client = await server.client()
    assert await run(client, "hello", effort="low") == "echo: hello"
    assert (await rows(server))[-1].agent == "mock"
    reply = await fail(client, "hello", agent="claude")
    assert reply["code"] == "agent_unavailable"


# The real program.


@pytest.fixture(scope="session")
def real_claude() -> str:
    """The real program; where it cannot be installed its tests are skipped, or fail in CI."""
    try:
        return str(find_claude())
    except NotInstallableError as error:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))


Real = Callable[..., Awaitable[Client]]


@pytest.fixture
async def api() -> AsyncIterator[StandIn]:
    async with stand_in() as running:
        yield running


@pytest.fixture
def real(
    real_claude: str,
    api: StandIn,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Real:
    """A client at a server with the real program: ``await real(ANTHROPIC_API_KEY="")``."""

    async def start(**environ: str) -> Client:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        for name, value in {**api.environ, "HOME": str(home), **environ}.items():
            monkeypatch.setenv(name, value)
        return await (await serve(claude_bin=real_claude)).client()

    return start


installs = pytest.mark.timeout(600)  # the first one does


@installs
async def test_the_real_claude_answers(real: Real, api: StandIn) -> None:
    client = await real()
    api.plan(Text("Hello there."), Text('```json\n{"a": [1]}\n```'))
    system = "You count. " * 20_000  # too long for an argument
    assert await run(client, "hi", model="haiku", effort="high", system=system) == "Hello there."
    asked = api.requests[-1]
    assert "hi" in api.texts()
    assert "haiku" in asked["model"]
    assert asked["output_config"]["effort"] == "high"
    assert system.strip() in api.system()
    assert await run(client, "hi", system="Be kind.", system_mode="append") == {"a": [1]}
    assert "Be kind." in api.system()
    assert len(api.system()) > 1000  # behind its own


@installs
async def test_the_real_claude_takes_a_prompt_of_five_megabytes(real: Real, api: StandIn) -> None:
    client = await real()
    prompt = "All work and no play. " * ((5 << 20) // 22)
    assert await run(client, prompt) == "OK"
    assert prompt.strip() in [text.strip() for text in api.texts()]


@installs
async def test_the_real_claudes_api_errors_are_failures(real: Real, api: StandIn) -> None:
    client = await real(CLAUDE_CODE_MAX_RETRIES="0")
    expected = {401: "agent_unavailable", 429: "agent_failed", 529: "agent_failed"}
    for status, code in expected.items():
        api.plan(Failure(status, "so planned"))
        reply = await fail(client, "hi")
        assert (reply["code"], reply["stop_reason"]) == (code, "error")
        assert reply["retryable"] is (code == "agent_failed")
        assert "so planned" in reply["error"]


@installs
async def test_the_real_claude_soon_gives_up(real: Real, api: StandIn) -> None:
    client = await real()
    api.always(Failure(500))
    assert (await fail(client, "hi"))["code"] == "agent_failed"
    assert len(api.requests) == 3


@installs
async def test_the_real_claude_without_a_login_is_unavailable(real: Real) -> None:
    reply = await fail(await real(ANTHROPIC_API_KEY=""), "hi")
    assert (reply["code"], reply["retryable"]) == ("agent_unavailable", False)
    assert "/login" in reply["error"]


@installs
async def test_the_real_claude_reads_what_is_attached_and_nothing_else(
    real: Real, api: StandIn, tmp_path: Path
) -> None:
    client = await real()
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")

    def read_attached(body: Json) -> ToolUse:
        listed = next(text for text in texts_of(body) if text.startswith("[Attached files]"))
        return ToolUse("Read", {"file_path": listed.split("\n")[1]})

    api.plan(
        read_attached,
        ToolUse("Read", {"file_path": str(secret)}),
        ToolUse("Write", {"file_path": "new.txt", "content": "x"}),
        ToolUse("Bash", {"command": f"cat {secret}", "description": "look"}),
        Text("done"),
    )
    token = await upload(client, b"the notes")
    assert await run(client, f"@{secret} see", files=[token]) == "done"
    attached, *others = api.tool_results()
    assert "the notes" in json.dumps(attached)
    assert [result.get("is_error") for result in others] == [True] * 3
    assert "the secret" not in json.dumps(api.requests)


@installs
async def test_the_real_claude_is_stopped_in_time_with_its_tools(
    real: Real, api: StandIn, tmp_path: Path
) -> None:
    settings = tmp_path / "home" / ".claude" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"permissions": {"allow": ["Bash"]}}))
    client = await real()
    pid_file = tmp_path / "tool"
    command = f"setsid sleep 1000 & echo $! > {pid_file}; sleep 1000"
    api.plan(ToolUse("Bash", {"command": command, "description": "wait"}))
    asked = asyncio.create_task(client.post("/run", {"prompt": "hi"}))
    pid = await pid_in(pid_file)
    asked.cancel()
    await gone(pid)
    await asyncio.gather(asked, return_exceptions=True)
    assert not [pid for pid in descendants(os.getpid()) if b"sleep" in command_line(pid)]

    for hang in (Hang(), Hang(started=True)):
        api.plan(hang)
        reply = await fail(client, "hi", timeout_secs=1)
        assert reply["stop_reason"] == "timeout"
