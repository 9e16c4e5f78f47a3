"""``GET /ws``: the list of an app's sessions, and the logs of many sessions on one socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from ..conftest import Serve
from ..support.client import Client, Json, Socket, failure
from ..support.harness import LocalServer, eventually, script
from ..support.raw_socket import upgrade


async def open_list(client: Client, query: str = "") -> tuple[Socket, Json]:
    """Open ``/ws``. Returns the socket and its ``ready`` frame."""
    ws = await client.http.ws_connect(f"{client.url}/ws{query}", headers=client.headers())
    client.close_later(ws)
    socket = Socket(ws)
    return socket, await socket.until("ready")


async def is_alive(socket: Socket) -> None:
    await socket.send("ping", id="alive?")
    await socket.until("pong", id="alive?")


def of_session(socket: Socket, session: str) -> list[Json]:
    """The session's log entries among the frames, without their ``session_id``."""
    return [
        {name: value for name, value in entry.items() if name != "session_id"}
        for entry in socket.entries
        if entry["session_id"] == session
    ]


# The list


async def test_ready_lists_open_sessions_with_chosen_fields(client: Client) -> None:
    first, second, closed = [await client.create() for _ in range(3)]
    await client.delete(f"/sessions/{closed}")
    for session in (first, second):
        await client.until_live(session)
    _, ready = await open_list(client)
    assert ready["sessions"] == (await client.get("/sessions"))[1]["sessions"]
    _, ready = await open_list(client, "?fields=state,meta,unknown")
    assert ready == {
        "type": "ready",
        "protocol": 1,
        "sessions": [
            {"session_id": session, "meta": {}, "state": "idle"} for session in (second, first)
        ],
    }


async def test_list_reports_read_marks(client: Client) -> None:
    session = await client.create()
    assert (await client.turn(session, "hello"))[0] == 200
    socket, ready = await open_list(client, "?fields=unread")
    [listed] = ready["sessions"]
    await client.post(f"/sessions/{session}/read", {"seq": 2})
    frame = await socket.until("session")
    assert frame["session"] == {"session_id": session, "unread": listed["unread"] - 2}


async def test_list_reports_every_change_of_a_session(client: Client) -> None:
    socket, _ = await open_list(client, "?fields=state,meta,queued,pending_permissions,turn_count")
    session = await client.create(permission="ask")
    frame = await socket.until("session")
    assert frame["session"]["session_id"] == session
    await client.call("PATCH", f"/sessions/{session}", {"meta": {"title": "first"}})
    assert (await socket.until("session"))["session"]["meta"] == {"title": "first"}
    turns = [
        asyncio.create_task(client.turn(session, script({"permission": True}))),
        asyncio.create_task(client.turn(session, "next")),
    ]
    seen: list[Json] = []

    async def until(description: str, condition: Any) -> Json:
        while not (seen and condition(seen[-1])):
            seen.append((await socket.until("session"))["session"])
        return seen[-1]

    state = await until(
        "a permission request and a queued prompt",
        lambda state: state["pending_permissions"] and state["queued"],
    )
    assert state["state"] == "running"
    request = state["pending_permissions"][0]["request_id"]
    await socket.send("permission", session_id=session, request_id=request, option_id="allow_once")
    await until("both turns to end", lambda state: state["turn_count"] == 2)
    await until("the session to be idle", lambda state: state["state"] == "idle")
    await asyncio.gather(*turns)
    await client.delete(f"/sessions/{session}")
    assert (await socket.until("session_gone"))["session_id"] == session


async def test_list_omits_changes_that_the_client_does_not_see(client: Client) -> None:
    session = await client.create()
    socket, _ = await open_list(client, "?fields=meta")
    await client.turn(session, "hello")
    await client.call("PATCH", f"/sessions/{session}", {"meta": {"title": "after"}})
    frame = await socket.until("session")
    assert frame["session"] == {"session_id": session, "meta": {"title": "after"}}
    assert [frame["type"] for frame in socket.frames] == ["ready", "session"]


