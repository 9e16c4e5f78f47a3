"""Shares: what they open, what they do not, and their end."""

from __future__ import annotations

import re
from typing import Any

import pytest

from server.web.resources import endpoints

from ..conftest import Serve
from ..support.client import Socket, failure
from ..support.harness import Client, Clock, Deadline, LocalServer, script

ENDPOINTS = endpoints()
SHAREABLE = {
    ("GET", "/sessions/{session_id}"),
    ("GET", "/sessions/{session_id}/events"),
    ("GET", "/sessions/{session_id}/ws"),
}


async def share(client: Client, session: str, **body: Any) -> tuple[Client, str]:
    """Share a session. Returns a client with the secret, and the share's id."""
    status, created = await client.post(f"/sessions/{session}/shares", body)
    assert status == 200, created
    base, _, fragment = created["url"].partition("#")
    assert base == client.url + "/"
    assert fragment.startswith(f"session={session}&")
    secret = re.split("[=&]", fragment)[-1]
    assert re.fullmatch("cfs_[A-Za-z0-9_-]{43}", secret)
    return Client(client.url, secret, client.http), created["share_id"]


async def by_frame(reader: Client, session: str) -> Socket:
    """Open a socket whose first frame has the secret."""
    url = f"{reader.url}/sessions/{session}/ws"
    ws = await reader.http.ws_connect(url, max_msg_size=0)
    reader.close_later(ws)
    socket = Socket(ws)
    await socket.send("auth", token=reader.token, after=0)
    return socket


async def test_share_opens_state_events_and_socket(client: Client) -> None:
    session = await client.create(system="be brief", meta={"title": "Mine"})
    await client.turn(session, "hello")
    reader, _ = await share(client, session)
    state = await reader.state(session)
    assert (state["title"], state["state"], state["turn_count"]) == ("Mine", "idle", 1)
    cwd = (await client.state(session))["cwd"]
    assert cwd not in str(state)
    assert not {"cwd", "env", "system"} & state.keys()
    assert await reader.events(session) == await client.events(session)
    for socket in (await reader.connect(session, after=0), await by_frame(reader, session)):
        await socket.until("turn_end")
        await client.turn(session, "again")
        await socket.until_text("again")


async def test_share_accepts_no_command(client: Client) -> None:
    session = await client.create()
    reader, _ = await share(client, session)
    socket = await reader.connect(session)
    for command in (
        {"type": "prompt", "id": "c", "prompt": "hello"},
        {"type": "cancel", "id": "c"},
        {"type": "set_mode", "id": "c", "mode": "auto"},
        {"type": "permission", "id": "c", "request_id": "x", "option_id": "y"},
        {"type": "close", "id": "c"},
    ):
        await socket.send(command.pop("type"), **command)
        error = await socket.until("error")
        assert (error["code"], error["id"]) == ("forbidden", "c")
    await socket.send("ping", id=1)
    await socket.until("pong", id=1)
    await socket.send("auth", token=reader.token)
    await socket.send("auth", token=client.token)
    assert await socket.until_closed() == 4500


async def test_share_opens_no_other_call_and_no_other_session(client: Client) -> None:
    session, other = await client.create(), await client.create()
    reader, share_id = await share(client, session)
    names = {"session_id": session, "share_id": share_id}
    for endpoint in ENDPOINTS:
        if endpoint.auth is None or (endpoint.method, endpoint.path) in SHAREABLE:
            continue
        path = re.sub(r"{(\w+)}", lambda match: names.get(match[1], "1"), endpoint.path)
        if endpoint.auth_in_handler:
            headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
            status, _ = await reader.call(endpoint.method, path, headers=headers)
        else:
            status, _ = await reader.call(endpoint.method, path, {} if endpoint.body else None)
        assert status in (401, 403, 404), (endpoint.method, path, status)
        assert status != 401 or endpoint.auth == "admin", path
    for path in ("", "/events"):
        failure(await reader.get(f"/sessions/{other}{path}"), 404, "not_found")
    socket = await by_frame(reader, other)
    assert await socket.until_closed() == 4505
    assert (await client.state(session))["state"] == "idle"


