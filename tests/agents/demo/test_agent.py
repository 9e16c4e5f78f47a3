"""The bundled demo agent, driven over stdio as acpx does."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.stdio_client import TIMEOUT, Json, StdioAgent, is_alive, wait_for

from .conftest import DEMO, NOTES, Start


def choose(option: str) -> Callable[[Json], Json]:
    """Answers every permission request with one option."""
    return lambda _: {"outcome": {"outcome": "selected", "optionId": option}}


# ---- handshake


def test_initialize_reports_the_capabilities(agent: StdioAgent) -> None:
    answer = agent.initialize()
    assert answer["protocolVersion"] == 1
    assert "demo" in answer["agentInfo"]["name"]
    capabilities = answer["agentCapabilities"]
    assert capabilities["loadSession"] is True
    assert capabilities["promptCapabilities"] == {
        "image": True,
        "audio": True,
        "embeddedContext": True,
    }
    assert set(capabilities["sessionCapabilities"]) == {"resume", "fork", "close"}
    assert agent.call("authenticate", {"methodId": "none"}) == {}


def test_new_session_has_modes_options_and_commands(agent: StdioAgent, tmp_path: Path) -> None:
    agent.initialize()
    session = agent.call("session/new", {"cwd": str(tmp_path), "mcpServers": []})
    assert session["modes"]["currentModeId"] == "ask"
    categories = [option["category"] for option in session["configOptions"]]
    assert categories == ["mode", "model", "thought_level"]
    commands = agent.until_update("available_commands_update")["availableCommands"]
    assert {"help", "plan", "diff", "permission", "image"} <= {c["name"] for c in commands}


def test_agent_runs_as_a_module(start: Start) -> None:
    agent = start([sys.executable, "-m", "server.agents.demo.demo_agent"])
    assert agent.prompt(agent.open_session(), "hello").result["stopReason"] == "end_turn"


# ---- answers


def test_first_reply_streams_thoughts_a_tool_call_and_usage(agent: StdioAgent) -> None:
    session = agent.open_session()
    turn = agent.prompt(session, "How do I boil an egg?")
    assert turn.result == {"stopReason": "end_turn"}
    assert "How do I boil an egg?" in turn.thoughts
    assert "> How do I boil an egg?" in turn.text
    assert "no model" in turn.text
    (call,), (end,) = turn.of_kind("tool_call"), turn.of_kind("tool_call_update")
    assert (call["kind"], call["status"], end["status"]) == ("read", "in_progress", "completed")
    assert call["toolCallId"] == end["toolCallId"]
    assert len(turn.of_kind("agent_message_chunk")) > 30, "streamed word by word"
    assert turn.of_kind("session_info_update")[0]["title"] == "How do I boil an egg?"
    usage = turn.updates[-1]
    assert usage["sessionUpdate"] == "usage_update"
    assert 0 < usage["used"] < usage["size"]
    assert usage["cost"] == {"amount": 0.0, "currency": "USD"}


def test_title_is_the_first_line_of_the_first_message(agent: StdioAgent) -> None:
    session = agent.open_session()
    agent.prompt(session, "The first\nwith more lines")
    turn = agent.prompt(session, "The second")
    assert turn.of_kind("session_info_update")[0]["title"] == "The first"


def test_each_command_works_with_and_without_a_slash(agent: StdioAgent) -> None:
    agent.on_request = choose("allow_once")
    for command in (
        *("help", "plan", "diff", "files", "permission", "tools", "think", "table"),
        *("code", "image", "long", "recall", "usage", "mode", "model", "thought_level"),
    ):
        session = agent.open_session()
        for words in (command, "/" + command):
            turn = agent.prompt(session, words)
            assert turn.result == {"stopReason": "end_turn"}, words
            assert turn.text.strip(), words


def test_help_lists_every_command(agent: StdioAgent, tmp_path: Path) -> None:
    agent.initialize()
    session = agent.call("session/new", {"cwd": str(tmp_path), "mcpServers": []})["sessionId"]
    commands = agent.until_update("available_commands_update")["availableCommands"]
    listing = agent.prompt(session, "Help!").text
    assert all(f"| `{command['name']}" in listing for command in commands)
    assert agent.prompt(session, "/help").text == listing


def test_unknown_command_is_named_in_the_reply(agent: StdioAgent) -> None:
    assert "`/frobnicate`" in agent.prompt(agent.open_session(), "/frobnicate now").text


def test_command_is_recognized_in_a_polite_sentence(agent: StdioAgent) -> None:
    turn = agent.prompt(agent.open_session(), "Please show me a plan")
    assert turn.of_kind("plan")


def test_plan_entries_move_from_pending_to_completed(agent: StdioAgent) -> None:
    plans = agent.prompt(agent.open_session(), "/plan").of_kind("plan")
    states = [[entry["status"] for entry in plan["entries"]] for plan in plans]
    assert states[0] == ["in_progress", "pending", "pending", "pending"]
    assert states[1] == ["completed", "in_progress", "pending", "pending"]
    assert states[-1] == ["completed"] * 4


def test_replies_contain_markdown_tables_and_code(agent: StdioAgent) -> None:
    session = agent.open_session()
    assert "| ---: |" in agent.prompt(session, "table").text
    assert "```python\ndef primes(limit: int)" in agent.prompt(session, "code").text
    assert "    sieve = bytearray" in agent.prompt(session, "code").text, "indentation survives"


def test_tools_command_makes_tool_calls_of_several_kinds(agent: StdioAgent) -> None:
    turn = agent.prompt(agent.open_session(), "tools")
    assert [call["kind"] for call in turn.of_kind("tool_call")] == [
        "read",
        "read",
        "search",
        "fetch",
    ]
    assert {end["status"] for end in turn.of_kind("tool_call_update")} == {"completed"}


def test_image_command_sends_a_png(agent: StdioAgent) -> None:
    turn = agent.prompt(agent.open_session(), "paint an image")
    blocks = [update["content"] for update in turn.of_kind("agent_message_chunk")]
    (image,) = [block for block in blocks if block["type"] == "image"]
    assert image["mimeType"] == "image/png"
    data = base64.b64decode(image["data"])
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"IEND" in data[-12:]


def test_long_command_sends_the_requested_number_of_words(agent: StdioAgent) -> None:
    assert len(agent.prompt(agent.open_session(), "long 1000").text.split()) == 1000 + 4


def test_fail_command_ends_the_turn_with_an_error_a_refusal_or_a_crash(agent: StdioAgent) -> None:
    session = agent.open_session()
    assert agent.prompt(session, "fail").error["code"] == -32603
    assert agent.prompt(session, "/fail refusal").result == {"stopReason": "refusal"}
    assert agent.prompt(session, "hello").result == {"stopReason": "end_turn"}
    with pytest.raises(EOFError):
        agent.prompt(session, "/fail crash")
    assert agent.wait() == 1


# ---- attachments of a prompt


def test_non_text_blocks_are_described(agent: StdioAgent) -> None:
    data = base64.b64encode(b"x" * 100).decode()
    turn = agent.prompt(
        agent.open_session(),
        [
            {"type": "image", "mimeType": "image/png", "data": data},
            {"type": "audio", "mimeType": "audio/wav", "data": data[:4]},
            {"type": "resource_link", "uri": "file:///a.txt", "name": "a.txt"},
            {"type": "resource", "resource": {"uri": "mem:b", "text": "first\nsecond"}},
            {"type": "resource", "resource": {"uri": "mem:c", "blob": data}},
        ],
    )
    assert turn.result["stopReason"] == "end_turn"
    for fact in (
        "image: `image/png`, 100 bytes",
        "audio: `audio/wav`, 3 bytes",
        "resource link: `file:///a.txt` (a.txt)",
        "resource: `mem:b`, 12 characters, begins `first`",
        "resource: `mem:c`, 100 bytes",
    ):
        assert fact in turn.text


def test_attached_files_are_read(agent: StdioAgent, tmp_path: Path) -> None:
    notes, blob = tmp_path / "notes.txt", tmp_path / "blob"
    notes.write_text("first line\nsecond line\n")
    blob.write_bytes(bytes(5000))
    files = f"[Attached files]\n{notes}\n{blob}\n{tmp_path}/none"
    turn = agent.prompt(agent.open_session(), f"{files}\nhelp")
    assert f"**notes.txt**, {notes.stat().st_size} bytes, begins `first line`" in turn.text
    assert "**blob**, 5000 bytes, binary" in turn.text
    assert f"could not read `{tmp_path}/none`" in turn.text
    assert "What I can show" in turn.text, "the text after the files is a command"
    ends = [update["status"] for update in turn.of_kind("tool_call_update")]
    assert ends == ["completed", "completed", "failed"]
    assert turn.of_kind("session_info_update")[0]["title"] == "help"


# ---- permissions


def test_permitted_diff_is_written_to_the_file(agent: StdioAgent, tmp_path: Path) -> None:
    agent.on_request = choose("allow_once")
    session = agent.open_session()
    before: str | None = None
    for _ in range(2):
        turn = agent.prompt(session, "diff")
        (call,) = turn.of_kind("tool_call")
        (diff,) = call["content"]
        assert (call["kind"], call["status"]) == ("edit", "pending")
        assert (diff["type"], diff["path"]) == ("diff", str(tmp_path / NOTES))
        assert diff["oldText"] == before
        assert diff["newText"] == (tmp_path / NOTES).read_text()
        states = [update["status"] for update in turn.of_kind("tool_call_update")]
        assert states == ["in_progress", "completed"]
        before = diff["newText"]


def test_permission_request_has_all_four_options(agent: StdioAgent) -> None:
    session = agent.open_session()
    prompt = agent.start_prompt(session, "diff")
    request = agent.until_call("session/request_permission")
    kinds = [option["kind"] for option in request["params"]["options"]]
    assert kinds == ["allow_once", "allow_always", "reject_once", "reject_always"]
    agent.answer(request, {"outcome": {"outcome": "selected", "optionId": "reject_once"}})
    assert agent.finish(prompt).result == {"stopReason": "end_turn"}


@pytest.mark.parametrize(
    ("option", "written", "asked"),
    [
        ("allow_once", True, 2),
        ("allow_always", True, 1),
        ("reject_once", False, 2),
        ("reject_always", False, 1),
        ("no such option", False, 2),
    ],
)
def test_permission_option_decides_the_edit(
    start: Start, tmp_path: Path, option: str, written: bool, asked: int
) -> None:
    requests = []

    def answer(request: Json) -> Json:
        requests.append(request)
        return choose(option)(request)

    agent = start()
    agent.on_request = answer
    session = agent.open_session()
    turns = [agent.prompt(session, "diff") for _ in range(2)]
    assert len(requests) == asked
    assert (tmp_path / NOTES).exists() is written
    for turn in turns:
        last = turn.of_kind("tool_call_update")[-1]["status"]
        assert last == ("completed" if written else "failed")
        assert ("you said no" in turn.text) is not written


def test_allow_always_applies_after_a_restart(start: Start, tmp_path: Path) -> None:
    first = start()
    first.on_request = choose("allow_always")
    session = first.open_session()
    first.prompt(session, "diff")
    first.process.kill()
    second = start()
    second.load_session(session)
    assert second.prompt(session, "diff").result == {"stopReason": "end_turn"}
    assert (tmp_path / NOTES).read_text().count("\n- ") == 2


def test_dismissed_permission_cancels_the_turn(agent: StdioAgent, tmp_path: Path) -> None:
    agent.on_request = lambda _: {"outcome": {"outcome": "cancelled"}}
    turn = agent.prompt(agent.open_session(), "diff")
    assert turn.result == {"stopReason": "cancelled"}
    assert turn.of_kind("tool_call_update")[-1]["status"] == "failed"
    assert not (tmp_path / NOTES).exists()


def test_failed_permission_request_is_a_rejection(agent: StdioAgent, tmp_path: Path) -> None:
    prompt = agent.start_prompt(agent.open_session(), "diff")
    request = agent.until_call("session/request_permission")
    agent.send({"id": request["id"], "error": {"code": -32603, "message": "broken"}})
    assert agent.finish(prompt).result == {"stopReason": "end_turn"}
    assert not (tmp_path / NOTES).exists()


def test_permitted_command_is_run(agent: StdioAgent) -> None:
    agent.on_request = choose("allow_once")
    turn = agent.prompt(agent.open_session(), "permission")
    end = turn.of_kind("tool_call_update")[-1]
    assert end["rawOutput"] == {"exitCode": 0, "stdout": "5050\n", "stderr": ""}
    assert "```console" in end["content"][0]["content"]["text"]
    assert "**5050**" in turn.text


# ---- cancel


def test_cancel_ends_the_turn_immediately(agent: StdioAgent) -> None:
    session = agent.open_session()
    prompt = agent.start_prompt(session, "/slow 600")
    agent.until_update("tool_call_update")
    agent.cancel(session)
    turn = agent.finish(prompt)  # fails long before the 600 seconds
    assert turn.result == {"stopReason": "cancelled"}
    assert turn.of_kind("tool_call_update")[-1]["status"] == "failed", "no tool call stays open"
    assert agent.prompt(session, "hello").result == {"stopReason": "end_turn"}


def test_cancel_interrupts_the_stream(start: Start) -> None:
    agent = start(pace_ms="60000")
    session = agent.open_session()
    prompt = agent.start_prompt(session, "help")
    agent.until_update("agent_message_chunk")
    agent.cancel(session)
    turn = agent.finish(prompt)
    assert turn.result == {"stopReason": "cancelled"}
    assert len(turn.of_kind("agent_message_chunk")) == 0


def test_cancel_resolves_a_pending_permission(agent: StdioAgent, tmp_path: Path) -> None:
    session = agent.open_session()
    prompt = agent.start_prompt(session, "diff")
    request = agent.until_call("session/request_permission")
    agent.cancel(session)
    assert agent.finish(prompt).result == {"stopReason": "cancelled"}
    agent.answer(request, choose("allow_once")(request))  # too late
    assert agent.prompt(session, "hello").result == {"stopReason": "end_turn"}
    assert not (tmp_path / NOTES).exists()


def test_cancel_request_cancels_the_prompt(agent: StdioAgent) -> None:
    prompt = agent.start_prompt(agent.open_session(), "/slow")
    agent.until_update("tool_call")
    agent.notify("$/cancel_request", {"requestId": prompt})
    assert agent.finish(prompt).result == {"stopReason": "cancelled"}


def test_cancel_without_a_turn_has_no_effect(agent: StdioAgent) -> None:
    session = agent.open_session()
    agent.cancel(session)
    agent.cancel("no such session")
    assert agent.prompt(session, "hello").result == {"stopReason": "end_turn"}


def test_second_prompt_is_rejected_while_other_sessions_work(agent: StdioAgent) -> None:
    first, second = agent.open_session(), agent.open_session()
    slow = agent.start_prompt(first, "/slow")
    agent.until_update("tool_call")
    assert agent.prompt(first, "hello").error["code"] == -32600
    assert agent.prompt(second, "hello").result == {"stopReason": "end_turn"}
    agent.cancel(first)
    assert agent.finish(slow).result == {"stopReason": "cancelled"}


def test_close_cancels_the_turn_and_unloads_the_session(agent: StdioAgent, tmp_path: Path) -> None:
    session = agent.open_session()
    prompt = agent.start_prompt(session, "/slow")
    agent.until_update("tool_call")
    close = agent.start("session/close", {"sessionId": session})
    answers: dict[int, Json] = {}
    while len(answers) < 2:
        message = agent.next_message()
        if "method" not in message:
            answers[message["id"]] = message["result"]
    assert answers == {prompt: {"stopReason": "cancelled"}, close: {}}
    assert agent.prompt(session, "hello").error["code"] == -32002
    assert agent.load_session(session).result


# ---- errors


@pytest.mark.parametrize("session", ["nope", "../../etc/passwd", "a" * 1000, ""])
@pytest.mark.parametrize("method", ["session/prompt", "session/load", "session/resume"])
def test_unknown_session_is_an_error(
    shared_agent: StdioAgent, tmp_path: Path, method: str, session: str
) -> None:
    params = {"sessionId": session, "cwd": str(tmp_path), "mcpServers": [], "prompt": []}
    assert shared_agent.request(method, params).error["code"] == -32002


def test_damaged_file_is_an_unknown_session(start: Start, tmp_path: Path) -> None:
    session = start().open_session()
    (tmp_path / ".demo-agent" / f"{session}.json").write_text('{"messages": [')
    assert start().load_session(session).error["code"] == -32002


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("session/fly", {}, -32601),
        ("session/list", {}, -32601),
        ("initialize", {}, -32602),
        ("session/new", {}, -32602),
        ("session/new", {"cwd": "relative", "mcpServers": []}, -32602),
        ("session/new", {"cwd": "/no/such/folder", "mcpServers": []}, -32602),
        ("session/prompt", {"prompt": []}, -32602),
        ("session/set_mode", {"sessionId": 7}, -32602),
        ("session/new", ["not", "an", "object"], -32602),
        ("session/new", None, -32602),
    ],
)
def test_invalid_request_is_an_error(
    shared_agent: StdioAgent, method: str, params: Any, code: int
) -> None:
    assert shared_agent.request(method, params).error["code"] == code
    assert shared_agent.initialize()["protocolVersion"] == 1


def test_invalid_prompt_is_an_error(agent: StdioAgent) -> None:
    session = agent.open_session()
    invalid: list[Any] = [
        "text",
        ["text"],
        [{"type": "text"}],
        [{"type": "hologram", "data": ""}],
        [{"type": ["text"]}],
        [{"type": "image", "data": "eA=="}],
        [{"type": "resource", "resource": "text"}],
        [{"type": "resource", "resource": {"uri": "mem:x"}}],
    ]
    for prompt in invalid:
        params = {"sessionId": session, "prompt": prompt}
        assert agent.request("session/prompt", params).error["code"] == -32602, prompt


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"this is not JSON", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"init', -32700),
        (b'{"text":"\xff\xfe"}', -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b"42", -32600),
        (b'{"id":1,"method":5}', -32600),
    ],
)
def test_malformed_line_gets_an_error_response(
    shared_agent: StdioAgent, line: bytes, code: int
) -> None:
    shared_agent.write(line + b"\n")
    answer = shared_agent.next_message()
    assert (answer["id"], answer["error"]["code"]) == (None, code)
    assert shared_agent.initialize()["protocolVersion"] == 1


def test_notifications_and_unknown_responses_get_no_response(agent: StdioAgent) -> None:
    agent.write(b"\n  \n")
    agent.notify("_some/extension", {})
    agent.send({"id": 99, "result": {}})
    agent.send({"id": [], "error": {}})
    assert agent.request("initialize", {"protocolVersion": 1}).messages == []


# ---- the end


@pytest.mark.parametrize("prompt", ["hello", "/slow 600", "diff"])
def test_agent_exits_at_the_end_of_stdin(agent: StdioAgent, prompt: str) -> None:
    agent.start_prompt(agent.open_session(), prompt)
    agent.until_update("session_info_update")
    agent.close_stdin()
    assert agent.wait() == 0
    assert "".join(agent.stderr) == ""


def test_agent_exits_on_sigterm(agent: StdioAgent) -> None:
    agent.start_prompt(agent.open_session(), "/slow 600")
    agent.until_update("tool_call")
    agent.process.terminate()
    assert agent.wait() == -signal.SIGTERM
    assert "".join(agent.stderr) == ""


def test_agent_exits_silently_on_a_broken_pipe(tmp_path: Path) -> None:
    process = subprocess.Popen(
        DEMO, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}\n')
        process.stdin.flush()
        assert process.wait(TIMEOUT) == 0
        assert process.stderr.read() == b""


def test_agent_leaves_no_process(agent: StdioAgent) -> None:
    agent.on_request = choose("allow_once")
    agent.prompt(agent.open_session(), "permission")
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    if children.exists():
        assert children.read_text() == ""
    pid = agent.process.pid
    agent.close_stdin()
    agent.wait()
    wait_for(lambda: not is_alive(pid), "the agent to end")


def test_invalid_pace_is_replaced_by_the_default(start: Start) -> None:
    agent = start(pace_ms="fast")
    assert agent.prompt(agent.open_session(), "/model").result == {"stopReason": "end_turn"}


def test_startup_imports_no_slow_modules() -> None:
    """Most of the start-up time is spent on imports."""
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", *DEMO[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
        env=dict(os.environ),
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in listing.splitlines()}
    assert "json" in imported
    assert not imported & {"asyncio", "subprocess", "inspect", "dataclasses", "socket", "logging"}
