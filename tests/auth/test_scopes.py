"""Scopes: what a token allows over REST, WebSocket and ACP."""

from __future__ import annotations

import re
from typing import Literal

import aiohttp
import pytest

from server.auth.scopes import ALL_SCOPES, Scope
from server.web.endpoint import Endpoint, Tag
from server.web.resources import endpoints

from ..support.acp_client import ResponseError
from ..support.acp_client import connect as connect_acp
from ..support.client import Client, Json, Socket, failure
from ..support.harness import ROOT, Deadline, LocalServer, script

NAME = "limited"
CALLS = {(one.method, one.path): one for one in endpoints() if one.scope is not None}


@pytest.fixture
async def client(server: LocalServer) -> Client:
    return await server.client(NAME)


async def with_scopes(server: LocalServer, name: str, *scopes: Scope) -> Client:
    return await server.client(name, scopes=list(scopes))


def filled(path: str, session: str) -> str:
    path = path.replace("{session_id}", session).replace("{turn_index}", "1")
    return re.sub(r"{\w+}", "x", path)


@pytest.mark.parametrize(("auth", "scope"), [("app", None), ("admin", "read"), (None, "read")])
def test_only_calls_of_apps_have_a_scope(
    auth: Literal["app", "admin"] | None, scope: Scope | None
) -> None:
    with pytest.raises(TypeError):
        Endpoint("GET", "/x", tag=Tag.SESSIONS, summary="X", auth=auth, scope=scope)


def test_security_page_has_the_scope_of_every_call() -> None:
    page = (ROOT / "docs" / "explanation" / "security.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+) (/[^`]*)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert {(method, path): scope for method, path, scope in rows} == {
        call: endpoint.scope for call, endpoint in CALLS.items()
    }


@pytest.mark.parametrize("scope", ALL_SCOPES)
async def test_token_without_a_scope_is_refused_by_its_calls(
    server: LocalServer, client: Client, scope: Scope
) -> None:
    session = await client.create()
    others = [one for one in ALL_SCOPES if one != scope]
    assert (await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": others}))[
        0
    ] == 200
    for (method, path), call in CALLS.items():
        if call.scope != scope or call.auth_in_handler:
            continue
        response = await client.call(method, filled(path, session))
        assert scope in failure(response, 403, "forbidden"), path


async def test_another_apps_session_is_not_found_with_any_scope(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    reader = await with_scopes(server, "reader", "read")
    failure(await reader.get(f"/sessions/{session}"), 404, "not_found")


async def test_reader_follows_and_cannot_do_anything_else(
    server: LocalServer, client: Client
) -> None:
    session = await client.create(permission="ask")
    await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": ["read"]})
    socket = await client.connect(session, after=0)
    for kind, fields in (
        ("prompt", {"prompt": "hello"}),
        ("cancel", {}),
        ("permission", {"request_id": "x", "option_id": "y"}),
        ("set_mode", {"mode": "x"}),
        ("close", {}),
    ):
        await socket.send(kind, id="c", **fields)
        error = await socket.until("error")
        assert (error["code"], error["id"]) == ("forbidden", "c"), kind
    await socket.send("ping")
    await socket.until("pong")
    # A change takes effect at once, also on an open socket.
    await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": ["read", "prompt"]})
    assert (await socket.turn("hello"))["stop_reason"] == "end_turn"


async def test_permission_needs_the_scope_approve(server: LocalServer, client: Client) -> None:
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"permission": True}))
    request = (await socket.until("permission_request"))["request_id"]
    await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": ["read"]})
    path = f"/sessions/{session}/permissions/{request}"
    failure(await client.post(path, {"option_id": "allow_once"}), 403, "forbidden")
    await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": ["read", "approve"]})
    assert (await client.post(path, {"option_id": "allow_once"}))[0] == 200
    await socket.until("turn_end")


async def test_socket_needs_the_scope_read(server: LocalServer) -> None:
    writer = await with_scopes(server, "writer", "prompt", "manage")
    session = await writer.create()
    stranger = Client(writer.url, None, writer.http)
    for path in (f"/sessions/{session}/ws", "/ws"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await writer.http.ws_connect(writer.url + path, headers=writer.headers())
        assert refused.value.status == 403
        socket = Socket(await stranger.http.ws_connect(stranger.url + path))
        await socket.send("auth", token=writer.token)
        assert await socket.until_closed() == 4500
    assert (await writer.turn(session, "hello"))[0] == 200


async def test_ticket_carries_the_scopes_of_its_token(server: LocalServer, client: Client) -> None:
    session = await client.create()
    _, ticket = await client.post(f"/sessions/{session}/ticket")
    await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": ["read"]})
    stranger = Client(client.url, None, client.http)
    socket = await stranger.connect(session, ready=False)
    await socket.send("auth", ticket=ticket["ticket"])
    await socket.until("ready")
    await socket.send("prompt", prompt="hello")
    assert (await socket.until("error"))["code"] == "forbidden"


async def test_acp_methods_need_scopes(server: LocalServer, client: Client) -> None:
    session = await client.create()
    await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": ["read"]})
    connection = await connect_acp(client)
    with pytest.raises(ResponseError):
        await connection.call("session/new", cwd="/", mcpServers=[])
    known: Json = {"sessionId": session, "cwd": "/", "mcpServers": []}
    loaded = await connection.call("session/load", **known)
    assert loaded is not None
    blocks = [{"type": "text", "text": "hello"}]
    with pytest.raises(ResponseError):
        await connection.call("session/prompt", sessionId=session, prompt=blocks)


async def test_scopes_are_shown_and_changed_as_a_whole(server: LocalServer) -> None:
    admin = server.admin()
    _, created = await admin.post("/admin/tokens", {"name": "some", "scopes": ["read", "read"]})
    assert created["scopes"] == ["read"]
    _, changed = await admin.call("PATCH", "/admin/tokens/some", {"scopes": ["approve"]})
    assert changed["scopes"] == ["approve"]
    _, changed = await admin.call("PATCH", "/admin/tokens/some", {"scopes": None})
    assert "scopes" not in changed
    _, changed = await admin.call("PATCH", "/admin/tokens/some", {"scopes": []})
    assert changed["scopes"] == []
    failure(
        await admin.post("/admin/tokens", {"name": "x", "scopes": ["everything"]}),
        400,
        "bad_request",
    )


async def test_token_that_loses_the_scope_read_loses_its_sockets_and_streams(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    headers = {**client.headers(), "Accept": "text/event-stream"}
    url = f"{client.url}/sessions/{session}/events"
    async with client.http.get(url, headers=headers) as stream:
        await stream.content.readline()
        await server.admin().call("PATCH", f"/admin/tokens/{NAME}", {"scopes": ["prompt"]})
        assert await socket.until_closed() == 4500
        async with Deadline("the end of the stream"):
            await stream.content.read()
