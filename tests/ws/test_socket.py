"""A session's WebSocket: its first frames, replays and limits, and failures of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from server.errors import DatabaseError
from server.storage.database import Database
from server.storage.queries import Queries

from ..conftest import Serve
from ..support.acp_client import ResponseError
from ..support.acp_client import connect as connect_acp
from ..support.harness import (
    TIMEOUT_SECS,
    Client,
    Json,
    LocalServer,
    Socket,
    eventually,
    script,
)
from .frames import gate, is_alive, kinds, read_to, seqs

CHATTER: Json = {"repeat": {"times": 100_000, "steps": [{"sleep": 2}, {"say": "{i} "}]}}


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
        message = await ws.receive(timeout=TIMEOUT_SECS)
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
