"""Authentication of a session's socket: header, auth frame, ticket, Origin, revocation."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Any

import pytest

from server.errors import DatabaseError
from server.storage.queries import Queries

from ..conftest import Serve
from ..support.harness import (
    ADMIN,
    Client,
    Deadline,
    Json,
    LocalServer,
    Socket,
    call_after_lookup,
    script,
)

NOBODY = "cf_" + "x" * 43
NO_SESSION = "3c6b0b5a-0000-4000-8000-000000000000"


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"k" * 16).decode(),
}


async def refused(
    client: Client, session: str, *, query: str = "", headers: Mapping[str, str] = {}
) -> tuple[int, Json]:
    """Status and body of an upgrade that is refused."""
    url = f"{client.url}/sessions/{session}/ws{query}"
    async with client.http.get(url, headers={**UPGRADE, **client.headers(), **headers}) as response:
        assert response.status != 101
        return response.status, await response.json()


async def first_frame(
    server: LocalServer, session: str, *, query_after: int | None = None, **fields: Any
) -> Socket:
    """A socket without a header that has sent its ``auth`` frame."""
    socket = await server.anonymous().connect(session, after=query_after, ready=False)
    await socket.send("auth", **fields)
    return socket


async def said_goodbye(socket: Socket) -> int:
    """The close code of a refused socket, which receives only a `bye` with the same code."""
    code = await socket.until_closed()
    kinds = [frame["type"] for frame in socket.frames]
    assert kinds == ["bye"]
    assert socket.frames[0]["code"] == code
    assert socket.frames[0]["reason"]
    return code


def answers(socket: Socket) -> list[str]:
    """The types of the frames that are not log entries."""
    return [frame["type"] for frame in socket.frames if "seq" not in frame]


# By header: answered before the upgrade.


async def test_authorization_header_opens_the_socket(server: LocalServer, client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    assert socket.frames[0]["type"] == "ready"


async def test_invalid_header_is_401_before_the_upgrade(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    for header in (f"Bearer {NOBODY}", "Bearer", "Basic eDp5", "nonsense", f"Bearer {ADMIN}", ""):
        for known in (session, NO_SESSION):
            headers = {"Authorization": header}
            status, body = await refused(server.anonymous(), known, headers=headers)
            assert (status, body["code"]) == (401, "unauthorized"), header


async def test_session_of_another_app_is_404_like_an_unknown_one(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    other = await server.client("other")
    answers = [await refused(other, one) for one in (session, NO_SESSION, "no-uuid")]
    assert {status for status, _ in answers} == {404}
    bodies = [{k: v for k, v in body.items() if k != "request_id"} for _, body in answers]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["code"] == "not_found"


async def test_token_in_the_url_is_ignored(server: LocalServer, client: Client) -> None:
    session = await client.create()
    http = server.anonymous().http
    url = f"{server.url}/sessions/{session}/ws?token={client.token}&access_token={client.token}"
    async with http.ws_connect(url) as ws:
        await ws.send_str('{"type":"ping"}')
        assert await said_goodbye(Socket(ws)) == 4501


async def test_request_without_upgrade_is_400(client: Client) -> None:
    session = await client.create()
    status, body = await client.get(f"/sessions/{session}/ws")
    assert (status, body["code"]) == (400, "bad_request")


async def test_invalid_after_is_400_before_the_upgrade(client: Client) -> None:
    session = await client.create()
    for after in ("-1", "x", "1.5", "", "9" * 30, "9" * 5000):
        status, body = await refused(client, session, query=f"?after={after}")
        assert (status, body["code"]) == (400, "bad_request"), after
        assert "after" in body["error"]


# By the first frame.


async def test_auth_frame_opens_the_socket(server: LocalServer, client: Client) -> None:
    session = await client.create()
    socket = await first_frame(server, session, token=client.token)
    ready = await socket.until("ready")
    assert ready["session_id"] == session
    assert (await socket.turn("hello"))["stop_reason"] == "end_turn"


async def test_auth_frame_may_name_a_position(server: LocalServer, client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    log = await client.events(session)
    socket = await first_frame(server, session, token=client.token, after=1)
    await socket.until("turn_end")
    assert socket.entries == log[1:]
    socket = await first_frame(server, session, query_after=2, token=client.token)
    await socket.until("turn_end")
    assert socket.entries == log[2:]


async def test_auth_frame_with_an_invalid_credential_closes_with_4500(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    tokens: list[Json] = [{"token": token} for token in (NOBODY, ADMIN, "", None)]
    tickets: list[Json] = [{"ticket": ticket} for ticket in ("cft_" + "x" * 43, "")]
    for credential in (*tokens, *tickets, {}):
        for known in (session, NO_SESSION):  # the client cannot distinguish them
            socket = await first_frame(server, known, **credential)
            assert await said_goodbye(socket) == 4500, credential


async def test_session_of_another_app_closes_with_4505_like_an_unknown_one(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    other = await server.client("other")
    for known in (session, NO_SESSION, "no-uuid"):
        assert await said_goodbye(await first_frame(server, known, token=other.token)) == 4505


async def test_session_that_cannot_be_read_closes_with_4000(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.create()
    server.services.sessions.memory._loaded.clear()

    async def fail(*_: Any) -> bool:
        raise DatabaseError("disk I/O error", is_transient=True)

    monkeypatch.setattr(Queries, "has_session", fail)
    socket = await first_frame(server, session, token=client.token)
    assert await said_goodbye(socket) == 4000
    assert "disk" not in socket.frames[0]["reason"]


async def test_other_first_frame_closes_with_4501(server: LocalServer, client: Client) -> None:
    session = await client.create()
    for data in (
        "hello",
        "",
        "[]",
        "{}",
        '{"type":"prompt","prompt":"hi"}',
        '{"type":"ping"}',
        '{"type":"auth","token":7}',
        '{"type":"auth","token":"t","after":-1}',
        '{"type":"unknown"}',
        b'{"type":"auth"}',
    ):
        socket = await server.anonymous().connect(session, ready=False)
        await (socket.ws.send_str(data) if isinstance(data, str) else socket.ws.send_bytes(data))
        assert await said_goodbye(socket) == 4501, data


async def test_late_auth_frame_closes_with_4502(share: Serve) -> None:
    server = await share(auth_timeout_secs=1)
    session = await (await server.client()).create()
    began = time.monotonic()
    socket = await server.anonymous().connect(session, ready=False)
    assert await said_goodbye(socket) == 4502
    assert time.monotonic() - began >= 1


async def test_pings_do_not_extend_the_auth_timeout(share: Serve) -> None:
    server = await share(auth_timeout_secs=1)
    session = await (await server.client()).create()
    socket = await server.anonymous().connect(session, ready=False)

    async def keep_pinging() -> None:
        while True:
            await socket.ws.ping()
            await asyncio.sleep(0.05)

    pinging = asyncio.create_task(keep_pinging())
    async with Deadline("4502"):
        assert await said_goodbye(socket) == 4502
    pinging.cancel()
    await asyncio.gather(pinging, return_exceptions=True)


async def test_client_that_disconnects_before_auth_leaves_nothing(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    socket = await server.anonymous().connect(session, ready=False)
    await socket.close()
    assert socket.close_code == 1000
    assert (await client.state(session))["sockets"] == 0


async def test_other_protocol_version_closes_with_4507(server: LocalServer, client: Client) -> None:
    session = await client.create()
    url = f"{server.url}/sessions/{session}/ws?protocol=2"
    async with client.http.ws_connect(url, headers=client.headers()) as ws:
        assert await said_goodbye(Socket(ws)) == 4507
    socket = await first_frame(server, session, token=client.token, protocol=2)
    assert await said_goodbye(socket) == 4507
    url = f"{server.url}/sessions/{session}/ws?protocol=1"
    async with client.http.ws_connect(url, headers=client.headers()) as ws:
        assert (await Socket(ws).until("ready"))["protocol"] == 1


# Tickets.


async def ticket_for(client: Client, session: str) -> str:
    status, body = await client.post(f"/sessions/{session}/ticket")
    assert status == 200
    assert (body["ok"], body["expires_in"]) == (True, 30)
    return str(body["ticket"])


async def test_ticket_opens_one_socket(server: LocalServer, client: Client) -> None:
    session = await client.create()
    ticket = await ticket_for(client, session)
    socket = await first_frame(server, session, ticket=ticket)
    await socket.until("ready")
    assert (await socket.turn("hello"))["stop_reason"] == "end_turn"
    assert await said_goodbye(await first_frame(server, session, ticket=ticket)) == 4500
    assert socket.close_code is None


async def test_ticket_is_valid_only_for_its_session(server: LocalServer, client: Client) -> None:
    mine, other = await client.create(), await client.create()
    ticket = await ticket_for(client, mine)
    assert await said_goodbye(await first_frame(server, other, ticket=ticket)) == 4500


async def test_ticket_is_valid_only_for_sockets(server: LocalServer, client: Client) -> None:
    session = await client.create()
    ticket = await ticket_for(client, session)
    assert (await Client(server.url, ticket, client.http).get("/sessions"))[0] == 401
    status, _ = await refused(Client(server.url, ticket, client.http), session)
    assert status == 401


async def test_concurrent_use_of_one_ticket_opens_one_socket(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    ticket = await ticket_for(client, session)
    sockets = [await server.anonymous().connect(session, ready=False) for _ in range(8)]
    await asyncio.gather(*(socket.send("auth", ticket=ticket) for socket in sockets))
    firsts = await asyncio.gather(*(socket.next() for socket in sockets))
    assert sorted(frame["type"] for frame in firsts if frame) == ["bye"] * 7 + ["ready"]


async def test_revoked_token_invalidates_its_tickets(server: LocalServer) -> None:
    client = await server.client("app")
    session = await client.create()
    ticket = await ticket_for(client, session)
    assert (await server.admin().delete("/admin/tokens/app"))[0] == 200
    assert await said_goodbye(await first_frame(server, session, ticket=ticket)) == 4500


async def test_session_of_another_app_has_no_tickets(server: LocalServer, client: Client) -> None:
    session = await client.create()
    other = await server.client("other")
    for known in (session, NO_SESSION):
        status, body = await other.post(f"/sessions/{known}/ticket")
        assert (status, body["code"]) == (404, "not_found")


# Origin and Host.

Origins = list[tuple[str, bool]]


def own(server: LocalServer) -> str:
    return server.url.partition("://")[2]


async def test_origin_must_be_the_same_or_allowed(serve: Serve) -> None:
    server = await serve(allowed_origins=("https://chat.example.org", "http://localhost:3000"))
    client = await server.client()
    session = await client.create()
    host = own(server)
    port = host.partition(":")[2]
    origins: Origins = [
        (f"http://{host}", True),
        (f"HTTP://{host}", True),
        ("https://chat.example.org", True),
        ("https://Chat.Example.org", True),
        ("http://localhost:3000", True),
        ("null", False),
        ("", False),
        (host, False),
        ("http://", False),
        ("file://", False),
        ("http://127.0.0.1", False),
        (f"http://localhost:{port}", False),  # the Host says 127.0.0.1
        (f"http://{host}0", False),
        (f"http://{host}.example.org", False),
        (f"http://example.org:{port}", False),
        (f"http://evil-{host}", False),
        (f"http://{host}@example.org", False),
        (f"http://{host}/", False),
        (f"http://{host}#", False),
        (f"ftp://{host}", False),
        ("http://chat.example.org", False),
        ("https://chat.example.org:8443", False),
        ("https://chat.example.org.evil.org", False),
        ("https://evilchat.example.org", False),
        ("https://sub.chat.example.org", False),
        ("https://chat.example.org, https://evil.org", False),
        ("http://localhost:30001", False),
    ]
    for origin, allowed in origins:
        headers = {"Origin": origin}
        if allowed:
            await client.connect(session, headers=headers)
        else:
            status, body = await refused(client, session, headers=headers)
            assert (status, body["code"]) == (403, "forbidden"), origin


async def test_origin_is_checked_before_the_credential(server: LocalServer, client: Client) -> None:
    session = await client.create()
    for known in (session, NO_SESSION):
        status, _ = await refused(
            server.anonymous(), known, headers={"Origin": "https://evil.example"}
        )
        assert status == 403


async def test_foreign_host_name_on_loopback_is_refused(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    port = own(server).partition(":")[2]
    hosts: Origins = [
        (f"localhost:{port}", True),
        (f"LOCALHOST:{port}", True),
        (f"[::1]:{port}", True),
        ("127.0.0.1", True),
        (f"evil.example:{port}", False),
        (f"127.0.0.1.evil.example:{port}", False),
        (f"localhost.evil.example:{port}", False),
        (f"evil.localhost:{port}", False),
        (f"notlocalhost:{port}", False),
        ("127.0.0.1:80:80", False),
        ("", False),
    ]
    for host, allowed in hosts:
        # The page's own name, as it is when that name was made to point at us.
        headers = {"Host": host, "Origin": f"http://{host}"}
        if allowed:
            await client.connect(session, headers=headers)
        else:
            status, body = await refused(client, session, headers=headers)
            assert (status, body["code"]) == (403, "forbidden"), host


async def test_allowed_origins_name_the_hosts_behind_a_proxy(serve: Serve) -> None:
    server = await serve(allowed_origins=("https://chat.example.org",))
    client = await server.client()
    session = await client.create()
    headers = {"Host": "chat.example.org", "Origin": "https://chat.example.org"}
    await client.connect(session, headers=headers)
    status, _ = await refused(client, session, headers={"Host": "other.example.org"})
    assert status == 403


# Later auth frames, and revocation.


async def test_later_auth_frame_with_the_same_token_keeps_the_socket(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("auth", token=client.token)
    await socket.send("auth", ticket=await ticket_for(client, session))
    await socket.send("ping", id=1)
    await socket.until("pong")
    assert answers(socket) == ["ready", "pong"]


async def test_later_auth_frame_with_another_credential_closes_with_4500(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    other = await server.client("other")
    theirs = await ticket_for(other, await other.create())
    for credential in ({"token": NOBODY}, {"token": other.token}, {"ticket": theirs}, {}):
        socket = await client.connect(session)
        await socket.send("auth", **credential)
        assert await socket.until_closed() == 4500, credential
        assert answers(socket) == ["ready", "bye"]


async def test_revoked_token_closes_its_sockets(server: LocalServer) -> None:
    client = await server.client("app")
    session = await client.create()
    other = await server.client("other")
    bystander = await other.connect(await other.create())
    by_ticket = await first_frame(server, session, ticket=await ticket_for(client, session))
    await by_ticket.until("ready")
    sockets = [await client.connect(session), await client.connect(session), by_ticket]
    await sockets[0].send(
        "prompt", prompt=script({"repeat": {"times": 9999, "steps": [{"sleep": 5}, {"say": "."}]}})
    )
    await sockets[1].until_text(".")
    async with Deadline("4503"):
        assert (await server.admin().delete("/admin/tokens/app"))[0] == 200
        for socket in sockets:
            assert await socket.until_closed() == 4503
            assert socket.frames[-1]["type"] == "bye"
    status, _ = await refused(client, session)
    assert status == 401
    await bystander.send("ping", id=1)
    await bystander.until("pong")


async def test_token_revoked_during_the_upgrade_closes_the_socket(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.create()
    call_after_lookup(monkeypatch, server.services.tokens.revoke)
    socket = await first_frame(server, session, token=client.token)
    assert await said_goodbye(socket) == 4503


async def test_token_bound_to_other_networks_is_refused(
    server: LocalServer, client: Client
) -> None:
    here = await server.client("here", ip_cidrs=["127.0.0.0/8"])
    await here.connect(await here.create())
    away = await server.client("away", ip_cidrs=["10.0.0.0/8", "2001:db8::/32"])
    session = await client.create()
    assert (await refused(away, session))[0] == 401
    assert await said_goodbye(await first_frame(server, session, token=away.token)) == 4500


async def test_credentials_are_not_logged(
    server: LocalServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    session = await client.create()
    ticket = await ticket_for(client, session)
    await (await first_frame(server, session, ticket=ticket)).until("ready")
    await (await first_frame(server, session, token=client.token)).until("ready")
    await said_goodbye(await first_frame(server, session, token=NOBODY))
    url = f"{server.url}/sessions/{session}/ws?token={client.token}"
    async with client.http.ws_connect(url, headers=client.headers(), protocols=["p"]) as ws:
        await Socket(ws).until("ready")
    assert "/ws" in caplog.text
    for secret in (ticket, client.token, NOBODY):
        assert secret is not None
        assert secret not in caplog.text
