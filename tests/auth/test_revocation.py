"""Revocation: no request that was admitted with a revoked token gets a successful response."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from server.sessions.session import Session
from server.web.endpoint import Endpoint, Wait
from server.web.resources import endpoints

from ..support.acp_client import connect as connect_acp
from ..support.client import Socket
from ..support.harness import (
    Client,
    Deadline,
    Json,
    LocalServer,
    call_after_lookup,
    eventually,
    hold_commits,
    script,
)
from ..support.raw_socket import open_connection, open_event_stream

APP = "gone"
BEFORE_STALL_SECS = 25
"""A client that reads nothing would be dropped in any case later, after 30 s."""
APP_ENDPOINTS = [endpoint for endpoint in endpoints() if endpoint.auth == "app"]
ENDLESS = script({"say": "before"}, {"gate": "go"}, {"say": "after"})


async def revoke(server: LocalServer) -> None:
    assert (await server.admin().delete(f"/admin/tokens/{APP}"))[0] == 200


@pytest.fixture
async def client(server: LocalServer) -> Client:
    return await server.client(APP)


def filled(path: str, session: str) -> str:
    """An endpoint's path for a session."""
    return path.format(
        session_id=session,
        request_id="x",
        turn_index=1,
        path="a.bin",
        run_id="x",
        share_id="x",
        subscription_id="x",
    )


async def request_to(client: Client, endpoint: Endpoint) -> Any:
    """A request to the endpoint, for a new session of the client."""
    url = client.url + filled(endpoint.path, await client.create())
    body = None if endpoint.request_example is None else json.dumps(endpoint.request_example)
    return client.http.request(endpoint.method, url, headers=client.headers(), data=body)


async def test_token_revoked_after_admission_gets_401_from_every_route(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = server.services.tokens
    authenticate = tokens.authenticate

    def authenticate_and_revoke(token: str | None, address: str | None) -> Any:
        credential = authenticate(token, address)
        credential.revoke()
        return credential

    tried = 0
    for endpoint in APP_ENDPOINTS:
        if "socket" in endpoint.waits:
            continue
        called = endpoint.method, endpoint.path
        client = await server.client(f"{APP}-{tried}")
        asked = await request_to(client, endpoint)
        with monkeypatch.context() as patch:
            patch.setattr(tokens, "authenticate", authenticate_and_revoke)
            async with asked as response:
                assert response.status == 401, called
                reply = await response.json()
                is_openai = isinstance(reply["error"], dict)  # their clients expect another shape
                assert (reply["error"] if is_openai else reply)["code"] == "unauthorized", called
        sessions = await server.services.sessions.listing.sessions(
            f"{APP}-{tried}", include_closed=True
        )
        assert len(sessions) == 1, called  # only the one from before the request
        assert sessions[0].row.turn_count == 0
        tried += 1
    assert tried >= 11


# One scenario for each wait that an endpoint declares.

Scenario = Callable[[LocalServer, Client], Awaitable[None]]


async def until_waiting(server: LocalServer, count: int = 1) -> None:
    await eventually("the requests to wait", lambda: server.services.tokens.waits == count)


def half_a_body(method: str, path: str, start: bytes, content_type: str) -> Scenario:
    async def scenario(server: LocalServer, client: Client) -> None:
        never = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield start
            await never.wait()

        url = client.url + filled(path, await client.create())
        headers = {**client.headers(), "Content-Type": content_type}
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(
                client.http.request(method, url, data=body(), headers=headers).__aenter__()
            )
            await until_waiting(server)
            await revoke(server)
            response = await asking
        assert response.status == 401
        response.close()

    return scenario


def half_json(method: str, path: str) -> Scenario:
    return half_a_body(method, path, b'{"prompt":"hello', "application/json")


async def wait_for_turns(server: LocalServer, client: Client) -> None:
    """Requests for a running turn, for a queued turn, and with a repeated prompt."""
    session = await client.create()
    path, key = f"/sessions/{session}/turn", {"Idempotency-Key": "k"}
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(client.post(path, {"prompt": ENDLESS}, headers=key))]
        await until_waiting(server)
        asked += [
            group.create_task(client.post(path, {"prompt": "hi"}, headers=headers))
            for headers in ({}, key)
        ]
        await until_waiting(server, 3)
        await revoke(server)
    assert [task.result()[0] for task in asked] == [401, 401, 401]


