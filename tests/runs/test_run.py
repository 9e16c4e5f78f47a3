"""``POST /run``, on a fake claude that misbehaves to order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ..support.harness import (
    Client,
    Json,
    LocalServer,
    descendants,
    eventually,
    is_running,
    local_server,
)
from ..support.runs import (
    command_line,
    fail,
    gone,
    is_clean,
    last_reason,
    make_fake_claude,
    parent_of,
    pid_in,
    post,
    rows,
    run,
    steps,
    upload,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
on_module = pytest_asyncio.fixture(scope="module", loop_scope="module")


@on_module
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    """One server for all tests of this module."""
    folder = tmp_path_factory.mktemp("run")
    claude = make_fake_claude(folder)
    async with local_server(folder / "data", claude_bin=claude, cancel_grace_secs=0.2) as running:
        yield running


@on_module
async def client(server: LocalServer) -> Client:
    return await server.client()


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
    before = await rows(server)
    for field, value in BAD_FIELDS:
        status, reply = await post(client, {"prompt": "x", field: value})
        assert (status, reply["code"]) == (400, "bad_request"), (field, str(value)[:50])
        assert field in reply["error"]
        assert reply["ok"] is False
        if field == "effort":  # what it may be is told, too
            assert reply["error"].endswith("it may be high, low, max, medium, xhigh")
    assert await rows(server) == before


async def test_a_run_needs_a_prompt_and_a_token(server: LocalServer, client: Client) -> None:
    before = await rows(server)
    status, reply = await client.post("/run", {})
    assert (status, reply["code"]) == (400, "bad_request")
    assert "prompt" in reply["error"]
    assert (await server.anonymous().post("/run", {"prompt": "x"}))[0] == 401
    assert await rows(server) == before


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


BAD_TIMES = [
    (steps({"signal": "SIGKILL"}), "killed by signal 9", True),
    (steps({"exit": 0}), "without an answer", True),
    (steps({"stderr": "first\nno such flag"}, {"exit": 1}), "no such flag", True),
    (steps({"print": "Segmentation fault"}), "what it wrote is none", True),
    (steps({"print": "[]"}), "what it wrote is none", True),
    (steps({"print": "[1, 2]"}), "what it wrote is none", True),
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
        steps(
            {"print": '{"type":"result","subtype":"error_max_turns","errors":["too many turns"]}'}
        ),
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
    assert (reply["code"], reply["retryable"]) == ("login_required", False)
    assert reply["auth_methods"] == []


async def test_an_endless_answer_is_cut_off(client: Client) -> None:
    reply = await fail(client, steps({"flood": 70}, {"sleep": 100}))
    assert "64 MiB" in reply["error"]


async def test_over_its_time_a_run_ends_as_timeout(client: Client) -> None:
    reply = await fail(client, steps({"stderr": "thinking"}, {"sleep": 100}), timeout_secs=1)
    assert (reply["code"], reply["stop_reason"]) == ("agent_timeout", "timeout")
    assert reply["stderr"] == "thinking"
    assert reply["duration_ms"] >= 1000


async def test_a_result_that_was_printed_in_time_is_the_answer(client: Client) -> None:
    """The program does not end; what it prints when it is told to end does not count."""
    prompt = steps({"ignore_sigterm": True}, {"result": "in time"}, {"sleep": 100})
    assert await run(client, prompt, timeout_secs=0.5) == "in time"
    told = {"is_error": True, "api_error_status": 400}
    reply = await fail(client, steps({"result": "no", **told}, {"sleep": 100}), timeout_secs=0.5)
    assert (reply["code"], reply["stop_reason"]) == ("agent_failed", "error")


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
    await eventually("the run's row to be ended", lambda: last_reason(server, "cancelled"))
    assert is_clean(server)


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
