"""The steps and flags of the mock agent."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import ValidationError

from tests.stand_ins import mock_agent
from tests.stand_ins.stdio_client import (
    SCHEMA_FILE,
    Json,
    StdioAgent,
    Turn,
    is_alive,
    updates_of,
    wait_for,
)
from tests.support.mock_agents import MOCK as PROGRAM

MOCK = [sys.executable, "-I", "-S", str(PROGRAM), "--commands"]

Start = Callable[..., StdioAgent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts mock agents in one folder, with flags, and ends them with the test."""
    with ExitStack() as stack:

        def start_one(
            *flags: str, env: dict[str, str] | None = None, check_schema: bool = True
        ) -> StdioAgent:
            agent = StdioAgent([*MOCK, *flags], tmp_path, env, check_schema=check_schema)
            return stack.enter_context(agent)

        yield start_one


@pytest.fixture
def agent(start: Start) -> StdioAgent:
    return start()


@pytest.fixture
def session(agent: StdioAgent) -> str:
    return agent.open_session()


def script(*steps: object) -> str:
    return json.dumps({"steps": steps})


def run(agent: StdioAgent, session: str, *steps: object) -> Turn:
    return agent.prompt(session, script(*steps))


def output(turn: Turn) -> Any:
    """The JSON output of a step."""
    return json.loads(turn.text)


def chunks(turn: Turn) -> list[str]:
    return [update["content"]["text"] for update in turn.of_kind("agent_message_chunk")]


def test_docstring_lists_every_step_and_flag() -> None:
    table, _, flags = (mock_agent.__doc__ or "").partition("\nFlags\n")
    steps = set(re.findall(r'^    \{"(\w+)":', table, re.MULTILINE)) - {"steps"}
    assert steps == set(mock_agent.STEPS)
    modules = Path(mock_agent.__file__).parent.glob("*.py")
    source = "".join(path.read_text() for path in modules).replace(mock_agent.__doc__ or "", "")
    for flag in re.findall(r"--([a-z-]+)", flags):
        assert f'"{flag}"' in source


# ---- plain prompts and the forms of a script


def test_plain_text_is_echoed(agent: StdioAgent, session: str) -> None:
    turn = agent.prompt(session, 'Hello, "Wörld" 🌍')
    assert turn.result == {"stopReason": "end_turn"}
    assert chunks(turn) == ['echo: Hello, "Wörld" 🌍']


def test_every_block_is_echoed(agent: StdioAgent, session: str) -> None:
    blocks = [
        {"type": "text", "text": "look"},
        {"type": "image", "mimeType": "image/png", "data": "eA=="},
        {"type": "resource_link", "uri": "file:///a", "name": "a"},
    ]
    assert agent.prompt(session, blocks).text == "echo: look\n[image]\n[resource_link]"
    blocks[0]["text"] = script({"echo": True})
    assert output(agent.prompt(session, blocks[:1])) == blocks[:1]


@pytest.mark.parametrize(
    "text",
    [
        '{"say": "hi"}',
        '[{"say": "hi"}]',
        '{"steps": [{"say": "hi"}]}',
        '[Attached files]\n/tmp/a b.txt\n{"say": "hi"}',
        '[Attached files]\n/tmp/a\n/tmp/b\n\n[{"say":\n"hi"}]',
    ],
)
def test_every_form_of_a_script_runs(agent: StdioAgent, session: str, text: str) -> None:
    assert agent.prompt(session, text).text == "hi"


@pytest.mark.parametrize("text", ["[]", "{}", "7", '"say"', '[1, {"say": "hi"}]', "[" * 99_999])
def test_other_json_is_plain_text(agent: StdioAgent, session: str, text: str) -> None:
    assert agent.prompt(session, text).text == "echo: " + text


def test_invalid_script_is_an_error(agent: StdioAgent, session: str) -> None:
    error = run(agent, session, {"sing": "la"}).error
    assert error["code"] == -32602
    assert "sing" in error["message"]
    assert run(agent, session, {"burst": {"text": "no count"}}).error["code"] == -32602
    assert agent.prompt(session, "still there").text == "echo: still there"


