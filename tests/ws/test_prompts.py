"""Prompts over a session's WebSocket: the order of the frames about them, repeats and the queue."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Serve
from ..support.harness import (
    TIMEOUT_SECS,
    Client,
    Json,
    Socket,
    eventually,
    script,
)
from .frames import gate, is_alive, kinds, read_to, seqs


async def raw_until(socket: Socket, kind: str) -> list[str]:
    """The text of every frame up to the next of that type, to the byte."""
    found: list[str] = []
    while not found or not found[-1].startswith(f'{{"type":"{kind}"'):
        found.append(await asyncio.wait_for(socket.ws.receive_str(), TIMEOUT_SECS))
    return found


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
