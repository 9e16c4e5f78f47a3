"""A session's WebSocket: the effects of commands, and the order of the frames to the client."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from server.errors import DatabaseError
from server.sessions.session_settings import MAX_CHANGES
from server.storage.database import Database
from server.storage.queries import Queries

from ..conftest import Serve
from ..support.acp_client import ResponseError
from ..support.acp_client import connect as connect_acp
from ..support.harness import Client, Deadline, Json, LocalServer, Socket, eventually, script

Frames = list[Json]

CHATTER: Json = {"repeat": {"times": 100_000, "steps": [{"sleep": 2}, {"say": "{i} "}]}}


async def raw_until(socket: Socket, kind: str) -> list[str]:
    """The text of every frame up to the next of that type, to the byte."""
    found: list[str] = []
    while not found or not found[-1].startswith(f'{{"type":"{kind}"'):
        found.append(await asyncio.wait_for(socket.ws.receive_str(), 20))
    return found


def kinds(frames: Frames) -> list[str]:
    return [frame["type"] for frame in frames]


def seqs(socket: Socket) -> list[int]:
    return [entry["seq"] for entry in socket.entries]


def gate(state: Json, name: str = "gate") -> Path:
    """The file that a step ``{"gate": name}`` waits for."""
    return Path(state["cwd"]) / name


async def is_alive(socket: Socket) -> None:
    """Check that the socket still responds, and skip the frames before its response."""
    await socket.send("ping", id="alive?")
    await socket.until("pong", id="alive?")


# ready


async def test_ready_is_the_first_frame_with_the_session_state(client: Client) -> None:
    session = await client.create("mock", permission="ask", model=None)
    socket = await client.connect(session, ready=False)
    ready = await socket.next()
    assert ready is not None
    assert ready["type"] == "ready"
    wanted = {
        "protocol": 1,
        "session_id": session,
        "agent": "mock",
        "head": 0,
        "state": "idle",
        "pending_permissions": [],
        "permission": "ask",
        "queued": [],
    }
    assert wanted.items() <= ready.items()
    await socket.turn("hello")
    again = await client.connect(session)
    assert again.frames[0]["head"] == socket.entries[-1]["seq"]
    assert again.frames[0]["head"] == (await client.state(session))["head"]


async def test_ready_names_the_running_and_the_queued_turns(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"hang": True}))
    await socket.until("turn_start")
    await socket.send("prompt", prompt="later", id="c2")
    await socket.until("accepted", id="c2")
    ready = (await client.connect(session)).frames[0]
    assert ready["state"] == "running"
    text = {"type": "text", "text": "later"}
    assert ready["queued"] == [{"turn_index": 2, "id": "c2", "prompt": [text]}]


async def test_ready_lists_the_pending_permissions(client: Client) -> None:
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"permission": [True, True]}))
    first = await socket.until("permission_request")
    second = await socket.until("permission_request")

    async def pending() -> list[Json]:
        listed = (await client.connect(session)).frames[0]["pending_permissions"]
        assert (await client.state(session))["pending_permissions"] == listed
        return [
            {k: one[k] for k in ("request_id", "request", "expires_at", "turn_index")}
            for one in listed
        ]

    asked = [
        {k: v for k, v in one.items() if k not in ("type", "seq", "ts")} for one in (first, second)
    ]
    assert await pending() == asked
    await socket.send("permission", request_id=first["request_id"], option_id="allow_once")
    await socket.until("permission_resolved")
    assert await pending() == asked[1:]
    await socket.send("permission", request_id=second["request_id"], outcome="cancelled")
    await socket.until("turn_end")
    assert await pending() == []


async def test_pending_permission_does_not_delay_other_sessions(client: Client) -> None:
    waiting = await client.connect(await client.create(permission="ask"))
    await waiting.send("prompt", prompt=script({"permission": True}))
    await waiting.until("permission_request")
    other = await client.connect(await client.create(permission="ask"))
    assert (await other.turn("hello"))["stop_reason"] == "end_turn"
    await is_alive(waiting)
    assert "turn_end" not in kinds(waiting.frames)


# A prompt and what becomes of it.


async def test_prompt_is_accepted_starts_streams_and_ends(client: Client) -> None:
    before = time.time_ns() // 1_000_000
    session = await client.create()
    socket = await client.connect(session, after=0)
    end = await socket.turn(script({"say": "one "}, {"think": "hm"}, {"say": "two"}), id="c1")
    accepted = next(frame for frame in socket.frames if frame["type"] == "accepted")
    assert accepted == {
        "type": "accepted",
        "id": "c1",
        "turn_index": 1,
        "queued": False,
        "duplicate": False,
    }
    of_turn = [entry for entry in socket.entries if entry["turn_index"] == 1]
    assert kinds(of_turn) == ["turn_start", *["event"] * 4, "turn_end"]
    start, *events, _ = of_turn
    assert start["id"] == "c1"
    assert start["context"] == "new"
    assert json.loads(start["prompt"][0]["text"])["steps"][0] == {"say": "one "}
    updates = [one["event"]["params"]["update"]["sessionUpdate"] for one in events[:-1]]
    assert updates == ["agent_message_chunk", "agent_thought_chunk", "agent_message_chunk"]
    assert events[-1]["event"]["result"] == {"stopReason": "end_turn"}
    assert (end["stop_reason"], end["error"]) == ("end_turn", None)
    assert 0 <= end["duration_ms"] < 20_000
    assert socket.frames.index(accepted) < socket.frames.index(start)
    # Every entry has its number, its time and its turn.
    assert seqs(socket) == list(range(1, len(socket.entries) + 1))
    times = [entry["ts"] for entry in socket.entries]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= time.time_ns() // 1_000_000
    assert socket.entries == await client.events(session)


async def test_prompt_may_be_content_blocks(client: Client) -> None:
    socket = await client.connect(await client.create())
    blocks = [
        {"type": "text", "text": "look"},
        {"type": "image", "data": "aGk=", "mimeType": "image/png"},
        {"type": "resource_link", "uri": "file:///a", "name": "a"},
    ]
    await socket.turn(blocks)
    start = next(frame for frame in socket.entries if frame["type"] == "turn_start")
    assert start["prompt"] == blocks
    assert start["id"] is None
    assert socket.text() == "echo: look\n[image]\n[resource_link]"


@pytest.mark.parametrize("attached", [False, True])
async def test_files_are_named_in_the_prompt(client: Client, attached: bool) -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"content", filename="notes.txt")
    headers = client.headers()
    async with client.http.post(client.url + "/files", data=form, headers=headers) as response:
        token = (await response.json())["file_token"]
    socket = await client.connect(await client.create())
    await socket.turn("read it", files=[token] if attached else [])
    text = socket.text().removeprefix("echo: ")
    if attached:
        head, path, prompt = text.split("\n")
        assert (head, prompt) == ("[Attached files]", "read it")
        assert await asyncio.to_thread(Path(path).read_bytes) == b"content"
    else:
        assert text == "read it"


# Agent output with all that JSON allows.
ODD_LINES = [
    r'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":'
    r'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"half \ud83d"}}}}',
    r'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":'
    r'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"\ude00 half"}}}}',
    '  { "jsonrpc" : "2.0" ,\t"method":"session/update", "params" : {"update":{ "sessionUpdate":'
    ' "kind_of_the_future" , "n": 123456789012345678901234567890, "f":1.50e+05, "z":-0.0 } } }  ',
    r'{"params":{"caf\u00e9":"\u0041\/\u2028","sessionId":"s","update":{"sessionUpdate":"plan",'
    r'"entries":[]}},"method":"session/update","jsonrpc":"2.0"}',
    '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":'
    '{"sessionUpdate":"agent_message_chunk","content":{"type":"image","data":"aGk=",'
    '"mimeType":"image/png"}}}}',
    '{"jsonrpc":"2.0","method":"session/update","params":{"update":{"sessionUpdate":7}}}',
    '{"jsonrpc":"2.0","method":"session/update","params":["not","an","object"]}',
    '{"jsonrpc":"2.0","method":"_vendor.example/progress","params":{"a":1,"a":2,"":null}}',
    '{"jsonrpc":"2.0","method":"$/anything"}',
    '{"jsonrpc":"2.0","method":"without_session","params":{"😀":"\u2028\x7f"}}',
    '{"jsonrpc":"2.0","method":"m","params":",\\"event\\":{\\"type\\":\\"turn_end\\"}}"}',
    '{"jsonrpc":"2.0","method":"session/update","params":{"update":{"sessionUpdate":'
    '"agent_thought_chunk"}}}\r',
]


async def test_notifications_are_passed_on_unchanged(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.turn("so that it has started")
    await socket.send("prompt", prompt=script(*({"raw": line} for line in ODD_LINES)))
    raw = await raw_until(socket, "turn_end")
    events = [
        (frame, frame.partition(',"event":')[2][:-1])
        for frame in raw
        if frame.startswith('{"type":"event"')
    ]
    *updates, answer = [event for _, event in events]
    assert updates == ODD_LINES
    # The answer too: spaces are as Python's json writes them.
    assert re.fullmatch(
        r'\{"jsonrpc": "2.0", "id": [^,]+, "result": \{"stopReason": "end_turn"\}\}', answer
    )
    for frame, event in events:  # and the frame around it is sound
        assert json.loads(frame)["event"] == json.loads(event)
    # REST has the same bytes.
    async with client.http.get(
        f"{client.url}/sessions/{session}/events", headers=client.headers()
    ) as response:
        body = await response.text()
    assert all(line in body for line in ODD_LINES)


async def test_agent_output_that_is_not_a_message_is_skipped(client: Client) -> None:
    socket = await client.connect(await client.create())
    lines = ["hello", "", "{", "[]", '"text"', "null", '{"a":NaN}', '[{"jsonrpc":"2.0"}]']
    lines += ['{"method":"no_version"}', '{"jsonrpc":"1.0","method":"m"}']
    bad = [{"raw": {"text": line}} for line in lines]
    end = await socket.turn(script({"say": "a"}, *bad, {"bad_utf8": True}, {"say": "b"}))
    assert end["stop_reason"] == "end_turn"
    assert socket.text() == "ab"
    of_turn = [entry for entry in socket.entries if entry["turn_index"] == 1]
    assert kinds(of_turn) == ["turn_start", *["event"] * 3, "turn_end"]


async def test_large_message_is_passed_on_complete(client: Client) -> None:
    socket = await client.connect(await client.create())
    await socket.turn(script({"chunk": 1 << 20}, {"chunk": 5 << 20}))
    lengths = [
        len(entry["event"]["params"]["update"]["content"]["text"])
        for entry in socket.entries
        if "params" in entry.get("event", {})
        and entry["event"]["params"]["update"]["sessionUpdate"] == "agent_message_chunk"
    ]
    assert lengths == [1 << 20, 5 << 20]


async def test_updates_after_a_turn_belong_to_that_turn(client: Client) -> None:
    socket = await client.connect(await client.create(), after=0)
    await socket.turn(script({"late": [{"say": "late"}]}))
    late = await socket.until_text("late")
    assert late["turn_index"] == 1
    assert seqs(socket) == list(range(1, late["seq"] + 1))


async def test_accepted_precedes_its_turn(client: Client) -> None:
    session = await client.create()
    sockets = [await client.connect(session, after=0) for _ in range(3)]
    for number in range(6):
        socket = sockets[number % 3]
        await socket.turn(f"prompt {number}", id=f"c{number}")
    for socket in sockets:
        await is_alive(socket)
        accepted = [frame for frame in socket.frames if frame["type"] == "accepted"]
        assert len(accepted) == 2
        for frame in accepted:
            start = next(
                entry
                for entry in socket.entries
                if entry["type"] == "turn_start" and entry["turn_index"] == frame["turn_index"]
            )
            assert socket.frames.index(frame) < socket.frames.index(start)


async def test_accepted_precedes_its_turn_during_other_replays(client: Client) -> None:
    session = await client.create()
    await client.turn(session, script({"burst": {"count": 3000}}))
    asking = await client.connect(session, after=0)
    replaying = [await client.connect(session, after=0) for _ in range(3)]
    await asking.send("prompt", prompt="hello", id="c2")
    for socket in (asking, *replaying):
        await read_to(socket, 3000)
    end = await asking.until("turn_end", turn_index=2)
    order = [frame for frame in asking.frames if frame.get("turn_index") == 2]
    assert kinds(order)[:2] == ["accepted", "turn_start"]
    for socket in replaying:
        await socket.until("turn_end", turn_index=2)
        assert seqs(socket) == list(range(1, end["seq"] + 1))


async def test_prompts_are_queued_in_order_up_to_the_limit(serve: Serve) -> None:
    server = await serve(max_queued_turns=2)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=script({"gate": "gate"}), id="c1")
    await socket.until("turn_start")
    for name in ("c2", "c3", "c4"):
        await socket.send("prompt", prompt=name, id=name)
    for index in (2, 3):
        accepted = await socket.until("accepted")
        assert (accepted["turn_index"], accepted["queued"]) == (index, True)
    refused = await socket.until("error")
    assert (refused["id"], refused["code"], refused["retryable"]) == ("c4", "queue_full", True)
    gate(await client.state(session)).touch()
    await socket.until("turn_end", turn_index=3)
    starts = [e["turn_index"] for e in socket.entries if e["type"] == "turn_start"]
    ends = [e["turn_index"] for e in socket.entries if e["type"] == "turn_end"]
    assert starts == ends == [1, 2, 3]
    assert socket.text(2) == "echo: c2"
    assert socket.text(3) == "echo: c3"


async def test_duplicate_prompt_runs_nothing(client: Client) -> None:
    session = await client.create()
    one, two = await client.connect(session, after=0), await client.connect(session)
    prompt = script({"gate": "gate"})
    await one.send("prompt", prompt=prompt, id="c1")
    await one.until("turn_start")
    again = {"type": "accepted", "id": "c1", "turn_index": 1, "queued": False, "duplicate": True}
    for socket in (one, two):  # while it runs
        await socket.send("prompt", prompt="something else", id="c1")
        assert await socket.until("accepted") == again
    gate(await client.state(session)).touch()
    await one.until("turn_end")
    for socket in (one, two):  # and when it is over
        await socket.send("prompt", prompt=prompt, id="c1")
        assert await socket.until("accepted") == again
    await one.turn("another", id="c2")
    assert [e["id"] for e in one.entries if e["type"] == "turn_start"] == ["c1", "c2"]


async def test_duplicate_of_a_queued_prompt_is_recognised(client: Client) -> None:
    socket = await client.connect(await client.create())
    await socket.send("prompt", prompt=script({"hang": True}), id="c1")
    await socket.until("turn_start")
    for duplicate in (False, True):
        await socket.send("prompt", prompt="later", id="c2")
        accepted = await socket.until("accepted", id="c2")
        assert accepted["duplicate"] is duplicate
        assert (accepted["turn_index"], accepted["queued"]) == (2, True)


async def test_concurrent_duplicates_start_one_turn(client: Client) -> None:
    session = await client.create()
    sockets = [await client.connect(session) for _ in range(5)]
    await asyncio.gather(*(socket.send("prompt", prompt="hi", id="c1") for socket in sockets))
    accepted = [await socket.until("accepted") for socket in sockets]
    assert {frame["turn_index"] for frame in accepted} == {1}
    assert sorted(frame["duplicate"] for frame in accepted) == [False, True, True, True, True]


async def test_prompt_id_is_scoped_to_its_session(client: Client) -> None:
    for _ in range(2):
        socket = await client.connect(await client.create())
        await socket.send("prompt", prompt="hi", id="c1")
        assert (await socket.until("accepted"))["duplicate"] is False


async def test_prompt_without_an_id_is_always_new(client: Client) -> None:
    socket = await client.connect(await client.create())
    for index in (1, 2):
        await socket.send("prompt", prompt="hi")
        accepted = await socket.until("accepted")
        assert (accepted["id"], accepted["turn_index"]) == (None, index)
        assert accepted["duplicate"] is False


async def test_turn_continues_after_its_socket_has_closed(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"say": "a"}, {"gate": "gate"}, {"say": "b"}))
    seen = await socket.until_text("a")
    await socket.close()
    state = await eventually("the socket to be gone", lambda: no_sockets(client, session))
    assert state["state"] == "running"
    gate(state).touch()
    again = await client.connect(session, after=seen["seq"])
    end = await again.until("turn_end")
    assert end["stop_reason"] == "end_turn"
    assert again.text() == "b"


async def no_sockets(client: Client, session: str) -> Json | None:
    state = await client.state(session)
    return state if state["sockets"] == 0 else None


# Frames that are not understood.


async def test_invalid_frame_gets_an_error_and_the_socket_stays_open(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    bad: list[tuple[Json, str | None]] = [
        ({"type": "no_such_type"}, None),
        ({"type": "ready", "id": "c1"}, "c1"),
        ({}, None),
        ({"type": 7, "id": "c1"}, "c1"),
        ({"type": "prompt", "id": "c1"}, "c1"),
        ({"type": "prompt", "id": "c1", "prompt": ""}, "c1"),
        ({"type": "prompt", "id": "c1", "prompt": []}, "c1"),
        ({"type": "prompt", "id": "c1", "prompt": {"type": "text", "text": "hi"}}, "c1"),
        ({"type": "prompt", "id": "c1", "prompt": [{"type": "video"}]}, "c1"),
        ({"type": "prompt", "id": "c1", "prompt": "hi", "files": ["ff_unknown"]}, "c1"),
        ({"type": "prompt", "id": 7, "prompt": "hi"}, None),
        ({"type": "prompt", "id": "x" * 257, "prompt": "hi"}, "x" * 257),
        ({"type": "cancel", "turn_index": "1"}, None),
        ({"type": "cancel", "turn_index": 0}, None),
        ({"type": "permission", "request_id": "r"}, None),
        ({"type": "permission", "request_id": "r", "id": "c1"}, "c1"),
        ({"type": "permission", "request_id": "r", "outcome": "selected"}, None),
        ({"type": "set_mode"}, None),
        ({"type": "set_model", "model": 1}, None),
        ({"type": "set_config_option", "key": "k"}, None),
        ({"type": "auth", "token": 1}, None),
    ]
    for frame, frame_id in bad:
        await socket.ws.send_str(json.dumps(frame))
        answer = await socket.until("error")
        assert answer["code"] == "bad_request", frame
        assert answer.get("id") == frame_id, frame
        assert answer["message"]
        assert answer["retryable"] is False
    await is_alive(socket)
    assert (await client.state(session))["turn_count"] == 0


async def test_error_has_the_id_of_the_frame_that_failed(
    client: Client,
) -> None:
    socket = await client.connect(await client.create())
    refused: list[tuple[Json, str]] = [
        ({"type": "cancel"}, "not_found"),
        ({"type": "permission", "request_id": "r", "option_id": "o"}, "not_found"),
        ({"type": "set_mode", "mode": "no such"}, "bad_request"),
        ({"type": "set_config_option", "key": "no", "value": "such"}, "bad_request"),
    ]
    for number, (frame, code) in enumerate(refused):
        await socket.ws.send_str(json.dumps({**frame, "id": f"c{number}"}))
        answer = await socket.until("error")
        assert (answer.get("id"), answer["code"]) == (f"c{number}", code), frame


async def test_pending_setting_changes_are_limited_for_each_session(
    serve: Serve,
) -> None:
    server = await serve(max_live_agents=1)
    client = await server.client()
    busy = await client.connect(await client.create())
    await busy.send("prompt", prompt=script({"say": "on it"}, {"wait_for": "cancel"}))
    await busy.until_text("on it")  # it has the only agent
    session = await client.create()
    for _ in range(MAX_CHANGES):
        leaver = await client.connect(session)
        await leaver.send("set_mode", mode="code")
        await is_alive(leaver)
        await leaver.close()
    socket = await client.connect(session)
    await socket.send("set_mode", mode="code", id="too many")
    error = await socket.until("error")
    assert (error["id"], error["code"]) == ("too many", "rate_limited")
    assert error["retryable"] is True
    await busy.send("cancel")
    await busy.until("turn_end")


async def test_unpaired_surrogate_in_a_frame_is_a_bad_request(client: Client) -> None:
    # It is JSON, and browsers write it: a text cut in the middle of an emoji.
    socket = await client.connect(await client.create())
    await socket.send("prompt", prompt="cut \ud83d", id="c1")
    error = await socket.until("error")
    assert (error["id"], error["code"]) == ("c1", "bad_request")
    await is_alive(socket)


async def test_text_that_is_not_json_closes_with_4501(client: Client) -> None:
    session = await client.create()
    bad: list[str | bytes] = ["hello", "", "{", "[]", "7", "null", '{"type":"ping"}x', "{'a':1}"]
    bad += [b"", b'{"type":"ping"}', b"\xff"]  # binary, whatever is in it
    for data in bad:
        socket = await client.connect(session)
        await (socket.ws.send_str(data) if isinstance(data, str) else socket.ws.send_bytes(data))
        assert await socket.until_closed() == 4501, data
        assert socket.frames[-1]["type"] == "bye"
        assert socket.frames[-1]["code"] == 4501


async def test_text_that_is_not_utf8_closes_with_4501(client: Client) -> None:
    socket = await client.connect(await client.create())
    await socket.ws.send_frame(b'{"type":"ping","id":"\xff"}', WSMsgType.TEXT)
    assert await socket.until_closed() == 4501


@pytest.mark.parametrize("size", [(4 << 20) + 1, 30 << 20])
async def test_frame_over_4_mib_closes_with_1009(client: Client, size: int) -> None:
    session = await client.create()
    socket = await client.connect(session)
    empty = len(json.dumps({"type": "prompt", "prompt": ""}))
    frame = json.dumps({"type": "prompt", "prompt": "x" * (size - empty)})
    assert len(frame) == size
    sending = asyncio.create_task(socket.ws.send_str(frame))
    assert await socket.until_closed() == 1009
    await asyncio.gather(sending, return_exceptions=True)
    assert (await client.state(session))["turn_count"] == 0


async def test_frame_of_4_mib_is_accepted(client: Client) -> None:
    socket = await client.connect(await client.create())
    frame = '{"type":"ping","id":"%s"}'
    await socket.ws.send_str(frame % ("x" * ((4 << 20) - len(frame) + 2)))
    assert len((await socket.until("pong"))["id"]) > (4 << 20) - 100
    end = await socket.turn("y" * ((4 << 20) - 100))
    assert end["stop_reason"] == "end_turn"
    assert len(socket.text()) == (4 << 20) - 100 + len("echo: ")


# ping, heartbeat


async def test_pong_has_the_id_of_its_ping(client: Client) -> None:
    socket = await client.connect(await client.create())
    for ping_id in ("a", "", 7, -1.5, None, True, [1, [2]], {"a": {"b": None}}, "é😀"):
        await socket.send("ping", id=ping_id)
        assert await socket.until("pong") == {"type": "pong", "id": ping_id}
    await socket.send("ping")
    assert await socket.until("pong") == {"type": "pong", "id": None}


async def test_websocket_ping_gets_a_pong(client: Client) -> None:
    session = await client.create()
    url = f"{client.url}/sessions/{session}/ws"
    async with client.http.ws_connect(url, headers=client.headers(), autoping=False) as ws:
        await ws.receive()
        await ws.ping(b"payload")
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.PONG, b"payload")


async def test_heartbeat_has_the_head_of_the_log(serve: Serve) -> None:
    server = await serve(heartbeat_secs=0.05)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session)
    assert (await socket.until("heartbeat")).keys() == {"type", "head"}
    end = await socket.turn("hello")
    for _ in range(3):
        await socket.until("heartbeat", head=end["seq"])
    assert (await client.state(session))["head"] == end["seq"]


# cancel, close


async def test_cancel_ends_the_running_turn(client: Client) -> None:
    socket = await client.connect(await client.create())
    await socket.send("prompt", prompt=script({"say": "a"}, {"hang": True}))
    await socket.until_text("a")
    await socket.send("cancel")
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)
    assert (await socket.turn("again"))["stop_reason"] == "end_turn"


async def test_cancel_by_any_socket_and_by_index(client: Client) -> None:
    session = await client.create()
    asking, other = await client.connect(session), await client.connect(session)
    await asking.send("prompt", prompt=script({"hang": True}))
    await other.until("turn_start")
    await other.send("cancel", turn_index=1)
    for socket in (asking, other):
        assert (await socket.until("turn_end"))["stop_reason"] == "cancelled"


async def test_cancel_removes_a_queued_turn(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=script({"say": "a"}, {"gate": "gate"}))
    await socket.until_text("a")
    for name in ("two", "three"):
        await socket.send("prompt", prompt=name)
        await socket.until("accepted")
    await socket.send("cancel", turn_index=2)
    end = await socket.until("turn_end")
    assert (end["turn_index"], end["stop_reason"]) == (2, "cancelled")
    before = socket.entries[-2]
    assert (before["type"], before["turn_index"]) == ("turn_start", 2)
    gate(await client.state(session)).touch()
    await socket.until("turn_end", turn_index=3)
    assert socket.text(2) == ""
    assert socket.text(3) == "echo: three"
    ends = [(e["turn_index"], e["stop_reason"]) for e in socket.entries if e["type"] == "turn_end"]
    assert ends == [(2, "cancelled"), (1, "end_turn"), (3, "end_turn")]


async def test_cancel_without_a_turn_is_not_found(client: Client) -> None:
    socket = await client.connect(await client.create())
    await socket.turn("hello")
    for fields in ({}, {"turn_index": 1}, {"turn_index": 2}, {"turn_index": 99}):
        await socket.send("cancel", **fields)
        assert (await socket.until("error"))["code"] == "not_found"
    await is_alive(socket)


async def test_close_ends_the_session_for_all_sockets(client: Client) -> None:
    session = await client.create()
    socket, other = await client.connect(session, after=0), await client.connect(session, after=0)
    await socket.turn("hello")
    await socket.send("close")
    for one in (socket, other):
        assert await one.until_closed() == 4508
        closed, bye = one.frames[-2:]
        assert (closed["type"], closed["reason"]) == ("session_closed", "client")
        assert (bye["type"], bye["code"]) == ("bye", 4508)
        assert seqs(one) == list(range(1, closed["seq"] + 1))
    state = await client.state(session)
    assert (state["state"], state["close_reason"]) == ("closed", "client")


async def test_close_ends_running_and_queued_turns(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"say": "a"}, {"hang": True}))
    await socket.until_text("a")
    await socket.send("prompt", prompt="later")
    await socket.until("accepted")
    await socket.send("close")
    assert await socket.until_closed() == 4508
    ends = {e["turn_index"]: e["stop_reason"] for e in socket.entries if e["type"] == "turn_end"}
    assert ends == {1: "cancelled", 2: "cancelled"}
    assert kinds(socket.entries)[-1] == "session_closed"
    assert await client.events(session, socket.entries[-1]["seq"]) == []


async def test_deleting_the_session_closes_its_sockets(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    assert (await client.delete(f"/sessions/{session}"))[0] == 200
    assert await socket.until_closed() == 4508
    assert kinds(socket.frames)[-2:] == ["session_closed", "bye"]


async def test_closed_session_can_be_read(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    await client.delete(f"/sessions/{session}")
    log = await client.events(session)
    for after, entries in ((0, log), (2, log[2:]), (len(log), []), (None, [])):
        socket = await client.connect(session, after=after)
        assert socket.frames[0]["state"] == "closed"
        assert await socket.until_closed() == 4508
        assert socket.entries == entries
        assert kinds(socket.frames) == ["ready", *kinds(entries), "bye"]


# after


async def test_after_replays_the_entries_that_follow(client: Client) -> None:
    session = await client.create()
    first = await client.connect(session, after=0)
    await first.turn("hello")
    log = first.entries
    for after in range(len(log) + 1):
        socket = await client.connect(session, after=after)
        await is_alive(socket)
        await read_to(socket, log[-1]["seq"] if log[after:] else 0)
        assert socket.entries == log[after:]
    socket = await client.connect(session)  # without it: from now on
    await is_alive(socket)
    assert socket.entries == []
    await socket.turn("more")
    assert socket.entries[0]["seq"] == log[-1]["seq"] + 1


async def read_to(socket: Socket, seq: int) -> None:
    """Read on until that entry; for many frames, and so without a deadline for each."""
    last = max(seqs(socket), default=0)  # it must have something to come
    async with Deadline(f"entry {seq}"):
        while last < seq:
            message = await socket.ws.receive()
            assert message.type is WSMsgType.TEXT
            socket.frames.append(json.loads(message.data))
            last = socket.frames[-1].get("seq", last)


async def test_after_past_the_end_of_the_log_closes_with_4002(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    head = (await client.state(session))["head"]
    for after in (head + 1, 10**17):
        socket = await client.connect(session, after=after, ready=False)
        assert await socket.until_closed() == 4002
        assert kinds(socket.frames) == ["bye"]
    await client.connect(session, after=head)


async def test_socket_opened_at_any_time_gets_every_entry_once(client: Client) -> None:
    session = await client.create()
    asking = await client.connect(session, after=0)
    state = await client.state(session)
    steps = [{"burst": {"count": 100, "batch": 5}}, {"gate": "gate-{i}"}]
    await asking.send("prompt", prompt=script({"repeat": {"times": 16, "steps": steps}}))
    position = (await asking.until("turn_start"))["seq"]
    sockets: list[tuple[int, Socket]] = []
    for number in range(16):  # each comes while a burst runs
        gate(state, f"gate-{number}").touch()
        after = position if number % 2 else 0
        socket = await client.connect(session, after=after)
        sockets.append((after, socket))
        position = socket.frames[0]["head"]
        assert position >= after
    last = int((await asking.until("turn_end"))["seq"])
    assert last > 1600
    assert seqs(asking) == list(range(1, last + 1))
    for after, socket in sockets:
        await read_to(socket, last)
        assert seqs(socket) == list(range(after + 1, last + 1))


async def test_socket_without_after_gets_entries_after_ready(client: Client) -> None:
    session = await client.create()
    asking = await client.connect(session)
    await asking.send("prompt", prompt=script(CHATTER))
    await asking.until_text("20 ")
    sockets = [await client.connect(session) for _ in range(5)]
    await asking.send("cancel")
    last = (await asking.until("turn_end"))["seq"]
    for socket in sockets:
        await socket.until("turn_end")
        assert seqs(socket) == list(range(socket.frames[0]["head"] + 1, last + 1))


async def test_all_sockets_get_the_same_entries(client: Client) -> None:
    session = await client.create(permission="ask")
    sockets = [await client.connect(session, after=0) for _ in range(4)]
    steps = ({"say": "a"}, {"permission": True}, {"burst": {"count": 500}}, {"say": "b"})
    await sockets[0].send("prompt", prompt=script(*steps), id="c1")
    asked = await sockets[1].until("permission_request")
    await sockets[2].send("permission", request_id=asked["request_id"], option_id="allow_once")
    for socket in sockets:
        await socket.until("turn_end")
    assert all(socket.entries == sockets[0].entries for socket in sockets)
    resolved = next(e for e in sockets[3].entries if e["type"] == "permission_resolved")
    assert resolved["by"] == "client"
    # Only the client that sent the prompt receives `accepted`.
    accepted = ["accepted" in kinds(socket.frames) for socket in sockets]
    assert accepted == [True, False, False, False]


async def test_first_response_to_a_permission_counts(client: Client) -> None:
    session = await client.create(permission="ask")
    first, second = await client.connect(session), await client.connect(session)
    await first.send("prompt", prompt=script({"permission": True}))
    asked = await first.until("permission_request")
    await first.send("permission", request_id=asked["request_id"], option_id="allow_once")
    await first.until("turn_end")
    await second.until("turn_end")
    await second.send("permission", request_id=asked["request_id"], option_id="reject_once")
    assert (await second.until("error"))["code"] == "not_found"
    await second.send("permission", request_id="unknown", outcome="cancelled")
    assert (await second.until("error"))["code"] == "not_found"
    resolved = [e for e in second.entries if e["type"] == "permission_resolved"]
    assert [e["outcome"]["optionId"] for e in resolved] == ["allow_once"]


# Bounds.


async def test_socket_over_the_limit_closes_with_4504(serve: Serve) -> None:
    server = await serve(max_sockets_per_session=2)
    client = await server.client()
    session = await client.create()
    sockets = [await client.connect(session) for _ in range(2)]
    extra = await client.connect(session, ready=False)
    assert await extra.until_closed() == 4504
    assert kinds(extra.frames) == ["bye"]
    await client.connect(await client.create())  # another session has its own
    await sockets.pop().close()
    await eventually("room", lambda: one_socket(client, session))
    await client.connect(session)


async def one_socket(client: Client, session: str) -> bool:
    return bool((await client.state(session))["sockets"] == 1)


async def test_acp_connections_count_as_sockets(serve: Serve) -> None:
    server = await serve(max_sockets_per_session=1, max_sockets_per_app=2)
    client = await server.client()
    first, second = [await connect_acp(client) for _ in range(2)]
    with pytest.raises(aiohttp.WSServerHandshakeError) as failure:
        await connect_acp(client)
    assert failure.value.status == 429
    assert failure.value.headers is not None
    assert failure.value.headers["Retry-After"] == "5"
    await connect_acp(await server.client("other"))  # another app has its own

    session = await first.new_session()
    for method in ("session/resume", "session/load"):
        with pytest.raises(ResponseError) as refusal:
            await second.call(method, sessionId=session, cwd="/", mcpServers=[])
        assert refusal.value.data["code"] == "rate_limited"
    await first.ws.close()
    await eventually("room", lambda: len(server.services.sockets) == 2)
    await second.call("session/resume", sessionId=session, cwd="/", mcpServers=[])
    assert await second.prompt(session, "hello") == {"stopReason": "end_turn"}
    watching = await client.connect(session, ready=False)
    assert await watching.until_closed() == 4504
    await second.ws.close()
    await eventually("room", lambda: len(server.services.sockets) == 1)
    await client.connect(session)


async def test_session_has_up_to_64_sockets(client: Client) -> None:
    session = await client.create()
    sockets = [await client.connect(session, after=0) for _ in range(64)]
    extra = await client.connect(session, ready=False)
    assert await extra.until_closed() == 4504
    await sockets[0].turn("hello")
    for socket in sockets[1:]:
        await socket.until("turn_end")
        assert socket.entries == sockets[0].entries


# set_mode, set_model, set_config_option


async def test_settings_reach_the_agent(client: Client) -> None:
    session = await client.create("mock-modes")
    socket = await client.connect(session)
    await socket.turn("so that it has started")
    state = await client.state(session)
    assert state["modes"]["currentModeId"] == "ask"
    await socket.send("set_mode", mode="code")
    await until_update(socket, "current_mode_update")
    await socket.send("set_config_option", key="thought_level", value="high")
    await until_update(socket, "config_option_update")
    await is_alive(socket)
    session_of = json.loads(await report(socket))["session"]
    assert session_of["mode"] == "code"
    assert session_of["config"]["thought_level"] == "high"
    ready = (await client.connect(session)).frames[0]
    assert ready["modes"]["currentModeId"] == "code"
    current = {option["id"]: option["currentValue"] for option in ready["config_options"]}
    assert current == {"model": "mock-small", "thought_level": "high"}


async def test_settings_sent_at_once_reach_the_agent_in_order(client: Client) -> None:
    socket = await client.connect(await client.create("mock-modes"))
    await socket.turn("so that it has started")
    for level in ("high", "low", "high"):
        await socket.send("set_config_option", key="thought_level", value=level)
    await socket.send("set_mode", mode="code")
    await until_update(socket, "current_mode_update")
    levels = [
        option["currentValue"]
        for entry in socket.entries
        if entry["type"] == "event"
        for option in entry["event"].get("params", {}).get("update", {}).get("configOptions", [])
        if option["id"] == "thought_level"
    ]
    assert levels == ["high", "low", "high"]
    assert "error" not in kinds(socket.frames)


async def test_model_reaches_the_agent(client: Client) -> None:
    socket = await client.connect(await client.create("mock-modes"))
    await socket.turn("so that it has started")
    await socket.send("set_model", model="mock-large")
    await until_update(socket, "config_option_update")
    await is_alive(socket)
    assert json.loads(await report(socket))["session"]["config"]["model"] == "mock-large"


async def report(socket: Socket) -> str:
    end = await socket.turn(script({"report": True}))
    return socket.text(end["turn_index"])


async def until_update(socket: Socket, kind: str) -> Json:
    while True:
        frame = await socket.until("event")
        update = frame["event"].get("params", {}).get("update", {})
        if update.get("sessionUpdate") == kind:
            return frame


async def test_setting_that_the_agent_refuses_is_an_error(client: Client) -> None:
    refusing = await client.connect(await client.create("mock-modes"))
    without = await client.connect(await client.create("mock"))
    await refusing.turn("so that it has started")
    await without.turn("so that it has started")
    settings: list[tuple[str, Json]] = [
        ("set_mode", {"mode": "no-such-mode"}),
        ("set_model", {"model": "no-such-model"}),
        ("set_config_option", {"key": "thought_level", "value": "no-such-level"}),
        ("set_config_option", {"key": "no-such-option", "value": "high"}),
    ]
    for socket in (refusing, without):
        for kind, fields in settings:
            await socket.send(kind, **fields)
            error = await socket.until("error")
            assert error["code"] == "bad_request", (kind, error)
            assert error["message"]
        await is_alive(socket)
    assert json.loads(await report(refusing))["session"]["mode"] == "ask"


# The server's own troubles.


async def test_stopping_server_sends_the_time_to_reconnect(
    own_server: LocalServer, own_client: Client
) -> None:
    sockets = [await own_client.connect(await own_client.create()) for _ in range(2)]
    stopping = asyncio.create_task(own_server.stop())
    for socket in sockets:
        assert await socket.until_closed() in (1001, 1012)
        bye = socket.frames[-1]
        assert bye["type"] == "bye"
        assert bye["code"] == socket.close_code
        assert 0 < bye["retry_after_ms"] <= 10_000
    await stopping


async def test_stopping_server_refuses_sockets(own_server: LocalServer, own_client: Client) -> None:
    session = await own_client.create()
    own_server.services.sessions.is_draining = True
    socket = await own_client.connect(session, ready=False)
    assert await socket.until_closed() in (1001, 1012)
    assert socket.frames[-1]["retry_after_ms"] > 0


async def test_log_that_cannot_be_read_closes_with_4000(
    own_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await own_client.create()
    await own_client.turn(session, "hello")

    async def fail(*_: Any) -> Any:
        raise DatabaseError("disk I/O error", is_transient=True)

    with monkeypatch.context() as patch:
        patch.setattr(Queries, "read_log", fail)
        # After 1: the page after 0 was read for the turn's response.
        socket = await own_client.connect(session, after=1, ready=False)
        assert await socket.until_closed() == 4000
    assert kinds(socket.frames)[-1] == "bye"
    assert socket.frames[-1]["code"] == 4000
    assert "disk" not in json.dumps(socket.frames)
    again = await own_client.connect(session, after=0)
    await again.until("turn_end")


async def test_prompt_that_cannot_be_stored_is_an_error_and_runs_nothing(
    own_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await own_client.create()
    socket = await own_client.connect(session)
    await socket.turn("so that nothing else is to be stored")

    async def fail(*_: Any) -> Any:
        raise DatabaseError("database or disk is full", is_transient=True)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", fail)
        await socket.send("prompt", prompt="hi", id="c1")
        error = await socket.until("error")
        assert (error["id"], error["code"], error["retryable"]) == ("c1", "internal", True)
    end = await socket.turn("hi", id="c1")
    assert end["turn_index"] == 2


async def test_defect_is_an_internal_error_without_details(
    own_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = await own_client.connect(await own_client.create())

    def fail(*_: Any) -> Any:
        raise KeyError("a secret")

    with monkeypatch.context() as patch:
        patch.setattr("server.sessions.session.Session.cancel", fail)
        await socket.send("cancel")
        error = await socket.until("error")
    assert error["code"] == "internal"
    assert "secret" not in json.dumps(error)
    assert (await socket.turn("hello"))["stop_reason"] == "end_turn"