# ---- saying


def test_say_think_and_update_send_updates(agent: StdioAgent, session: str) -> None:
    plan = {"sessionUpdate": "plan", "entries": []}
    turn = run(agent, session, {"think": "hm"}, {"say": "a"}, {"say": {"b": 1}}, {"update": plan})
    assert turn.thoughts == "hm"
    assert chunks(turn) == ["a", '{"b": 1}']
    assert turn.updates[-1] == plan


def test_unknown_kinds_are_sent_unchanged(start: Start) -> None:
    agent = start(check_schema=False)
    session = agent.open_session()
    update = {"sessionUpdate": "brand_new_kind", "x": [1, None, "ü"]}
    notification = {"method": "_vendor/thing", "params": {"any": "thing"}}
    turn = run(agent, session, {"update": update}, {"notify": notification})
    assert turn.messages == [
        {
            "jsonrpc": "2.0",
            "method": "session/update",
            "params": {"sessionId": session, "update": update},
        },
        {"jsonrpc": "2.0", **notification},
    ]


@pytest.mark.skipif(not SCHEMA_FILE.exists(), reason="the npm packages are not installed")
def test_client_rejects_messages_that_violate_the_schema(agent: StdioAgent, session: str) -> None:
    with pytest.raises(ValidationError):
        run(agent, session, {"update": {"sessionUpdate": "plan", "entries": [{"content": 7}]}})


def test_burst_is_complete_and_in_order(start: Start) -> None:
    agent = start(check_schema=False)
    session = agent.open_session()
    turn = run(agent, session, {"burst": {"count": 20_500, "text": 'quote " and ü'}})
    assert chunks(turn) == [f'{number}:quote " and ü' for number in range(20_500)]


@pytest.mark.slow
def test_large_burst_ends_before_the_timeout(start: Start) -> None:
    """A benchmark must not measure the agent, which can send a million chunks per second."""
    agent = start(check_schema=False)
    request = agent.start_prompt(agent.open_session(), script({"burst": {"count": 200_000}}))
    assert len(chunks(agent.finish(request))) == 200_000


def test_burst_sends_thoughts_in_small_batches(agent: StdioAgent, session: str) -> None:
    burst = {"count": 5, "text": "t", "kind": "agent_thought_chunk", "batch": 2, "pause_ms": 1}
    assert run(agent, session, {"burst": burst}).thoughts == "0:t1:t2:t3:t4:t"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, pytest.param(70 << 20, marks=pytest.mark.slow)])
def test_chunk_has_the_requested_size(start: Start, size: int) -> None:
    agent = start(check_schema=False)
    (text,) = chunks(run(agent, agent.open_session(), {"chunk": size}))
    assert len(text) == size


def test_raw_bytes_are_sent_unchanged(agent: StdioAgent, session: str) -> None:
    turn = run(
        agent,
        session,
        {"raw": "garbage"},
        {"raw": {"base64": base64.b64encode(b"\xff\x00").decode()}},
        {"bad_utf8": True},
        {"raw": {"text": '{"jsonrpc":', "newline": False}},
        {"say": "swallowed"},
        {"say": "heard"},
    )
    assert chunks(turn) == ["heard"]
    assert agent.bad_lines[:2] == [b"garbage\n", b"\xff\x00\n"]
    assert b"bad \xff byte" in agent.bad_lines[2]
    assert agent.bad_lines[3].startswith(b'{"jsonrpc":{"jsonrpc"')
    assert b"swallowed" in agent.bad_lines[3]


def test_stderr_step_writes_a_line(agent: StdioAgent, session: str) -> None:
    run(agent, session, {"stderr": "oh dear"})
    wait_for(lambda: agent.stderr == ["oh dear\n"], "a line on stderr")


def test_repeat_substitutes_the_index(agent: StdioAgent, session: str) -> None:
    inner = {"repeat": {"times": 3, "steps": [{"say": "n{i} "}, {"think": "{i}"}]}}
    turn = run(agent, session, inner)
    assert (turn.text, turn.thoughts) == ("n0 n1 n2 ", "012")