async def test_list_shows_nothing_of_another_app(server: LocalServer, client: Client) -> None:
    other = await server.client("another")
    theirs = await other.create()
    socket, ready = await open_list(client)
    assert ready["sessions"] == []
    await other.turn(theirs, "hello")
    await other.delete(f"/sessions/{theirs}")
    await socket.send("subscribe", session_id=theirs, id="s")
    error = await socket.until("error")
    unknown = "00000000-0000-4000-8000-000000000000"
    await socket.send("subscribe", session_id=unknown, id="s")
    assert await socket.until("error") == {**error, "session_id": unknown}
    assert error["code"] == "not_found"
    assert {frame["type"] for frame in socket.frames} == {"ready", "error"}


async def test_list_is_available_as_event_stream(client: Client) -> None:
    session = await client.create()
    async with client.http.get(
        f"{client.url}/sessions/stream?fields=meta", headers=client.headers()
    ) as response:
        assert response.content_type == "text/event-stream"

        async def next_frame() -> Json:
            async for line in response.content:
                if line.startswith(b"data: "):
                    frame: Json = json.loads(line[6:])
                    return frame
            raise AssertionError("the stream has ended")

        listed = [{"session_id": session, "meta": {}}]
        assert await next_frame() == {"type": "ready", "protocol": 1, "sessions": listed}
        await client.call("PATCH", f"/sessions/{session}", {"meta": {"a": 1}})
        changed = {"session_id": session, "meta": {"a": 1}}
        assert await next_frame() == {"type": "session", "session": changed}
        await client.delete(f"/sessions/{session}")
        assert await next_frame() == {"type": "session_gone", "session_id": session}


# Subscriptions


async def test_subscribed_sessions_arrive_as_on_their_own_sockets(client: Client) -> None:
    sessions = [await client.create() for _ in range(3)]
    socket, _ = await open_list(client)
    for session in sessions:
        await socket.send("subscribe", session_id=session)
        assert (await socket.until("ready"))["session_id"] == session
    for session in sessions:
        await socket.send("prompt", session_id=session, prompt=f"to {session}", id="same id")
    for _ in sessions:
        await socket.until("turn_end")
    for session in sessions:
        assert of_session(socket, session) == await client.events(session)
    accepted = [frame for frame in socket.frames if frame["type"] == "accepted"]
    assert [frame["session_id"] for frame in accepted] == sessions
    starts = {
        frame["session_id"]: socket.frames.index(frame)
        for frame in socket.frames
        if frame["type"] == "turn_start"
    }
    for frame in accepted:
        assert socket.frames.index(frame) < starts[frame["session_id"]]


async def test_subscription_resumes_at_a_position(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "first")
    socket, _ = await open_list(client)
    await socket.send("subscribe", session_id=session, after=2)
    await client.turn(session, "second")
    await socket.until("turn_end", turn_index=2)
    assert of_session(socket, session) == await client.events(session, after=2)
    await socket.send("subscribe", session_id=session, after=0)
    again, _ = await open_list(client)
    await again.send("subscribe", session_id=session, after=0)
    await again.until("turn_end", turn_index=2)
    assert of_session(again, session) == await client.events(session)


async def test_subscription_without_position_begins_now(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "before")
    socket, _ = await open_list(client)
    await socket.send("subscribe", session_id=session)
    head = (await socket.until("ready"))["head"]
    await socket.send("subscribe", session_id=session)  # changes nothing
    await client.turn(session, "after")
    await socket.until("turn_end", turn_index=2)
    assert of_session(socket, session) == await client.events(session, after=head)


async def test_unsubscribed_session_sends_no_more_entries(client: Client) -> None:
    session, other = await client.create(), await client.create()
    socket, _ = await open_list(client)
    for one in (session, other):
        await socket.send("subscribe", session_id=one)
    await socket.send("unsubscribe", session_id=session)
    await socket.send("unsubscribe", session_id=session)
    await is_alive(socket)
    for one in (session, other):
        await client.turn(one, "hello")
    await socket.until("turn_end", session_id=other)
    assert of_session(socket, session) == []
    assert (await client.state(session))["sockets"] == 0


