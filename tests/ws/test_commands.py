"""Commands over a session's WebSocket: bad ones, cancel, close and settings."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import WSMsgType

from server.sessions.session_settings import MAX_CHANGES

from ..conftest import Serve
from ..support.harness import Client, Json, Socket, busy_socket, script
from .frames import gate, is_alive, kinds, seqs

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
    busy = await busy_socket(client, await client.create())  # it has the only agent
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
