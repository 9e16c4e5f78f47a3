"""Frames as bytes: each of the contract's, both ways, against golden files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given
from hypothesis import strategies as st

from server.errors import STATUS, CloseCode, Error
from server.sessions import entries
from server.sessions.entries import FrameError, NotAFrameError
from server.ws.connection import Disconnect

GOLDEN = Path(__file__).parents[1] / "golden"
TS = 1767225600000

# PROTOCOL.md's lists, word for word.
NUMBERED = {
    "turn_start",
    "event",
    "permission_request",
    "permission_resolved",
    "turn_end",
    "session_closed",
}
NOT_NUMBERED = {"ready", "accepted", "error", "pong", "heartbeat", "bye"}
UP = {
    "auth",
    "prompt",
    "cancel",
    "permission",
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
FAILED = b'{"code":"agent_failed","message":"the agent\'s process ended","retryable":true}'


def entry(kind: str, seq: int, turn_index: int, rest: bytes, ts: int = TS) -> bytes:
    return entries.entry(kind, seq, ts, turn_index, rest)


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
    entry("event", 2, 1, entries.event_fields(CHUNK)),
    entry("event", 3, 1, entries.event_fields(ODD)),
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
        entries.permission_request_fields("6b1f", REQUEST, TS + 300_000),
    ),
    entry(
        "permission_resolved",
        6,
        1,
        entries.fields(
            request_id="6b1f", outcome={"outcome": "selected", "optionId": "yes"}, by="client"
        ),
    ),
    entry(
        "permission_resolved",
        7,
        1,
        entries.fields(request_id="6b20", outcome={"outcome": "cancelled"}, by="timeout"),
    ),
    entry("turn_end", 8, 1, entries.turn_end_fields("end_turn", 1234, None)),
    entry("turn_end", 10, 2, entries.turn_end_fields("error", 0, FAILED)),
    entry("session_closed", 11, 2, entries.fields(reason="client")),
    entries.frame(
        "ready",
        protocol=entries.PROTOCOL,
        session_id="1f0c",
        agent="demo",
        head=11,
        state="idle",
        pending_permissions=[],
    ),
    entries.frame("accepted", id="c1", turn_index=1, queued=False, duplicate=False),
    entries.frame("accepted", id=None, turn_index=2, queued=True, duplicate=False),
    entries.error_frame(Error("queue_full", "8 prompts wait already"), "c9"),
    entries.error_frame(Error("bad_request", "what is that?")),
    entries.frame("pong", id="p1"),
    entries.frame("pong", id={"any": ["json", 1.5, None]}),
    entries.frame("heartbeat", head=11),
    Disconnect(CloseCode.SESSION_CLOSED, "the session is closed").frame(),
    Disconnect(CloseCode.RESTARTING, "the server restarts", retry_after_ms=750).frame(),
]


@pytest.mark.parametrize(
    ("built", "wanted"), list(zip(DOWN, golden("down"), strict=True)), ids=kinds("down")
)
def test_a_down_frame_is_made_to_the_byte(built: bytes, wanted: bytes) -> None:
    assert built == wanted


def test_the_golden_down_frames_are_the_contracts() -> None:
    wanted = [json.loads(line) for line in golden("down")]
    assert {frame["type"] for frame in wanted if "seq" in frame} == NUMBERED
    assert {frame["type"] for frame in wanted if "seq" not in frame} == NOT_NUMBERED


def test_every_entry_names_its_place_and_its_turn_before_anything_else() -> None:
    for line in golden("down"):
        if b'"seq"' in line:
            assert list(json.loads(line))[:4] == ["type", "seq", "ts", "turn_index"]


@pytest.mark.parametrize("message", [CHUNK, ODD, b'{"a":",\\"event\\":{}"}', b'{"event":1}'])
def test_the_message_in_an_event_is_found_again_to_the_byte(message: bytes) -> None:
    assert entries.event_of(entry("event", 1, 1, entries.event_fields(message))) == message


def test_other_entries_carry_no_message() -> None:
    fields = entries.turn_start_fields(b'[{"type":"text","text":",\\"event\\":1"}]', None, "new")
    assert entries.event_of(entry("turn_start", 1, 1, fields)) is None


@given(st.text(), st.text())
def test_no_text_of_a_client_breaks_a_frame(client_id: str, request_id: str) -> None:
    start = entry("turn_start", 1, 1, entries.turn_start_fields(b"[]", client_id, "new"))
    assert json.loads(start)["id"] == client_id
    asked = entry(
        "permission_request", 2, 1, entries.permission_request_fields(request_id, b"{}", 0)
    )
    assert json.loads(asked)["request_id"] == request_id


@pytest.mark.parametrize("code", STATUS)
def test_every_failure_has_a_frame(code: str) -> None:
    frame = json.loads(entries.error_frame(Error(code, "what happened"), "c1"))
    assert (frame["type"], frame["id"], frame["code"]) == ("error", "c1", code)
    assert isinstance(frame["retryable"], bool)


# Up.

COMMANDS = [
    entries.Auth(token="cf_abc"),
    entries.Auth(ticket="cft_abc", after=7),
    entries.Prompt(id="c1", prompt="hello"),
    entries.Prompt(id="c2", prompt=[{"type": "text", "text": "hi"}], files=["ff_1", "ff_2"]),
    entries.Prompt(prompt="no id"),
    entries.Prompt(prompt="null id"),
    entries.Cancel(),
    entries.Cancel(turn_index=3),
    entries.Permission(request_id="6b1f", option_id="allow_once"),
    entries.Permission(request_id="6b1f", outcome="cancelled"),
    entries.SetMode(mode="code"),
    entries.SetModel(model="demo-fast"),
    entries.SetConfigOption(key="thought_level", value="high"),
    entries.Close(),
    entries.Ping(id="p1"),
    entries.Ping(id={"any": ["json", 1.5, None]}),
    entries.Ping(),
    entries.Ping(id=1),
]


@pytest.mark.parametrize(
    ("line", "command"), list(zip(golden("up"), COMMANDS, strict=True)), ids=kinds("up")
)
def test_an_up_frame_is_read(line: bytes, command: entries.Command) -> None:
    assert entries.parse(line) == command
    assert entries.parse(line.decode()) == command


def test_the_golden_up_frames_are_the_contracts() -> None:
    assert {json.loads(line)["type"] for line in golden("up")} == UP


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"{", b"null", b"1", b'"prompt"', b"[]", b'{"type":"ping"} x', b"\xff\xfe"],
)
def test_what_is_no_json_object_is_no_frame(data: bytes) -> None:
    with pytest.raises(NotAFrameError):
        entries.parse(data)


@given(st.binary(max_size=40))
def test_no_bytes_are_too_odd_to_be_refused(data: bytes) -> None:
    with pytest.raises((NotAFrameError, FrameError)):
        entries.parse(data)


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
    {"type": "cancel", "turn_index": 0},
    {"type": "cancel", "turn_index": "1"},
    {"type": "cancel", "turn_index": 1.5},
    {"type": "cancel", "turn_index": True},
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


@pytest.mark.parametrize("frame", BAD, ids=json.dumps)
def test_a_bad_field_is_refused_by_name(frame: Any) -> None:
    with pytest.raises(FrameError) as caught:
        entries.parse(json.dumps(frame))
    assert caught.value.code == "bad_request"
    assert caught.value.message


@pytest.mark.parametrize(("frame_id", "named"), [("c7", {"id": "c7"}), ({"no": "string"}, {})])
def test_a_refused_frame_is_answered_under_its_id(frame_id: Any, named: Any) -> None:
    with pytest.raises(FrameError) as caught:
        entries.parse(json.dumps({"type": "prompt", "id": frame_id}))
    answer = json.loads(entries.error_frame(caught.value, caught.value.frame_id))
    assert {key: answer[key] for key in answer if key == "id"} == named


# Content blocks.


def test_a_string_is_one_text_block() -> None:
    assert entries.parse_blocks("hi") == [{"type": "text", "text": "hi"}]


def test_blocks_of_every_kind_are_kept_as_they_came() -> None:
    blocks = [
        {"type": "text", "text": "hi", "annotations": {"audience": ["user"]}, "_meta": {"k": 1}},
        {"type": "image", "data": "aGk=", "mimeType": "image/png", "uri": "file:///a.png"},
        {"type": "audio", "data": "aGk=", "mimeType": "audio/wav"},
        {"type": "resource", "resource": {"uri": "file:///a", "text": "", "mimeType": "text/x"}},
        {"type": "resource", "resource": {"uri": "file:///a", "blob": "aGk="}},
        {"type": "resource_link", "uri": "file:///a", "name": "a", "size": 3},
    ]
    assert entries.parse_blocks(blocks) == blocks


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("", "empty"),
        ([], "empty"),
        ([{"type": "text", "text": ""}], "empty"),
        (["hi"], "[0]"),
        ([{"text": "hi"}], "type"),
        ([{"type": "video"}], "type"),
        ([{"type": "text"}], "text"),
        ([{"type": "text", "text": 1}], "text"),
        ([{"type": "text", "text": "hi"}, {"type": "image", "data": "a b"}], "[1]"),
        ([{"type": "image", "data": "aGk=", "mimeType": "text/html"}], "mimeType"),
        ([{"type": "image", "data": "aGk=\n", "mimeType": "image/png"}], "data"),
        ([{"type": "audio", "data": "", "mimeType": "audio/wav"}], "data"),
        ([{"type": "resource", "resource": {"uri": "u"}}], "one of text and blob"),
        ([{"type": "resource", "resource": {"text": "t"}}], "uri"),
        ([{"type": "resource_link", "uri": "u"}], "name"),
    ],
    ids=repr,
)
def test_a_bad_block_is_refused_by_its_place_and_field(prompt: Any, named: str) -> None:
    with pytest.raises(Error) as caught:
        entries.parse_blocks(prompt)
    assert caught.value.code == "bad_request"
    assert named in caught.value.message


# The wire (RFC 6455, 5.2), as aiohttp's own reader has it.


async def read_by_aiohttp(data: bytes) -> list[tuple[WSMsgType, Any]]:
    loop = asyncio.get_running_loop()
    queue = WebSocketDataQueue(BaseProtocol(loop), 1 << 30, loop=loop)
    reader = WebSocketReader(queue, 0, compress=False, decode_text=False)
    reader.feed_data(data)
    messages = []
    for _ in range(len(queue._buffer)):
        message = await queue.read()
        messages.append((message.type, message.data))
    return messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
async def test_a_text_frame_of_any_size_is_read_by_others(size: int) -> None:
    payload = b"x" * size
    frame = entries.websocket_text(payload)
    assert await read_by_aiohttp(frame) == [(WSMsgType.TEXT, payload)]


async def test_frames_written_together_are_read_apart() -> None:
    payloads = [b"{}", b"y" * 70_000, b"", b"z" * 126]
    wire = b"".join(map(entries.websocket_text, payloads))
    wire += (
        entries.websocket_ping() + entries.websocket_pong(b"") + entries.websocket_pong(b"p" * 125)
    )
    assert await read_by_aiohttp(wire) == [
        *((WSMsgType.TEXT, payload) for payload in payloads),
        (WSMsgType.PING, b""),
        (WSMsgType.PONG, b""),
        (WSMsgType.PONG, b"p" * 125),
    ]