async def test_position_after_the_head_is_refused(client: Client) -> None:
    session = await client.create()
    socket, _ = await open_list(client)
    await socket.send("subscribe", session_id=session, after=10**6, id="s")
    error = await socket.until("error")
    assert (error["code"], error["id"], error["session_id"]) == ("bad_request", "s", session)
    await is_alive(socket)


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "prompt", "prompt": 5},
        {"type": "subscribe", "after": "0"},
        {"type": "queue", "turn_index": "1"},
        {"type": "queue", "turn_index": 1},
        {"type": "permission", "request_id": "r", "option_id": 5},
        {"type": "permission", "request_id": "r"},
        {"type": "prompt", "prompt": "\ud800"},
        {"type": "dance"},
    ],
)
async def test_error_about_an_invalid_frame_names_its_session(client: Client, frame: Json) -> None:
    session = await client.create()
    socket, _ = await open_list(client)
    await socket.ws.send_str(json.dumps({**frame, "id": "i", "session_id": session}))
    error = await socket.until("error")
    assert (error["code"], error["id"], error["session_id"]) == ("bad_request", "i", session)
    await is_alive(socket)


async def test_frame_needs_a_session(client: Client) -> None:
    socket, _ = await open_list(client)
    for session in (None, 7, ["x"]):
        await socket.send("prompt", session_id=session, prompt="hello", id="p")
        error = await socket.until("error")
        assert (error["code"], error["id"]) == ("bad_request", "p")
    await socket.send("cancel")
    assert (await socket.until("error"))["code"] == "bad_request"
    await is_alive(socket)


async def test_closed_session_is_gone_after_its_last_entry(client: Client) -> None:
    session = await client.create()
    socket, _ = await open_list(client)
    await socket.send("subscribe", session_id=session)
    await socket.send("prompt", session_id=session, prompt="hello")
    await socket.until("turn_end")
    await socket.send("close", session_id=session)
    gone = await socket.until("session_gone")
    assert gone["session_id"] == session
    assert of_session(socket, session)[-1]["type"] == "session_closed"
    # A closed session can be read, and is then gone again.
    await socket.send("subscribe", session_id=session, after=0)
    await socket.until("session_gone")
    assert [entry["type"] for entry in socket.entries].count("session_closed") == 2


async def test_sessions_that_close_at_once_are_each_gone_after_their_last_entry(
    server: LocalServer, client: Client
) -> None:
    """The list and the logs change in the same moment."""
    sessions = [await client.create() for _ in range(20)]
    socket, _ = await open_list(client)
    for session in sessions:
        await socket.send("subscribe", session_id=session)
    await is_alive(socket)
    closing = [asyncio.create_task(client.delete(f"/sessions/{session}")) for session in sessions]
    for _ in sessions:
        await socket.until("session_gone")
    await asyncio.gather(*closing)
    await is_alive(socket)
    kinds = ("session_closed", "session_gone")
    for session in sessions:
        ends = [f["type"] for f in socket.frames if f.get("session_id") == session]
        assert [kind for kind in ends if kind in kinds] == [*kinds]


@pytest.mark.slow
async def test_session_with_many_entries_does_not_delay_others(client: Client) -> None:
    loud, quiet = await client.create(), await client.create()
    await client.turn(loud, script({"burst": {"count": 20_000, "text": "x" * 200}}))
    await client.turn(quiet, "hello")
    socket, _ = await open_list(client)
    await socket.send("subscribe", session_id=loud, after=0)
    await socket.send("subscribe", session_id=quiet, after=0)
    await socket.until("turn_end", session_id=quiet)
    assert len(of_session(socket, loud)) < 10_000
    await socket.until("turn_end", session_id=loud)
    seqs = [entry["seq"] for entry in of_session(socket, loud)]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_limits_of_subscriptions(serve: Serve) -> None:
    server = await serve(max_subscriptions_per_socket=2, max_sockets_per_session=1)
    client = await server.client()
    sessions = [await client.create() for _ in range(3)]
    socket, _ = await open_list(client)
    for session in sessions:
        await socket.send("subscribe", session_id=session)
    error = await socket.until("error")
    assert (error["code"], error["session_id"]) == ("rate_limited", sessions[2])
    await socket.send("unsubscribe", session_id=sessions[0])
    await is_alive(socket)
    other, _ = await open_list(client)
    await other.send("subscribe", session_id=sessions[1])
    assert (await other.until("error"))["code"] == "rate_limited"