async def wait_for_a_run(server: LocalServer, client: Client) -> None:
    async with asyncio.TaskGroup() as group:
        body = {"agent": "mock", "prompt": ENDLESS}
        asked = group.create_task(client.post("/run", body))
        await eventually("the run to begin", lambda: server.services.runner.running)
        await until_waiting(server)
        await revoke(server)
    assert asked.result()[0] == 401
    await eventually("the run to end", lambda: not server.services.runner.running)


def stream_of(method: str, path: str, body: Json | None) -> Scenario:
    async def scenario(server: LocalServer, client: Client) -> None:
        session = await client.create()
        if body is None:
            await client.turn(session, "hello")
        url = client.url + path.format(session_id=session)
        headers = {**client.headers(), "Accept": "text/event-stream"}
        async with client.http.request(method, url, json=body, headers=headers) as response:
            assert response.status == 200
            await response.content.readuntil(b"data: ")
            async with Deadline("the stream's end"):
                await revoke(server)
                rest = await response.content.read()
        assert b'"after"' not in rest
        assert b'"end_turn"' not in rest if body is not None else True

    return scenario


def fill_folder(folder: Path) -> None:
    """Make a long file, and long listings and archives."""
    (folder / "a.bin").write_bytes(os.urandom(1 << 21))
    for number in range(2000):
        (folder / f"{number:0200}").touch()


def unread_response(method: str, path: str) -> Scenario:
    """A response that exceeds the buffers; the client reads only its beginning."""

    async def scenario(server: LocalServer, client: Client) -> None:
        session = await client.create()
        if path in (FILES, FILE, ARCHIVE):
            await asyncio.to_thread(fill_folder, Path((await client.state(session))["cwd"]))
        body = json.dumps({"prompt": script({"burst": {"count": 6, "text": "x" * 99_000}})})
        headers = "Idempotency-Key: once\r\n"
        await client.post(f"/sessions/{session}/turn", body, headers={"Idempotency-Key": "once"})
        for _ in range(6 if path == "/sessions" else 0):
            await client.create(meta={"note": "x" * 60_000})
        content = body.encode() if method == "POST" else b""
        with await open_connection(server.url, receive_buffer=4096) as stuck:
            request = (
                f"{method} {filled(path, session)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Authorization: Bearer {client.token}\r\n{headers}"
                f"Content-Length: {len(content)}\r\n\r\n"
            )
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stuck, request.encode() + content)
            assert (await loop.sock_recv(stuck, 100)).startswith(b"HTTP/1.1 200")
            await until_waiting(server)
            await revoke(server)
            received = bytearray()
            async with Deadline("the connection to be dropped", BEFORE_STALL_SECS):
                with contextlib.suppress(ConnectionResetError):
                    while data := await loop.sock_recv(stuck, 1 << 16):
                        received += data
        assert not received.rstrip().endswith(b"0\r\n\r\n")
        assert len(received) < 400_000

    return scenario