# ---- telling


def test_report_and_env_describe_the_process(start: Start, tmp_path: Path) -> None:
    agent = start("--modes", env={"MOCK_TEST": "yes"})
    session = agent.open_session()
    report = output(run(agent, session, {"report": True}))
    assert report["pid"] == agent.process.pid
    assert report["ppid"] == os.getpid()
    assert report["pgid"] == os.getpgrp()
    assert report["cwd"] == str(tmp_path)
    assert report["argv"][1:] == ["--commands", "--modes"]
    assert "MOCK_TEST" in report["env"]
    assert {0, 1, 2} <= set(report["fds"])
    assert report["initialize"]["protocolVersion"] == 1
    assert report["session"]["sessionId"] == session
    assert report["session"]["params"] == {"cwd": str(tmp_path), "mcpServers": []}
    values = output(run(agent, session, {"env": ["MOCK_TEST", "MOCK_NONE"]}))
    assert values == {"MOCK_TEST": "yes", "MOCK_NONE": None}


# ---- asking


def test_permission_step_sends_the_outcome(agent: StdioAgent, session: str) -> None:
    outcome = {"outcome": "selected", "optionId": "b"}
    requests = []

    def answer(request: Json) -> Json:
        requests.append(request["params"])
        return {"outcome": outcome}

    agent.on_request = answer
    options = [{"optionId": "b", "name": "B", "kind": "allow_once"}]
    asked = {"title": "Rm", "kind": "execute", "options": options, "toolCall": {"rawInput": 1}}
    assert output(run(agent, session, {"permission": asked})) == {"permission": outcome}
    assert requests[0]["sessionId"] == session
    assert requests[0]["options"] == options
    call = requests[0]["toolCall"]
    assert (call["title"], call["kind"], call["rawInput"]) == ("Rm", "execute", 1)
    run(agent, session, {"permission": True})
    kinds = [option["kind"] for option in requests[1]["options"]]
    assert kinds == ["allow_once", "allow_always", "reject_once", "reject_always"]


def test_permission_list_makes_all_requests_at_once(agent: StdioAgent, session: str) -> None:
    prompt = agent.start_prompt(session, script({"permission": [{"title": "A"}, {"title": "B"}]}))
    requests = [agent.until_call("session/request_permission") for _ in range(2)]
    outcomes = [{"outcome": "selected", "optionId": option} for option in ("allow_once", "x")]
    for request, outcome in reversed(list(zip(requests, outcomes, strict=True))):
        agent.answer(request, {"outcome": outcome})
    assert output(agent.finish(prompt)) == {"permissions": outcomes}


def test_outcome_cancelled_ends_the_turn(agent: StdioAgent, session: str) -> None:
    agent.on_request = lambda _: {"outcome": {"outcome": "cancelled"}}
    turn = run(agent, session, {"permission": True}, {"say": "never"})
    assert output(turn) == {"permission": {"outcome": "cancelled"}}
    assert turn.result == {"stopReason": "cancelled"}


def test_request_step_sends_the_response(agent: StdioAgent, session: str) -> None:
    agent.on_request = lambda request: {"content": request["params"]["path"] + "!"}
    call = {"method": "fs/read_text_file", "params": {"path": "/a"}}
    assert output(run(agent, session, {"request": call})) == {
        "response": {"result": {"content": "/a!"}}
    }
    agent.on_request = None
    prompt = agent.start_prompt(session, script({"request": call}))
    request = agent.until_call("fs/read_text_file")
    error = {"code": -32601, "message": "no"}
    agent.send({"id": request["id"], "error": error})
    assert output(agent.finish(prompt)) == {"response": {"error": error}}


# ---- waiting and cancelling


def test_gate_waits_for_a_file(agent: StdioAgent, session: str, tmp_path: Path) -> None:
    steps = [{"touch": "there"}, {"gate": "go"}, {"say": "went"}]
    prompt = agent.start_prompt(session, script(*steps))
    wait_for((tmp_path / "there").exists, "the agent to be at the gate")
    (tmp_path / "go").touch()
    assert agent.finish(prompt).text == "went"