@pytest.mark.slow
async def test_slow_client_delays_no_other_client(client: Client) -> None:
    """A socket that is not read follows a loud session, and another follows it live."""
    session = await client.create()
    stuck = await upgrade(client, "/ws")
    with contextlib.closing(stuck.connection):
        await stuck.send("subscribe", session_id=session)
        socket, _ = await open_list(client)
        await socket.send("subscribe", session_id=session)
        await socket.until("ready", session_id=session)
        burst = script({"burst": {"count": 50_000, "text": "x" * 200}})
        await socket.send("prompt", session_id=session, prompt=burst)
        await socket.until("turn_end")
        assert len(of_session(socket, session)) == 50_003


# Access


@pytest.mark.parametrize("auth", [{"ticket": "cft_unknown"}, {"token": "cf_unknown"}, {}])
async def test_refused_credential_closes_the_socket(client: Client, auth: Json) -> None:
    async with client.http.ws_connect(f"{client.url}/ws") as ws:
        socket = Socket(ws)
        await socket.send("auth", **auth)
        assert await socket.until_closed() == 4500


async def test_ticket_of_a_session_does_not_open_the_list(client: Client) -> None:
    session = await client.create()
    _, reply = await client.post(f"/sessions/{session}/ticket")
    async with client.http.ws_connect(f"{client.url}/ws") as ws:
        socket = Socket(ws)
        await socket.send("auth", ticket=reply["ticket"])
        assert await socket.until_closed() == 4500


async def test_token_in_the_first_frame_opens_the_list(client: Client) -> None:
    async with client.http.ws_connect(f"{client.url}/ws") as ws:
        socket = Socket(ws)
        await socket.send("auth", token=client.token)
        assert (await socket.until("ready"))["sessions"] == []
        await socket.send("auth", token=client.token)
        await is_alive(socket)
        await socket.send("auth", token="cf_another")
        assert await socket.until_closed() == 4500


async def test_request_without_an_upgrade_or_token_is_refused(client: Client) -> None:
    failure(await client.get("/ws"), 400, "bad_request")
    stranger = Client(client.url, None, client.http)
    failure(await stranger.get("/sessions/stream"), 401, "unauthorized")


@pytest.mark.slow
async def test_list_and_subscriptions_continue_after_a_restart(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    socket, _ = await open_list(client)
    await socket.send("subscribe", session_id=session, after=0)
    await socket.send("prompt", session_id=session, prompt="before")
    await socket.until("turn_end")
    received = of_session(socket, session)
    _, code = await asyncio.gather(server.stop(), socket.until_closed())
    assert code == 1012
    server = await serve()
    client = Client(server.url, client.token, client.http)
    again, ready = await open_list(client)
    assert [state["session_id"] for state in ready["sessions"]] == [session]
    await again.send("subscribe", session_id=session, after=received[-1]["seq"])
    await again.send("prompt", session_id=session, prompt="after")
    await again.until("turn_end")
    assert received + of_session(again, session) == await client.events(session)


async def test_followed_session_is_released_with_its_socket(client: Client) -> None:
    session = await client.create()
    socket, _ = await open_list(client)
    await socket.send("subscribe", session_id=session)
    await socket.until("ready", session_id=session)
    assert (await client.state(session))["sockets"] == 1
    await socket.close()

    async def is_released() -> bool:
        return bool((await client.state(session))["sockets"] == 0)

    await eventually("the session to be released", is_released)