async def test_revoked_share_ends_at_once(client: Client) -> None:
    session = await client.create()
    reader, share_id = await share(client, session, label="team")
    kept, _ = await share(client, session)
    socket, other = await reader.connect(session), await kept.connect(session)
    stream = await reader.http.get(
        f"{reader.url}/sessions/{session}/events",
        headers={**reader.headers(), "Accept": "text/event-stream"},
    )
    listed = (await client.get(f"/sessions/{session}/shares"))[1]
    assert [one["label"] for one in listed["shares"]] == ["team", None]
    assert "cfs_" not in str(listed)
    assert (await client.delete(f"/sessions/{session}/shares/{share_id}"))[0] == 200
    assert await socket.until_closed() == 4503
    async with Deadline("the end of the stream"):
        await stream.read()
    failure(await reader.get(f"/sessions/{session}"), 401, "unauthorized")
    failure(await reader.get("/sessions"), 401, "unauthorized")
    failure(await client.delete(f"/sessions/{session}/shares/{share_id}"), 404, "not_found")
    await other.send("ping", id=1)
    await other.until("pong")
    assert (await client.get(f"/sessions/{session}/shares"))[1]["count"] == 1


async def test_expired_share_ends_by_itself(client: Client) -> None:
    session = await client.create()
    reader, _ = await share(client, session, expires_in=1)
    socket = await reader.connect(session)
    assert await socket.until_closed() == 4503
    failure(await reader.get(f"/sessions/{session}"), 401, "unauthorized")
    assert (await client.get(f"/sessions/{session}/shares"))[1]["count"] == 0
    for expires_in in (0, 0.5, -1, "x"):
        body = {"expires_in": expires_in}
        failure(await client.post(f"/sessions/{session}/shares", body), 400, "bad_request")


async def test_share_survives_a_restart_and_ends_with_session_and_token(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock)
    client = await server.client()
    session, purged = await client.create(), await client.create()
    reader, _ = await share(client, session, expires_in=3600)
    of_purged, _ = await share(client, purged)
    await server.stop()
    again = await serve(clock=clock)
    client = Client(again.url, client.token, client.http)
    reader, of_purged = (Client(again.url, one.token, client.http) for one in (reader, of_purged))
    assert (await reader.get(f"/sessions/{session}"))[0] == 200
    await client.delete(f"/sessions/{purged}?purge=true")
    failure(await of_purged.get(f"/sessions/{purged}"), 401, "unauthorized")
    socket = await reader.connect(session)
    await again.admin().delete("/admin/tokens/app")
    assert await socket.until_closed() == 4503
    failure(await reader.get(f"/sessions/{session}"), 401, "unauthorized")
    assert again.services.tokens.shares.rows(1) == []


async def test_closed_session_can_be_read_by_its_share(client: Client) -> None:
    session = await client.create()
    await client.turn(session, script({"say": "hello"}))
    reader, _ = await share(client, session)
    await client.delete(f"/sessions/{session}")
    assert (await reader.state(session))["state"] == "closed"
    socket = await reader.connect(session, after=0)
    assert await socket.until_closed() == 4508


async def test_session_has_a_limited_number_of_shares(serve: Serve) -> None:
    server = await serve(max_shares_per_session=2)
    client = await server.client()
    session = await client.create()
    for _ in range(2):
        await share(client, session)
    failure(await client.post(f"/sessions/{session}/shares"), 429, "rate_limited")


async def test_shares_of_another_apps_session_are_missing(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    _, share_id = await share(client, session)
    other = await server.client("another")
    path = f"/sessions/{session}/shares"
    for response in (
        await other.post(path),
        await other.get(path),
        await other.delete(f"{path}/{share_id}"),
    ):
        failure(response, 404, "not_found")
    own = await other.create()
    failure(await other.delete(f"/sessions/{own}/shares/{share_id}"), 404, "not_found")


@pytest.mark.parametrize("token", ["cfs_", "cfs_x", "cfs_" + "x" * 43, "cfs_" + "x" * 5000])
async def test_unknown_share_is_refused(client: Client, token: str) -> None:
    session = await client.create()
    reader = Client(client.url, token, client.http)
    failure(await reader.get(f"/sessions/{session}"), 401, "unauthorized")
