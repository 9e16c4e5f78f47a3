"""``POST /run`` with a fake claude program, which follows a script."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from server.runs.claude import claude_environ

from ..conftest import Serve
from ..support.harness import (
    Client,
    Json,
    LocalServer,
    descendants,
    eventually,
    is_running,
)
from ..support.runs import (
    command_line,
    fail,
    is_clean,
    last_reason,
    make_fake_claude,
    parent_of,
    pid_in,
    post,
    rows,
    run,
    steps,
    until_ended,
    upload,
)


async def test_success_has_exactly_four_keys(client: Client) -> None:
    status, reply = await client.post("/run", {"prompt": "hello"})
    assert status == 200
    assert reply == {
        "ok": True,
        "result": "hello",
        "duration_ms": reply["duration_ms"],
        "stop_reason": "end_turn",
    }
    assert isinstance(reply["duration_ms"], int)


async def test_result_and_stop_reason_come_from_program(client: Client) -> None:
    assert await run(client, steps({"result": '```json\n{"n": 1}\n```'})) == {"n": 1}
    message = {"type": "result", "is_error": False, "result": "found"}
    noisy = steps({"print": "a new version is there"}, {"result": "found"})
    verbose = steps({"print": json.dumps([{"type": "system"}, message])})
    for prompt in (noisy, verbose, steps({"stderr": "a warning"}, {"result": "found"})):
        assert await run(client, prompt) == "found"
    prompt = steps({"result": "x", "stop_reason": "stop_sequence"})
    assert (await post(client, {"prompt": prompt}))[1]["stop_reason"] == "stop_sequence"


async def test_prompt_is_sent_to_stdin(client: Client) -> None:
    prompt = steps({"report": True}) + "\n" + " " * (5 << 20)
    report = await run(client, prompt)
    assert report["prompt_bytes"] == len(prompt)
    assert report["argv"][:3] == ["-p", "--output-format", "json"]
    assert await run(client, "-p --not-an-option") == "-p --not-an-option"


async def test_prompt_over_claude_limit_is_refused(client: Client) -> None:
    status, reply = await post(client, {"prompt": "x" * ((10 << 20) + 1)})
    assert (status, reply["code"]) == (413, "payload_too_large")
    assert "prompt" in reply["error"]


async def test_request_fields_become_command_line_options(client: Client) -> None:
    report = await run(client, steps({"report": True}), model="opus", effort="max", system="Be.")
    argv = report["argv"]
    for option, value in (("--model", "opus"), ("--effort", "max"), ("--system-prompt", "Be.")):
        assert argv[argv.index(option) + 1] == value
    appended = await run(client, steps({"report": True}), system="-p", system_mode="append")
    assert appended["argv"][-2:] == ["--append-system-prompt", "-p"]
    # Only the operator's settings allow tools.
    assert argv[argv.index("--permission-mode") + 1] == "dontAsk"
    assert "--no-session-persistence" in argv
    assert not [option for option in argv if "dangerously" in option]


async def test_system_prompt_opens_no_file_of_that_name(serve: Serve, tmp_path: Path) -> None:
    secret = tmp_path / "operator" / "id_ed25519"
    secret.parent.mkdir()
    secret.write_text("secret")
    server = await serve(claude_bin=make_fake_claude(tmp_path), sandbox_write=())
    client = await server.client()
    prompt = steps({"read": str(secret)})
    assert (await run(client, prompt, system=str(secret))).startswith("error:")


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


async def test_invalid_field_is_named_in_error(server: LocalServer, client: Client) -> None:
    before = await rows(server)
    for field, value in BAD_FIELDS:
        status, reply = await post(client, {"prompt": "x", field: value})
        assert (status, reply["code"]) == (400, "bad_request"), (field, str(value)[:50])
        assert field in reply["error"]
        assert reply["ok"] is False
        if field == "effort":  # the error lists the valid values
            assert reply["error"].endswith("it may be high, low, max, medium, xhigh")
    assert await rows(server) == before


async def test_run_requires_prompt_and_token(server: LocalServer, client: Client) -> None:
    before = await rows(server)
    status, reply = await client.post("/run", {})
    assert (status, reply["code"]) == (400, "bad_request")
    assert "prompt" in reply["error"]
    assert (await server.anonymous().post("/run", {"prompt": "x"}))[0] == 401
    assert await rows(server) == before


async def test_file_paths_precede_prompt(client: Client) -> None:
    tokens = [await upload(client, b"one"), await upload(client, b"two")]
    head, *paths, prompt = (await run(client, "read these", files=tokens)).split("\n")
    assert (head, prompt) == ("[Attached files]", "read these")
    assert [Path(path).name for path in paths] == ["notes.txt", "notes.txt"]
    assert not any(Path(path).exists() for path in paths)  # copies for this run
    argv = (await run(client, steps({"report": True}), files=tokens))["argv"]
    at = argv.index("--add-dir")
    assert [Path(one).name for one in argv[at + 1 :]] == [Path(path).parent.name for path in paths]


async def test_file_of_another_app_is_refused(server: LocalServer, client: Client) -> None:
    token = await upload(client, b"mine")
    other = await server.client("other")
    status, reply = await other.post("/run", {"prompt": "x", "files": [token]})
    assert (status, reply["code"]) == (400, "bad_request")


async def test_each_run_has_own_folder_that_is_removed(server: LocalServer, client: Client) -> None:
    prompt = steps({"touch": "left behind"}, {"report": True})
    folders = [Path((await run(client, prompt))["cwd"]) for _ in range(2)]
    assert folders[0] != folders[1]
    assert all(folder.is_relative_to(server.services.settings.data_dir) for folder in folders)
    assert is_clean(server)


FAILURES = [
    (steps({"signal": "SIGKILL"}), "signal 9", True),
    (steps({"exit": 0}), "claude", True),
    (steps({"stderr": "first\nno such flag"}, {"exit": 1}), "no such flag", True),
    (steps({"print": "Segmentation fault"}), "Segmentation fault", True),
    (steps({"print": "[]"}), "[]", True),
    (steps({"print": "[1, 2]"}), "[1, 2]", True),
    (steps({"print": '{"type":"result"}'}), "claude", True),
    (steps({"print": '{"type":"result","result":7}'}), "claude", True),
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


async def test_failure_is_502_with_cause_and_retryable(client: Client) -> None:
    for prompt, error, retryable in FAILURES:
        reply = await fail(client, prompt)
        assert error in reply["error"], prompt
        assert (reply["code"], reply["stop_reason"]) == ("agent_failed", "error"), prompt
        assert reply["retryable"] is retryable, prompt


async def test_failure_contains_end_of_stderr(client: Client) -> None:
    reply = await fail(client, steps({"stderr": "x" * 100_000}, {"stderr": "end"}, {"exit": 2}))
    assert reply["stderr"].endswith("x\nend")
    assert len(reply["stderr"]) <= 8192


async def test_refused_credential_is_login_required(client: Client) -> None:
    told = {"is_error": True, "api_error_status": 401}
    reply = await fail(client, steps({"result": "Failed to authenticate", **told}, {"exit": 1}))
    assert (reply["code"], reply["retryable"]) == ("login_required", False)
    assert reply["auth_methods"] == []


async def test_output_over_limit_fails(client: Client) -> None:
    reply = await fail(client, steps({"flood": 70}, {"sleep": 100}))
    assert "64 MiB" in reply["error"]


async def test_run_over_its_time_limit_ends_as_timeout(client: Client) -> None:
    reply = await fail(client, steps({"stderr": "thinking"}, {"sleep": 100}), timeout_secs=1)
    assert (reply["code"], reply["stop_reason"]) == ("agent_timeout", "timeout")
    assert reply["stderr"] == "thinking"
    assert reply["duration_ms"] >= 1000


async def test_result_printed_before_deadline_counts(client: Client) -> None:
    """The program prints in time and does not exit; output after the SIGTERM does not count."""
    prompt = steps({"ignore_sigterm": True}, {"result": "in time"}, {"sleep": 100})
    assert await run(client, prompt, timeout_secs=1.5) == "in time"
    told = {"is_error": True, "api_error_status": 400}
    reply = await fail(client, steps({"result": "no", **told}, {"sleep": 100}), timeout_secs=1.5)
    assert (reply["code"], reply["stop_reason"]) == ("agent_failed", "error")


async def test_program_that_ignores_sigterm_is_killed_with_its_tools(
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
        await until_ended(pid)


async def test_stopped_program_gets_sigterm_first(client: Client, tmp_path: Path) -> None:
    began, cleaned = tmp_path / "began", tmp_path / "cleaned"
    prompt = steps({"on_sigterm": str(cleaned)}, {"touch": str(began)}, {"sleep": 100})
    asked = asyncio.create_task(post(client, {"prompt": prompt}))
    pid = await pid_in(began)
    asked.cancel()
    assert await pid_in(cleaned) == pid
    await until_ended(pid)


async def test_no_tool_outlives_its_run(client: Client, tmp_path: Path) -> None:
    endings: list[Json] = [{"result": "done"}, {"exit": 1}, {"signal": "SIGKILL"}]
    for number, ending in enumerate(endings):
        tool = tmp_path / f"tool-{number}"
        await post(client, {"prompt": steps({"spawn": str(tool)}, ending)})
        assert not is_running(await pid_in(tool)), ending


async def test_disconnect_of_client_stops_run(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    tool, program = tmp_path / "tool", tmp_path / "program"
    prompt = steps({"touch": str(program)}, {"spawn": str(tool)}, {"sleep": 100})
    asked = asyncio.create_task(client.post("/run", {"prompt": prompt}))
    pids = [await pid_in(program), await pid_in(tool)]
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    for pid in pids:
        await until_ended(pid)
    await eventually("the end of the run to be stored", lambda: last_reason(server, "cancelled"))
    assert is_clean(server)


async def test_killed_supervisor_leaves_no_process(client: Client, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    asked = asyncio.create_task(fail(client, steps({"spawn": str(tool)}, {"sleep": 100})))
    pid = await pid_in(tool)
    program = parent_of(pid)
    os.kill(parent_of(program), signal.SIGKILL)
    assert "lost" in (await asked)["error"]
    await until_ended(program)
    await until_ended(pid)


async def test_killed_spawner_is_restarted(client: Client) -> None:
    await run(client, "x")
    starter = next(pid for pid in descendants(os.getpid()) if b"spawn.py" in command_line(pid))
    os.kill(starter, signal.SIGKILL)
    await until_ended(starter)
    assert await run(client, "still here") == "still here"


async def test_api_timeout_is_time_limit_of_run() -> None:
    environ = claude_environ({"HOME": "/h"}, 1.5)
    assert environ["API_TIMEOUT_MS"] == "1500"
    assert int(environ["CLAUDE_CODE_MAX_RETRIES"]) > 0
    assert environ["HOME"] == "/h"
    own = {"CLAUDE_CODE_MAX_RETRIES": "9", "API_TIMEOUT_MS": "1000"}
    assert own.items() <= claude_environ(own, 60).items()
    assert claude_environ({"API_TIMEOUT_MS": "99000"}, 60)["API_TIMEOUT_MS"] == "60000"