WAITS = {
    "sleep": {"sleep": 600_000},
    "gate": {"gate": "never"},
    "hang": {"hang": True},
    "permission": {"permission": True},
    "request": {"request": {"method": "_vendor/ask"}},
    "burst": {"burst": {"count": 1000, "batch": 1, "pause_ms": 600_000}},
    "repeat": {"repeat": {"times": 100_000_000, "steps": [{"think": "x"}]}},
}


@pytest.mark.parametrize("step", WAITS.values(), ids=WAITS)
def test_cancel_interrupts_a_waiting_step(start: Start, step: Json) -> None:
    agent = start(check_schema=False)
    session = agent.open_session()
    prompt = agent.start_prompt(session, script({"say": "now"}, step, {"say": "never"}))
    agent.until_update("agent_message_chunk")
    agent.cancel(session)
    turn = agent.finish(prompt)  # fails long before the 600 seconds of a step
    assert turn.result == {"stopReason": "cancelled"}
    assert "never" not in turn.text


def test_steps_after_wait_for_cancel_run(agent: StdioAgent, session: str) -> None:
    steps = [{"say": "1"}, {"wait_for": "cancel"}, {"say": "2"}, {"sleep": 1}, {"say": "3"}]
    prompt = agent.start_prompt(session, script(*steps))
    agent.until_update("agent_message_chunk")
    agent.cancel(session)
    turn = agent.finish(prompt)
    assert turn.text == "23"
    assert turn.result == {"stopReason": "cancelled"}


def test_ignored_cancel_does_not_end_the_turn(
    agent: StdioAgent, session: str, tmp_path: Path
) -> None:
    steps = [{"ignore_cancel": True}, {"say": "ready"}, {"gate": "go"}, {"say": "unmoved"}]
    prompt = agent.start_prompt(session, script(*steps))
    agent.until_update("agent_message_chunk")
    agent.cancel(session)
    # An answered request shows that the cancel before it was read.
    assert agent.request("no/such", {}).error["code"] == -32601
    (tmp_path / "go").touch()
    turn = agent.finish(prompt)
    assert turn.text == "unmoved"
    assert turn.result == {"stopReason": "end_turn"}


def test_second_prompt_is_rejected_during_a_turn(agent: StdioAgent, session: str) -> None:
    prompt = agent.start_prompt(session, script({"hang": True}))
    assert agent.prompt(session, "hello").error["code"] == -32600
    agent.cancel(session)
    assert agent.finish(prompt).result == {"stopReason": "cancelled"}


# ---- ending


def test_stop_result_and_error_end_the_turn(agent: StdioAgent, session: str) -> None:
    never = {"say": "never"}
    turn = run(agent, session, {"stop": "refusal"}, never)
    assert (turn.result, turn.text) == ({"stopReason": "refusal"}, "")
    loop = {"repeat": {"times": 3, "steps": [{"say": "{i}"}, {"stop": "max_tokens"}]}}
    assert run(agent, session, loop, never).text == "0"
    result = {"stopReason": "end_turn", "_meta": {"x": 1}}
    assert run(agent, session, {"result": result}, never).result == result
    error = {"code": -32000, "message": "log in", "data": {"why": ["so"]}}
    assert run(agent, session, {"error": error}, never).error == error


def test_late_updates_follow_the_response(agent: StdioAgent, session: str) -> None:
    late = {"late": {"delay_ms": 1, "steps": [{"gate": "go"}, {"say": "late"}]}}
    assert run(agent, session, late, {"touch": "go"}, {"say": "early"}).text == "early"
    assert agent.until_update("agent_message_chunk")["content"]["text"] == "late"
    run(agent, session, {"late": [{"say": "later"}]})
    assert agent.until_update("agent_message_chunk")["content"]["text"] == "later"


