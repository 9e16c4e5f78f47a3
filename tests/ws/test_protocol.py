"""The session protocol: every command and every frame of the contract, against golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import CloseCode, Error, ErrorCode
from server.sessions import entries
from server.ws.protocol import (
    PROTOCOL,
    AuthCommand,
    CancelCommand,
    CloseCommand,
    Command,
    ElicitationCommand,
    InvalidCommandError,
    MalformedFrameError,
    PermissionCommand,
    PingCommand,
    PromptCommand,
    QueueCommand,
    SetConfigOptionCommand,
    SetModeCommand,
    SetModelCommand,
    addressed,
    bye_frame,
    error_frame,
    frame,
    parse_command,
)

GOLDEN = Path(__file__).parents[1] / "golden"
TS = 1767225600000

# The frame types of docs/reference/protocol.md.
NUMBERED = {
    "turn_start",
    "event",
    "permission_request",
    "permission_resolved",
    "elicitation_request",
    "elicitation_resolved",
    "turn_steer",
    "turn_end",
    "session_closed",
    "session_reopened",
    "notice",
}
NOT_NUMBERED = {
    "ready",
    "accepted",
    "error",
    "pong",
    "heartbeat",
    "bye",
    "session",
    "session_gone",
}
UP = {
    "auth",
    "prompt",
    "cancel",
    "queue",
    "permission",
    "elicitation",
    "set_mode",
    "set_model",
    "set_config_option",
    "close",
    "ping",
}


def golden(name: str) -> list[bytes]:
    return (GOLDEN / f"{name}.ndjson").read_bytes().splitlines()


def kinds(name: str) -> list[str]:
    return [json.loads(line)["type"] for line in golden(name)]


# Down.

CHUNK = (
    b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":'
    b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"hello"}}}}'
)
ODD = (
    b' { "method" :\t"_vendor/thing",  "params":'
    rb'{"half":"\ud83d","big":123456789012345678901234567890} }  '
)
REQUEST = (
    b'{"toolCall":{"toolCallId":"t1"},'
    b'"options":[{"optionId":"yes","name":"Yes","kind":"allow_once"}]}'
)
QUESTION = (
    b'{"mode":"form","message":"Where?",'
    b'"requestedSchema":{"type":"object","properties":{"city":{"type":"string"}}}}'
)
FAILED = b'{"code":"agent_failed","message":"the agent\'s process ended","retryable":true}'


def entry(kind: str, seq: int, turn_index: int, rest: bytes, ts: int = TS) -> bytes:
    return entries.entry(kind, seq, ts, turn_index, rest)


AT_LIMIT = "a process of the session has reached the limit of 512 MiB of memory: it gets no more"
DOWN = [
    entry(
        "turn_start", 1, 1, entries.turn_start_fields(b'[{"type":"text","text":"hi"}]', "c1", "new")
    ),
    entry(
        "turn_start",
        9,
        2,
        entries.turn_start_fields(
            b'[{"type":"image","data":"aGk=","mimeType":"image/png"}]', None, "kept"
        ),
        TS + 1,
    ),
    entry(
        "turn_start",
        12,
        3,
        entries.turn_start_fields(
            '[{"type":"text","text":"\\"quoted\\" für 😀"}]'.encode(), "c-3", "lost"
        ),
        TS + 2,
    ),
    entry(
        "turn_steer",
        16,
        1,
        entries.turn_steer_fields(b'[{"type":"text","text":"to the left"}]', "c4"),
    ),
    entry("event", 2, 1, entries.event_fields(CHUNK)),
    entry("event", 3, 1, entries.event_fields(ODD)),
    entry("event", 17, 1, entries.event_fields(CHUNK, {"tool_call_id": "t1"})),
    entry("event", 18, 1, entries.event_fields(CHUNK, {"session_id": "s"})),
    entry(
        "event",
        4,
        1,
        entries.event_fields(b'{"jsonrpc":"2.0","id":7,"result":{"stopReason":"end_turn"}}'),
    ),
    entry(
        "permission_request",
        5,
        1,
        entries.agent_request_fields("6b1f", REQUEST, TS + 300_000),
    ),
    entry(
        "permission_resolved",
        6,
        1,
        entries.encode_fields(
            request_id="6b1f", outcome={"outcome": "selected", "optionId": "yes"}, by="client"
        ),
    ),
    entry(
        "permission_resolved",
        7,
        1,
        entries.encode_fields(request_id="6b20", outcome={"outcome": "cancelled"}, by="timeout"),
    ),
    entry(
        "elicitation_request",
        15,
        1,
        entries.agent_request_fields("6b21", QUESTION, TS + 300_000),
    ),
    entry(
        "elicitation_resolved",
        16,
        1,
        entries.encode_fields(
            request_id="6b21",
            outcome={"action": "accept", "content": {"city": "Oslo"}},
            by="client",
        ),
    ),
    entry(
        "elicitation_resolved",
        17,
        1,
        entries.encode_fields(request_id="6b22", outcome={"action": "cancel"}, by="timeout"),
    ),
    entry("turn_end", 8, 1, entries.turn_end_fields("end_turn", 1234, None)),
    entry("turn_end", 10, 2, entries.turn_end_fields("error", 0, FAILED)),
    entry("turn_end", 15, 4, entries.turn_end_fields("cancelled", 0, None, withdrawn=True)),
    entry("session_closed", 11, 2, entries.encode_fields(reason="client")),
    entry("session_reopened", 15, 2, entries.encode_fields(reason="client")),
    entry("notice", 13, 3, entries.encode_fields(notice="restored", setting="mode", value="plan")),
    entry("notice", 14, 3, entries.encode_fields(notice="asks", asks=False)),
    entry(
        "notice",
        15,
        3,
        entries.encode_fields(notice="undone", snapshot_id="8dd3a5b1bd98a956", restored_turn=3),
    ),
    entry("notice", 16, 3, entries.encode_fields(notice="limit", limit="memory", text=AT_LIMIT)),
    frame(
        "ready",
        protocol=PROTOCOL,
        session_id="1f0c",
        agent="demo",
        head=11,
        state="idle",
        pending_permissions=[],
    ),
    frame("accepted", id="c1", turn_index=1, queued=False, duplicate=False),
    frame("accepted", id=None, turn_index=2, queued=True, duplicate=False),
    frame("accepted", id="c4", turn_index=1, queued=False, duplicate=False, steered=True),
    error_frame(Error("queue_full", "8 prompts wait already"), "c9"),
    error_frame(Error("bad_request", "what is that?")),
    frame("pong", id="p1"),
    frame("pong", id={"any": ["json", 1.5, None]}),
    frame("heartbeat", head=11),
    bye_frame(CloseCode.SESSION_CLOSED, "the session is closed"),
    bye_frame(CloseCode.RESTARTING, "the server restarts", 750),
    frame("ready", protocol=PROTOCOL, sessions=[{"session_id": "1f0c", "state": "idle"}]),
    frame("session", session={"session_id": "1f0c", "state": "running"}),
    frame("session_gone", session_id="1f0c"),
    frame("heartbeat"),
    addressed(frame("accepted", id="c1", turn_index=1, queued=False, duplicate=False), "1f0c"),
    addressed(entry("turn_end", 8, 1, entries.turn_end_fields("end_turn", 1234, None)), "1f0c"),
]


@pytest.mark.parametrize(
    ("built", "wanted"), list(zip(DOWN, golden("down"), strict=True)), ids=kinds("down")
)
def test_down_frame_equals_the_golden_bytes(built: bytes, wanted: bytes) -> None:
    assert built == wanted


def test_golden_down_frames_cover_the_contract() -> None:
    wanted = [json.loads(line) for line in golden("down")]
    assert {frame["type"] for frame in wanted if "seq" in frame} == NUMBERED
    assert {frame["type"] for frame in wanted if "seq" not in frame} == NOT_NUMBERED


def test_entry_begins_with_type_position_time_and_turn() -> None:
    for line in golden("down"):
        if b'"seq"' in line:
            assert list(json.loads(line))[:4] == ["type", "seq", "ts", "turn_index"]


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_has_a_frame(code: str) -> None:
    described = json.loads(error_frame(Error(code, "what happened"), "c1"))
    assert (described["type"], described["id"], described["code"]) == ("error", "c1", code)
    assert isinstance(described["retryable"], bool)


# Up.

COMMANDS = [
    AuthCommand(token="cf_abc"),
    AuthCommand(ticket="cft_abc", after=7),
    PromptCommand(id="c1", prompt="hello"),
    PromptCommand(id="c2", prompt=[{"type": "text", "text": "hi"}], files=["ff_1", "ff_2"]),
    PromptCommand(prompt="no id"),
    PromptCommand(prompt="null id"),
    PromptCommand(id="c4", prompt="to the left", steer=True),
    CancelCommand(),
    CancelCommand(turn_index=3),
    QueueCommand(turn_index=4, prompt="instead"),
    QueueCommand(turn_index=4, before=2),
    PermissionCommand(request_id="6b1f", option_id="allow_once"),
    PermissionCommand(request_id="6b1f", outcome="cancelled"),
    ElicitationCommand(request_id="6b21", action="accept", content={"city": "Oslo", "days": 2}),
    ElicitationCommand(id="e1", request_id="6b21", action="decline"),
    SetModeCommand(mode="code"),
    SetModelCommand(model="demo-fast"),
    SetConfigOptionCommand(key="thought_level", value="high"),
    CloseCommand(),
    PingCommand(id="p1"),
    PingCommand(id={"any": ["json", 1.5, None]}),
    PingCommand(),
    PingCommand(id=1),
]


@pytest.mark.parametrize(
    ("line", "command"), list(zip(golden("up"), COMMANDS, strict=True)), ids=kinds("up")
)
def test_command_is_parsed_from_bytes_and_text(line: bytes, command: Command) -> None:
    assert parse_command(line) == command
    assert parse_command(line.decode()) == command


def test_golden_commands_cover_the_contract() -> None:
    assert {json.loads(line)["type"] for line in golden("up")} == UP


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"{", b"null", b"1", b'"prompt"', b"[]", b'{"type":"ping"} x', b"\xff\xfe"],
)
def test_text_that_is_not_a_json_object_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedFrameError):
        parse_command(data)


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((MalformedFrameError, InvalidCommandError)):
        parse_command(data)


BAD: list[Any] = [
    {},
    {"type": None},
    {"type": "no_such_type"},
    {"type": "ready"},
    {"type": "auth", "token": 1},
    {"type": "auth", "token": "t", "after": -1},
    {"type": "auth", "token": "t", "after": "3"},
    {"type": "auth", "token": "t", "protocol": "one"},
    {"type": "prompt"},
    {"type": "prompt", "prompt": None},
    {"type": "prompt", "prompt": {"type": "text", "text": "hi"}},
    {"type": "prompt", "prompt": "hi", "id": ""},
    {"type": "prompt", "prompt": "hi", "id": 7},
    {"type": "prompt", "prompt": "hi", "id": "x" * 257},
    {"type": "prompt", "prompt": "hi", "files": "ff_1"},
    {"type": "prompt", "prompt": "hi", "files": [1]},
    {"type": "prompt", "prompt": "hi", "steer": "yes"},
    {"type": "cancel", "turn_index": 0},
    {"type": "cancel", "turn_index": "1"},
    {"type": "cancel", "turn_index": 1.5},
    {"type": "cancel", "turn_index": True},
    {"type": "queue", "prompt": "hi"},
    {"type": "queue", "turn_index": 2},
    {"type": "queue", "turn_index": 2, "before": 0},
    {"type": "queue", "turn_index": 0, "prompt": "hi"},
    {"type": "permission"},
    {"type": "permission", "request_id": "r"},
    {"type": "permission", "request_id": "r", "option_id": "o", "outcome": "cancelled"},
    {"type": "permission", "request_id": "r", "outcome": "selected"},
    {"type": "permission", "request_id": 1, "option_id": "o"},
    {"type": "set_mode"},
    {"type": "set_mode", "mode": ""},
    {"type": "set_model", "model": 4},
    {"type": "set_config_option", "key": "thought_level"},
    {"type": "set_config_option", "value": "high"},
]


@pytest.mark.parametrize("command", BAD, ids=json.dumps)
def test_invalid_field_is_refused_as_bad_request(command: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        parse_command(json.dumps(command))
    assert caught.value.code == "bad_request"
    assert caught.value.message


@pytest.mark.parametrize(("frame_id", "named"), [("c7", {"id": "c7"}), ({"no": "string"}, {})])
def test_refused_command_is_answered_with_its_string_id(frame_id: Any, named: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        parse_command(json.dumps({"type": "prompt", "id": frame_id}))
    answer = json.loads(error_frame(caught.value, caught.value.frame_id))
    assert {key: answer[key] for key in answer if key == "id"} == named
