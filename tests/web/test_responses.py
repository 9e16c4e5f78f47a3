"""Requests and responses of any path: bodies, headers, refusals."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from multidict import CIMultiDict

from ..support.harness import (
    TIMEOUT_SECS,
    Client,
    LocalServer,
    failure,
)

# Bodies.


async def test_malformed_body_is_refused(client: Client) -> None:
    session = await client.create()
    routes = [
        ("POST", "/sessions", "agent"),
        ("POST", f"/sessions/{session}/turn", "prompt"),
        ("POST", f"/sessions/{session}/permissions/x", "option_id"),
        ("PATCH", f"/sessions/{session}", "meta"),
    ]
    for method, path, field in routes:
        for body in (
            b"nonsense",
            b"{",
            b'{"a":1}}',
            b"\xff\xfe{}",
            b'{"%s":"\xff"}' % field.encode(),
            b'{"%s":"\\ud800"}' % field.encode(),
            b'{"%s":NaN}' % field.encode(),
            b'{"%s":17}' % field.encode(),
            b"[]",
            b'[{"%s":"x"}]' % field.encode(),
            b'"text"',
            b"17",
            b"null",
            b"[" * 100_000,
            b'{"%s":' % field.encode() + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"%s":' % field.encode() + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        ):
            answer = await client.call(method, path, body)
            failure(answer, 400, "bad_request")
    for path in (f"/sessions/{session}/turn", f"/sessions/{session}/permissions/x"):
        failure(await client.call("POST", path, b""), 400, "bad_request")
        failure(await client.call("POST", path, b"{}"), 400, "bad_request")


async def test_deeply_nested_body_is_refused(client: Client) -> None:
    session = await client.create()
    for depth in (150, 195, 200, 250, 300, 600, 900, 1000, 1020):
        deep = b'{"a":' * depth + b"1" + b"}" * depth
        status, reply = await client.call("PATCH", f"/sessions/{session}", b'{"meta":%b}' % deep)
        assert status in (200, 400), (depth, reply)
        block = b'{"type":"text","text":"deep","_meta":%b}' % deep
        path = f"/sessions/{session}/turn"
        status, reply = await client.call("POST", path, b'{"prompt":[%b]}' % block)
        assert status in (200, 400), (depth, reply)
    status, _ = await client.get("/sessions")
    assert status == 200


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [("POST", "/turn", "Idempotency-Key"), ("GET", "/events", "Last-Event-ID")],
)
async def test_repeated_header_must_have_one_value(
    client: Client, method: str, path: str, name: str
) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    statuses = []
    for values in (("1", "2"), ("1", "1")):
        headers = [*client.headers().items(), *((name, value) for value in values)]
        headers.append(("Accept", "text/event-stream"))
        async with client.http.request(
            method,
            f"{client.url}/sessions/{session}{path}",
            headers=CIMultiDict(headers),
            json={"prompt": "hi"} if method == "POST" else None,
        ) as response:
            statuses.append(response.status)
    assert statuses == [400, 200]


async def test_repeated_query_parameter_must_have_one_value(client: Client) -> None:
    path = f"/sessions/{await client.create()}/events"
    assert (await client.get(f"{path}?after=0&after=1"))[0] == 400
    assert (await client.get(f"{path}?after=0&after=0"))[0] == 200


# Any path.


async def test_unknown_paths_are_not_found(client: Client, server: LocalServer) -> None:
    for path in ("/nope", "/sessions/", "/sessions/x/nope", "/admin", "/sessions//events"):
        for who in (client, server.anonymous()):
            failure(await who.get(path), 404, "not_found")


async def test_wrong_method_gets_allow_header(client: Client) -> None:
    for method, path, allowed in (
        ("PUT", "/sessions", {"GET", "HEAD", "POST"}),
        ("GET", "/sessions/x/turn", {"POST"}),
        ("POST", "/sessions/x", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("DELETE", "/healthz", {"GET", "HEAD"}),
    ):
        failure(await client.call(method, path), 405, "method_not_allowed")
        assert {name.strip() for name in client.last_headers["Allow"].split(",")} == allowed


async def test_every_response_has_request_id_and_failures_repeat_it(
    client: Client,
) -> None:
    await client.get("/agents")
    first = client.last_headers["X-Request-Id"]
    _, reply = await client.get("/sessions/x")
    assert client.last_headers["X-Request-Id"] == reply["request_id"] != first
    # aiohttp would refuse this request by itself.
    async with client.http.get(client.url + "/agents", headers={"Expect": "more"}) as response:
        assert (response.status, bool(response.headers["X-Request-Id"])) == (417, True)
    assert client.last_headers["Content-Type"] == "application/json; charset=utf-8"


async def test_responses_to_a_token_are_not_stored_by_caches(client: Client) -> None:
    for path in ("/sessions", "/search?q=x", "/usage", "/agents", "/v1/models", "/nothing"):
        await client.get(path)
        assert client.last_headers["Cache-Control"] == "no-store", path


async def test_defect_gets_internal_without_details(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("the secret of the server")

    monkeypatch.setattr(type(server.services.sessions.listing), "page", broken)
    answer = await client.get("/sessions")
    assert "secret" not in json.dumps(answer[1])
    failure(answer, 500, "internal")
    assert answer[1]["request_id"] in [getattr(one, "request_id", "") for one in caplog.records]
    assert "the secret of the server" in caplog.text


async def raw_request(url: str, request: bytes) -> bytes:
    """Send bytes that a client library would not send; the head and body of the response."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), TIMEOUT_SECS)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_path_that_is_not_utf8_is_refused(client: Client) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {client.token}\r\nConnection: close\r\n\r\n"
    request = b"GET /sessions/\xff\xfe HTTP/1.1\r\n" + head.encode()
    status = (await raw_request(client.url, request)).partition(b"\r\n")[0]
    assert status.split()[1] in (b"400", b"404"), status


async def test_no_response_reveals_server_software(client: Client) -> None:
    session = await client.create()
    answers: list[tuple[int, Any]] = []
    for method, path in (
        ("GET", "/healthz"),
        ("GET", "/"),
        ("GET", "/static/app.js"),
        ("GET", "/no/such/path"),
        ("DELETE", "/acp"),
        ("POST", "/sessions"),
    ):
        async with client.http.request(method, client.url + path) as response:
            answers.append((response.status, response.headers))
    stream = {**client.headers(), "Accept": "text/event-stream"}
    async with client.http.get(f"{client.url}/sessions/{session}/events", headers=stream) as sse:
        answers.append((sse.status, sse.headers))
    for path in (f"/sessions/{session}/ws", "/acp"):
        ws = await client.http.ws_connect(client.url + path, headers=client.headers())
        answers.append((101, ws._response.headers))
        await ws.close()
    assert [status for status, _ in answers] == [200, 200, 200, 404, 405, 401, 200, 101, 101]
    assert [headers.getall("Server") for _, headers in answers] == [["clawdforge"]] * len(answers)
    head, _, _ = (await raw_request(client.url, b"no request\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400")
    assert b"\r\nServer: clawdforge\r\n" in head + b"\r\n"


async def test_foreign_host_name_is_refused_on_loopback(client: Client) -> None:
    answer = await client.get("/agents", headers={"Host": "evil.example.org"})
    failure(answer, 403, "forbidden")
    assert (await client.get("/agents", headers={"Host": "localhost"}))[0] == 200