async def unread_changes(server: LocalServer, client: Client) -> None:
    """A long list of changes of a running turn; the client reads only its beginning."""
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=ENDLESS)
    await socket.until_text("before")
    await asyncio.to_thread(fill_folder, Path((await client.state(session))["cwd"]))
    with await open_connection(server.url, receive_buffer=4096) as stuck:
        request = (
            f"GET {filled(CHANGES, session)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {client.token}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(stuck, request.encode())
        assert (await loop.sock_recv(stuck, 100)).startswith(b"HTTP/1.1 200")
        await until_waiting(server)
        await revoke(server)
        async with Deadline("the connection to be dropped", BEFORE_STALL_SECS):
            with contextlib.suppress(ConnectionResetError):
                while await loop.sock_recv(stuck, 1 << 16):
                    pass


def wait_for_snapshots(method: str, path: str, body: Json | None = None) -> Scenario:
    """A request that waits for the session's snapshots."""

    async def scenario(server: LocalServer, client: Client) -> None:
        session = await client.create()
        await client.turn(session, "hello")
        async with server.services.sessions.cached[session].snapshots.lock:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(client.call(method, filled(path, session), body))
                await until_waiting(server)
                await revoke(server)
            assert asking.result()[0] == 401

    return scenario


async def wait_for_a_chat(server: LocalServer, client: Client) -> None:
    messages = [{"role": "user", "content": ENDLESS}]
    waiting = asyncio.create_task(client.post(CHAT, {"messages": messages}))
    await until_waiting(server)
    await revoke(server)
    assert (await waiting)[0] == 401


async def session_socket(server: LocalServer, client: Client) -> None:
    socket = await client.connect(await client.create())
    await revoke(server)
    assert await socket.until_closed() == 4503


async def app_socket(server: LocalServer, client: Client) -> None:
    session = await client.create()
    ws = await client.http.ws_connect(f"{client.url}/ws", headers=client.headers())
    client.close_later(ws)
    socket = Socket(ws)
    await socket.send("subscribe", session_id=session)
    await socket.until("ready", session_id=session)
    await revoke(server)
    assert await socket.until_closed() == 4503


async def acp_socket(server: LocalServer, client: Client) -> None:
    connection = await connect_acp(client)
    await revoke(server)
    assert await connection.until_closed() == 4503


MULTIPART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhalf'
CHAT = "/v1/chat/completions"
TURN = "/sessions/{session_id}/turn"
EVENTS = "/sessions/{session_id}/events"
FILES = "/sessions/{session_id}/files"
FILE = "/sessions/{session_id}/files/{path}"
ARCHIVE = "/sessions/{session_id}/archive"
CHANGES = "/sessions/{session_id}/changes"
SNAPSHOTS = "/sessions/{session_id}/snapshots"
UNDO = "/sessions/{session_id}/undo"
ELICITATION = "/sessions/{session_id}/elicitations/{request_id}"
PERMISSION = "/sessions/{session_id}/permissions/{request_id}"
QUEUE = "/sessions/{session_id}/queue/{turn_index}"
FORK = "/sessions/{session_id}/fork"
EXPORT = "/sessions/{session_id}/export"
SHARES = "/sessions/{session_id}/shares"
READ = "/sessions/{session_id}/read"
SCENARIOS: dict[tuple[str, str, Wait], Scenario] = {
    ("POST", "/run", "body"): half_json("POST", "/run"),
    ("POST", "/run", "work"): wait_for_a_run,
    ("POST", "/run", "stream"): stream_of("POST", "/run", {"prompt": ENDLESS, "agent": "mock"}),
    ("POST", "/files", "body"): half_a_body(
        "POST", "/files", MULTIPART, "multipart/form-data; boundary=x"
    ),
    ("PUT", "/webhook", "body"): half_json("PUT", "/webhook"),
    ("POST", "/push/subscriptions", "body"): half_json("POST", "/push/subscriptions"),
    ("POST", "/sessions", "body"): half_json("POST", "/sessions"),
    ("PATCH", "/sessions/{session_id}", "body"): half_json("PATCH", "/sessions/{session_id}"),
    ("POST", TURN, "body"): half_json("POST", TURN),
    ("POST", TURN, "work"): wait_for_turns,
    ("POST", TURN, "response"): unread_response("POST", TURN),
    ("GET", CHANGES, "work"): wait_for_snapshots("GET", CHANGES),
    ("GET", CHANGES, "response"): unread_changes,
    ("GET", SNAPSHOTS, "work"): wait_for_snapshots("GET", SNAPSHOTS),
    ("POST", UNDO, "body"): half_json("POST", UNDO),
    ("POST", UNDO, "work"): wait_for_snapshots("POST", UNDO, {"turn_index": 1}),
    ("PUT", FILE, "body"): half_a_body("PUT", FILE, b"half", "application/octet-stream"),
    ("GET", FILES, "response"): unread_response("GET", FILES),
    ("GET", FILE, "response"): unread_response("GET", FILE),
    ("GET", ARCHIVE, "response"): unread_response("GET", ARCHIVE),
    ("GET", EVENTS, "response"): unread_response("GET", EVENTS),
    ("GET", "/sessions", "response"): unread_response("GET", "/sessions"),
    ("POST", TURN, "stream"): stream_of("POST", TURN, {"prompt": ENDLESS}),
    ("POST", PERMISSION, "body"): half_json("POST", PERMISSION),
    ("POST", ELICITATION, "body"): half_json("POST", ELICITATION),
    ("PATCH", QUEUE, "body"): half_json("PATCH", QUEUE),
    ("POST", FORK, "body"): half_json("POST", FORK),
    ("POST", "/sessions/import", "body"): half_json("POST", "/sessions/import"),
    ("GET", EXPORT, "response"): unread_response("GET", EXPORT),
    ("POST", SHARES, "body"): half_json("POST", SHARES),
    ("POST", READ, "body"): half_json("POST", READ),
    ("GET", EVENTS, "stream"): stream_of("GET", EVENTS, None),
    ("GET", "/sessions/{session_id}/ws", "socket"): session_socket,
    ("GET", "/sessions/stream", "stream"): stream_of("GET", "/sessions/stream", None),
    ("GET", "/ws", "socket"): app_socket,
    ("GET", "/acp", "socket"): acp_socket,
    ("POST", CHAT, "body"): half_json("POST", CHAT),
    ("POST", CHAT, "work"): wait_for_a_chat,
    ("POST", CHAT, "stream"): stream_of(
        "POST", CHAT, {"messages": [{"role": "user", "content": ENDLESS}], "stream": True}
    ),
}


def test_every_declared_wait_has_a_scenario() -> None:
    declared = {
        (endpoint.method, endpoint.path, wait)
        for endpoint in APP_ENDPOINTS
        for wait in endpoint.waits
    }
    assert SCENARIOS.keys() == declared


@pytest.mark.parametrize("wait", SCENARIOS, ids=" ".join)
async def test_revocation_ends_every_wait(
    server: LocalServer, client: Client, wait: tuple[str, str, Wait]
) -> None:
    await SCENARIOS[wait](server, client)
    assert server.services.tokens.waits == 0


async def test_event_stream_of_client_that_does_not_read_is_dropped(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    await client.turn(session, script({"burst": {"count": 6000, "text": "x" * 100}}))
    streams = server.services.sockets.count_streams
    with await open_event_stream(client, session):
        await eventually("the stream to begin", lambda: streams() == 1)
        await revoke(server)
        await eventually("the stream to be dropped", lambda: streams() == 0)


# Turns of the app.


async def test_running_and_queued_turns_of_revoked_app_are_cancelled(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=ENDLESS)
    await socket.send("prompt", prompt=script({"touch": "started"}))
    await socket.until_text("before")
    await eventually("the second to queue", lambda: server.services.sessions.figures.queued_turns)
    folder = Path((await client.state(session))["cwd"])
    await revoke(server)
    again = await server.client(APP)

    async def ended() -> list[Json]:
        entries = await again.events(session)
        return [one for one in entries if one["type"] == "turn_end"][1:]

    await eventually("both turns to end", ended)
    ends = {
        entry["turn_index"]: entry["stop_reason"]
        for entry in await again.events(session)
        if entry["type"] == "turn_end"
    }
    assert ends == {1: "cancelled", 2: "cancelled"}
    assert not (folder / "started").exists()
    assert (await again.turn(session, "hello"))[1]["stop_reason"] == "end_turn"


async def test_prompt_stored_during_revocation_does_not_run(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.create()
    stored, go_on = hold_commits(server, monkeypatch)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.turn(session, "hello"))
        await stored.wait()
        revoking = group.create_task(revoke(server))
        await eventually("the token to be revoked", lambda: not has_token(server))
        go_on.set()
    await revoking
    assert asked.result()[0] == 401
    monkeypatch.undo()
    again = await server.client(APP)

    async def end() -> list[Json]:
        return [one for one in await again.events(session) if one["type"] == "turn_end"]

    await eventually("the turn to end", end)
    assert (await end())[0]["stop_reason"] == "cancelled"


def has_token(server: LocalServer) -> bool:
    return any(row.name == APP for row in server.services.tokens.rows())


async def test_socket_of_revoked_token_is_refused_although_name_has_new_token(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.create()

    async def replace_token(app_name: str) -> None:
        await server.services.tokens.revoke(app_name)
        await server.services.tokens.create(app_name)

    with monkeypatch.context() as patch:
        call_after_lookup(patch, replace_token)
        socket = await client.connect(session, ready=False)
        assert await socket.until_closed() == 4503


async def test_repeated_prompt_of_old_token_does_not_cancel_turn_of_new_token(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.create()
    prompt = Session.prompt
    running: list[asyncio.Task[Any]] = []

    async def revoke_first(self: Session, *args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        await revoke(server)
        again = await server.client(APP)
        running.append(asyncio.create_task(again.post(path, body, headers=key)))
        await until_waiting(server)
        return await prompt(self, *args, **options)

    path, key = f"/sessions/{session}/turn", {"Idempotency-Key": "k"}
    body = {"prompt": script({"say": "a"}, {"gate": "go"})}
    monkeypatch.setattr(Session, "prompt", revoke_first)
    assert (await client.post(path, body, headers=key))[0] == 401
    found = await server.services.sessions.get(session, APP)
    (Path(found.row.cwd) / "go").touch()
    status, reply = await running[0]
    assert (status, reply["stop_reason"]) == (200, "end_turn")


async def test_revocation_does_not_affect_new_token_of_same_name(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        old = group.create_task(client.turn(session, ENDLESS))
        await until_waiting(server)
        await revoke(server)
        again = await server.client(APP)
        new = group.create_task(again.turn(session, "hello"))
    assert (old.result()[0], new.result()[0]) == (401, 200)