@pytest.mark.parametrize(
    ("step", "code"),
    [({"exit": 0}, 0), ({"exit": 3}, 3), ({"crash": "SIGKILL"}, -9), ({"crash": "SIGSEGV"}, -11)],
)
def test_exit_and_crash_end_the_process(
    agent: StdioAgent, session: str, step: Json, code: int
) -> None:
    prompt = agent.start_prompt(session, script({"say": "last words"}, step))
    assert agent.until_update("agent_message_chunk")["content"]["text"] == "last words"
    with pytest.raises(EOFError):
        agent.finish(prompt)
    assert agent.wait() == code


def test_agent_exits_at_the_end_of_stdin(agent: StdioAgent, session: str) -> None:
    agent.start_prompt(session, script({"say": "x"}, {"hang": True}))
    agent.until_update("agent_message_chunk")
    agent.close_stdin()
    assert agent.wait() == 0


def test_agent_exits_on_sigterm(agent: StdioAgent, session: str) -> None:
    agent.process.terminate()
    assert agent.wait() == -signal.SIGTERM


# ---- misbehaving


@pytest.fixture
def reaper() -> Iterator[list[int]]:
    """Kills the processes whose ids are in the list."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "options", [{}, {"setsid": True}, {"double_fork": True}, {"clear_env": True}]
)
def test_spawned_process_outlives_the_agent(
    agent: StdioAgent, session: str, tmp_path: Path, reaper: list[int], options: Json
) -> None:
    run(agent, session, {"spawn": {"pid_file": "child", "ignore_sigterm": True, **options}})
    pid = int((tmp_path / "child").read_text())
    reaper.append(pid)
    assert is_alive(pid)
    own_session = bool(options.get("setsid") or options.get("double_fork"))
    assert (os.getsid(pid) != os.getsid(agent.process.pid)) is own_session
    os.kill(pid, signal.SIGTERM)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert (parent == agent.process.pid) is not options.get("double_fork", False)
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert (environ == b"") is options.get("clear_env", False)
    agent.process.kill()
    assert agent.wait() == -9
    assert is_alive(pid), "it ignored SIGTERM and outlived its parent"


def test_spawned_process_can_hold_stdout(
    agent: StdioAgent, session: str, tmp_path: Path, reaper: list[int]
) -> None:
    run(agent, session, {"spawn": {"pid_file": "child", "hold_stdout": True}})
    pid = int((tmp_path / "child").read_text())
    reaper.append(pid)
    ours, theirs = (Path(f"/proc/{n}/fd/1").readlink() for n in (pid, agent.process.pid))
    assert ours == theirs
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("by_flag", [True, False])
def test_agent_survives_ignored_sigterm(start: Start, by_flag: bool) -> None:
    agent = start(*(["--ignore-sigterm"] if by_flag else []))
    session = agent.open_session()
    if not by_flag:
        run(agent, session, {"ignore_sigterm": True})
    for _ in range(3):
        agent.process.terminate()
        assert agent.prompt(session, "alive").text == "echo: alive"


@pytest.mark.parametrize("by_flag", [True, False])
def test_agent_survives_ignored_end_of_stdin(start: Start, tmp_path: Path, by_flag: bool) -> None:
    agent = start(*(["--ignore-eof"] if by_flag else []))
    session = agent.open_session()
    ignore = [] if by_flag else [{"ignore_eof": True}]
    steps = [*ignore, {"touch": "ready"}, {"gate": "go"}, {"say": "still here"}]
    prompt = agent.start_prompt(session, script(*steps))
    wait_for((tmp_path / "ready").exists, "the agent to ignore the end of stdin")
    agent.close_stdin()
    (tmp_path / "go").touch()
    assert agent.finish(prompt).text == "still here"
    assert is_alive(agent.process.pid)
    agent.process.terminate()
    assert agent.wait() == -signal.SIGTERM


def test_agent_that_stops_reading_leaves_messages_unread(
    agent: StdioAgent, session: str, tmp_path: Path
) -> None:
    steps = [{"stop_reading": True}, {"touch": "deaf"}, {"gate": "go"}]
    prompt = agent.start_prompt(session, script(*steps))
    wait_for((tmp_path / "deaf").exists, "the agent to stop reading")
    agent.notify("session/mode", {})  # the last message that it reads
    unread = agent.start("initialize", {"protocolVersion": 1})
    (tmp_path / "go").touch()
    turn = agent.finish(prompt)
    assert all(message.get("id") != unread for message in turn.messages)
    agent.close_stdin()
    assert is_alive(agent.process.pid)


def test_agent_survives_its_closed_stdout(agent: StdioAgent, session: str, tmp_path: Path) -> None:
    steps = [{"close_stdout": True}, {"say": "lost"}, {"touch": "alive"}]
    prompt = agent.start_prompt(session, script(*steps))
    with pytest.raises(EOFError):
        agent.finish(prompt)
    wait_for((tmp_path / "alive").exists, "the agent to continue")
    assert is_alive(agent.process.pid)


# ---- memory


HISTORY = script({"history": True})


@pytest.mark.parametrize("method", ["session/load", "session/resume"])
def test_context_survives_sigkill(start: Start, method: str) -> None:
    first = start("--resume")
    session = first.open_session()
    first.prompt(session, "one")
    two = script({"say": "x"}, {"hang": True})
    first.start_prompt(session, two)
    first.until_update("agent_message_chunk")
    first.process.kill()
    assert first.wait() == -9

    second = start("--resume")
    loaded = second.load_session(session, method)
    replayed = [(update["sessionUpdate"], update["content"]["text"]) for update in loaded.updates]
    assert replayed == (
        [
            ("user_message_chunk", "one"),
            ("agent_message_chunk", "echo: one"),
            ("user_message_chunk", two),
        ]
        if method == "session/load"
        else []
    )
    second.until_update("available_commands_update")
    assert output(second.prompt(session, HISTORY)) == ["one", two, HISTORY]


def test_state_folder_is_configurable(start: Start, tmp_path: Path) -> None:
    agent = start(env={"MOCK_STATE_DIR": str(tmp_path / "state")})
    session = agent.open_session()
    assert (tmp_path / "state" / f"{session}.json").exists()
    assert not (tmp_path / ".mock-agent").exists()


def test_unknown_session_is_an_error(agent: StdioAgent, tmp_path: Path) -> None:
    params = {"sessionId": "nope", "cwd": str(tmp_path), "mcpServers": [], "prompt": []}
    for method in ("session/prompt", "session/load", "session/set_mode"):
        assert agent.request(method, {**params, "modeId": "x"}).error["code"] == -32002


def test_closed_session_is_unknown(start: Start) -> None:
    agent = start("--close")
    assert agent.initialize()["agentCapabilities"]["sessionCapabilities"] == {"close": {}}
    session = agent.open_session()
    assert agent.call("session/close", {"sessionId": session}) == {}
    assert agent.prompt(session, "hello").error["code"] == -32002


# ---- flags


def capabilities(agent: StdioAgent) -> Json:
    return dict(agent.initialize()["agentCapabilities"])


def test_flags_set_the_capabilities(start: Start) -> None:
    plain = capabilities(start())
    assert (plain["loadSession"], plain["sessionCapabilities"]) == (True, {})
    assert all(plain["promptCapabilities"].values())
    assert capabilities(start("--no-load"))["loadSession"] is False
    assert capabilities(start("--resume"))["sessionCapabilities"] == {"resume": {}}
    assert not any(capabilities(start("--text-only"))["promptCapabilities"].values())


def test_methods_that_are_not_offered_fail(start: Start) -> None:
    agent = start("--no-load")
    session = agent.open_session()
    assert agent.load_session(session).error["code"] == -32601
    assert agent.load_session(session, "session/resume").error["code"] == -32601
    params = {"sessionId": session, "modeId": "code"}
    assert agent.request("session/set_mode", params).error["code"] == -32602


@pytest.mark.parametrize(("value", "code"), [("", -32603), ("=-32002", -32002)])
def test_fail_flags_set_the_error_code(start: Start, tmp_path: Path, value: str, code: int) -> None:
    session = start().open_session()
    assert start(f"--fail-load{value}").load_session(session).error["code"] == code
    params = {"cwd": str(tmp_path), "mcpServers": []}
    assert start(f"--fail-new{value}").request("session/new", params).error["code"] == code


def test_modes_and_config_options_can_be_set(start: Start, tmp_path: Path) -> None:
    agent = start("--modes")
    agent.initialize()
    new = agent.call("session/new", {"cwd": str(tmp_path), "mcpServers": []})
    session = new["sessionId"]
    assert [mode["id"] for mode in new["modes"]["availableModes"]] == ["ask", "code"]
    assert [option["category"] for option in new["configOptions"]] == ["model", "thought_level"]
    turn = agent.request("session/set_mode", {"sessionId": session, "modeId": "code"})
    assert turn.of_kind("current_mode_update")[0]["currentModeId"] == "code"
    option = {"sessionId": session, "configId": "model", "value": "mock-large"}
    turn = agent.request("session/set_config_option", option)
    assert turn.of_kind("config_option_update")[0] == {
        "sessionUpdate": "config_option_update",
        **turn.result,
    }
    bad = agent.request("session/set_config_option", {**option, "value": "gpt"})
    assert bad.error["code"] == -32602
    agent.process.kill()
    again = start("--modes").load_session(session).result
    assert again["modes"]["currentModeId"] == "code"
    assert again["configOptions"][0]["currentValue"] == "mock-large"


@pytest.mark.parametrize(
    ("params", "system"),
    [
        ({}, None),
        ({"_meta": {"systemPrompt": "Be brief."}}, "Be brief."),
        ({"_meta": {"systemPrompt": {"append": "Be kind."}}}, {"append": "Be kind."}),
    ],
)
def test_system_prompt_is_echoed(start: Start, params: Json, system: Any) -> None:
    agent = start("--system-echo")
    session = agent.open_session(**params)
    expected = [f"system: {json.dumps(system)}", "echo: hi"]
    assert chunks(agent.prompt(session, "hi")) == expected


def test_start_flags_end_or_silence_the_agent(start: Start) -> None:
    died = start("--die-at-start=7", "--stderr", "no luck")
    assert died.wait() == 7
    assert died.stderr == ["no luck\n"]
    assert start("--die-at-start").wait() == 1
    unknown = start("--fly")
    assert unknown.wait() == 1
    assert "--fly" in unknown.stderr[0]
    silent = start("--silent")
    silent.start("initialize", {"protocolVersion": 1})
    silent.close_stdin()
    with pytest.raises(EOFError):
        silent.next_message()


def test_slow_start_delays_and_banner_is_printed(start: Start) -> None:
    began = time.monotonic()
    agent = start("--slow-start", "300", "--banner=Update available!")
    agent.initialize()
    assert time.monotonic() - began >= 0.3
    assert agent.bad_lines == [b"Update available!\n"]


def test_pid_file_lists_every_start(start: Start, tmp_path: Path) -> None:
    agents = [start("--pid-file", str(tmp_path / "pids")) for _ in range(2)]
    for agent in agents:
        agent.initialize()
    pids = {int(line) for line in (tmp_path / "pids").read_text().split()}
    assert pids == {agent.process.pid for agent in agents}


# ---- the wire


def test_malformed_line_gets_an_error_response(agent: StdioAgent) -> None:
    agent.write(b"garbage\n")
    assert agent.next_message()["error"]["code"] == -32700
    assert agent.request("no/such/method", {}).error["code"] == -32601
    assert agent.request("session/new", {}).error["code"] == -32602
    agent.notify("_vendor/anything", {})
    assert agent.initialize()["protocolVersion"] == 1


def test_commands_are_sent_after_the_response(agent: StdioAgent, tmp_path: Path) -> None:
    agent.initialize()
    new = agent.request("session/new", {"cwd": str(tmp_path), "mcpServers": []})
    assert new.messages == []
    (update,) = updates_of([agent.next_message()])
    assert update["sessionUpdate"] == "available_commands_update"
