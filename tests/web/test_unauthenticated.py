"""Limits on requests before authentication, and on bodies."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from server import codec
from server.errors import Error
from server.limits import ByteBudget, ConcurrencyLimit, RefusalPace
from server.web import listener
from server.web.request_handler import BoundedRequestHandler
from server.web.resources import page
from server.ws.handshake import MAX_AUTH_FRAME_BYTES

from ..conftest import Serve
from ..support.client import new_client
from ..support.harness import Client, Deadline, LocalServer, Socket, eventually
from ..support.raw_socket import (
    TEXT,
    RawSocket,
    open_connection,
    read_head,
    upgrade,
    upgrade_request,
)

PACKED = b"Content-Encoding: gzip\r\n"
HUGE = b"Content-Length: 1000000000\r\n"
NO_SESSION = "3c6b0b5a-0000-4000-8000-000000000000"
CALLS = [
    ("POST", "/sessions"),
    ("POST", f"/sessions/{NO_SESSION}/turn"),
    ("PATCH", f"/sessions/{NO_SESSION}"),
    ("POST", "/run"),
    ("POST", "/files"),
    ("POST", "/admin/tokens"),
]
OPEN = [("GET", "/"), ("GET", "/healthz"), ("POST", "/nowhere"), ("PUT", "/sessions")]


def head(client: Client, call: tuple[str, str], more: bytes, *, token: bool = False) -> bytes:
    method, path = call
    lines = f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(client.url).netloc}\r\n".encode()
    if token:
        lines += f"Authorization: Bearer {client.token}\r\n".encode()
    return lines + more + b"\r\n"


class Answer:
    """A raw response: its status, its headers in lower case, and its connection."""

    def __init__(self, head: bytes, body: bytes) -> None:
        status, _, rest = head.partition(b"\r\n")
        self.status = int(status.split(b" ", 2)[1])
        self.head = rest.lower()
        self.body = body

    @property
    def code(self) -> str:
        reply = json.loads(self.body)
        assert reply["ok"] is False
        assert reply["request_id"]
        return str(reply["code"])


async def ask(
    client: Client, request: bytes, *, then: bytes = b"", no_body: bool = False
) -> Answer:
    """Send *request* and, after its first response, *then*; return the last response."""
    loop = asyncio.get_running_loop()
    connection = await open_connection(client.url, receive_buffer=65536)
    with contextlib.closing(connection):
        async with Deadline("an answer"):
            await loop.sock_sendall(connection, request)
            if then:
                await read_head(connection)
                await loop.sock_sendall(connection, then)
            found, body = await read_head(connection)
            length = int(found.lower().partition(b"content-length:")[2].split()[0])
            while (
                not no_body
                and len(body) < length
                and (data := await loop.sock_recv(connection, 65536))
            ):
                body += data
            return Answer(found, body)


# Before the credential is known.


async def test_compressed_body_is_refused_before_it_arrives(client: Client) -> None:
    for coding in (b"gzip", b"br", b"deflate", b"x-unknown", b"identity, gzip", b"GZIP"):
        line = b"Content-Encoding: %b\r\n" % coding
        answer = await ask(client, head(client, CALLS[0], HUGE + line))
        assert (answer.status, answer.code) == (415, "unsupported_media_type")
    for call in [*CALLS, *OPEN]:
        for token in (False, True):
            answer = await ask(client, head(client, call, HUGE + PACKED, token=token))
            assert (answer.status, answer.code) == (415, "unsupported_media_type"), call
            assert b"connection: close" in answer.head
    for path in (f"/sessions/{NO_SESSION}/ws", "/acp"):
        request = upgrade_request(client.url, path, None)[:-2] + PACKED + b"\r\n"
        assert (await ask(client, request)).code == "unsupported_media_type"


async def test_body_with_identity_coding_is_read(client: Client) -> None:
    status, _ = await client.post("/sessions", {}, headers={"Content-Encoding": "identity"})
    assert status == 200


async def test_body_of_unauthenticated_request_is_not_awaited(client: Client) -> None:
    for call in CALLS:
        answer = await ask(client, head(client, call, HUGE))
        assert (answer.status, answer.code) == (401, "unauthorized"), call
        assert b"connection: close" in answer.head


async def test_frequent_refusals_delay_only_the_refused(
    serve: Serve, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RefusalPace, "MAX_DELAY_SECS", 3600)
    server = await serve(max_refusals_per_sec=1)
    client = await new_client(server.url, http)
    refused = [asyncio.ensure_future(http.get(f"{server.url}/sessions")) for _ in range(90)]
    guessing = await http.ws_connect(f"{server.url}/ws")
    await guessing.send_json({"type": "auth", "token": "cf_guess", "protocol": 1})
    closed = asyncio.ensure_future(guessing.receive())
    assert (await refused[0]).status == 401
    user = await client.connect(await client.create())
    assert (await user.turn("hello"))["stop_reason"] == "end_turn"
    waiting = [closed, *refused[45:]]
    assert not any(response.done() for response in waiting)
    for response in waiting:
        response.cancel()


async def test_no_continue_before_authentication(client: Client) -> None:
    expects = b"Expect: 100-continue\r\nContent-Length: 2\r\n"
    for call in CALLS:
        assert (await ask(client, head(client, call, expects))).status == 401
    request = head(client, CALLS[0], expects, token=True)
    assert (await ask(client, request, then=b"{}")).status == 200


async def test_unknown_expectation_gets_standard_error(
    client: Client,
) -> None:
    for call in (CALLS[0], OPEN[0], OPEN[2]):
        for more in (b"", b"X-Odd: \xff\r\n"):
            answer = await ask(client, head(client, call, b"Expect: wonders\r\n" + more))
            assert (answer.status, answer.code) == (417, "expectation_failed")
            assert json.loads(answer.body)["request_id"].encode() in answer.head


async def test_unsatisfiable_range_gets_standard_error(
    client: Client,
) -> None:
    for wanted in (b"bytes=99999999-", b"bytes=9-1", b"lines=1-2"):
        request = head(client, ("GET", "/static/app.js"), b"Range: %b\r\n" % wanted)
        answer = await ask(client, request)
        assert (answer.status, answer.code) == (416, "range_not_satisfiable"), wanted
        assert b"content-range: bytes */" in answer.head


async def test_head_does_not_open_socket(client: Client) -> None:
    for path in (f"/sessions/{await client.create()}/ws", "/acp"):
        request = upgrade_request(client.url, path, client.token).replace(b"GET", b"HEAD", 1)
        answer = await ask(client, request, no_body=True)
        assert answer.status == 405
        assert b"allow: get\r\n" in answer.head


async def test_file_is_compressed_once() -> None:
    compressed: list[Path] = []

    def compress(file: Path) -> bytes:
        compressed.append(file)
        return page.gzip_file(file)

    files = page.CompressedFiles(compress)
    file = page.STATIC / "wire.js"
    first, second = [await files.get(file, file.stat()) for _ in range(2)]
    assert gzip.decompress(first) == file.read_bytes()
    assert first is second
    assert compressed == [file]


async def test_file_is_compressed_only_for_clients_that_accept_gzip(
    server: LocalServer, client: Client
) -> None:
    url = f"{server.url}/static/wire.js"
    for accepted in ("gzip", "br, gzip;q=0.5", "*", "gzip;q=0", "identity"):
        async with client.http.get(url, headers={"Accept-Encoding": accepted}) as response:
            assert response.status == 200
            is_compressed = response.headers.get("Content-Encoding") == "gzip"
            assert is_compressed is (accepted not in ("gzip;q=0", "identity"))
            assert response.content_type == "text/javascript"
            assert await response.read() == (page.STATIC / "wire.js").read_bytes()


async def a_socket(client: Client, session: str) -> RawSocket:
    """A socket that has not sent its ``auth`` frame."""
    return await upgrade(
        Client(client.url, None, client.http), f"/sessions/{session}/ws", receive_buffer=65536
    )


@pytest.mark.parametrize("fin", [True, False], ids=["whole", "in fragments"])
async def test_large_first_frame_is_refused(client: Client, fin: bool) -> None:
    raw = await a_socket(client, await client.create())
    first = (0x80 if fin else 0) | TEXT
    with contextlib.closing(raw.connection):
        async with Deadline("the close"):
            # Half of the frame is sent: the received bytes are refused, not the declared size.
            size = (4 << 20).to_bytes(8, "big")
            data = bytes([first, 0xFF]) + size + bytes(4) + b"x" * (2 * MAX_AUTH_FRAME_BYTES)
            await asyncio.get_running_loop().sock_sendall(raw.connection, data)
            assert await raw.until_closed() == 1009


async def test_large_prompt_may_follow_auth_frame_immediately(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    ws = await client.http.ws_connect(f"{server.url}/sessions/{session}/ws", max_msg_size=0)
    socket = Socket(ws)
    client.close_later(ws)
    await socket.send("auth", token=client.token)
    await socket.send("prompt", prompt="x" * 100_000)
    assert (await socket.until("turn_end"))["stop_reason"] == "end_turn"


@contextlib.asynccontextmanager
async def serve_through_listener(
    handler: web.RequestHandler | object, slots: ConcurrencyLimit, stall_timeout: float = 60
) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        opened = listener.Listener(slots, 60, stall_timeout).open(runner, "127.0.0.1", 0)
        async with opened as port:
            yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_longest_idle_unauthenticated_connection_is_closed_first() -> None:
    async def hello(request: web.Request) -> web.Response:
        assert isinstance(request.protocol, BoundedRequestHandler)
        request.protocol.request_started()
        request.protocol.request_finished(is_authenticated=False)
        return web.Response(text="hello")

    loop = asyncio.get_running_loop()
    async with serve_through_listener(hello, ConcurrencyLimit(2, 2)) as url:
        with contextlib.ExitStack() as stack:
            connections = []
            for _ in range(3):
                one = stack.enter_context(await open_connection(url))
                connections.append(one)
                await loop.sock_sendall(one, GET)
                await loop.sock_recv(one, 4096)
            async with Deadline("the first to be dropped"):
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(connections[0], 4096) == b""
            for one in connections[1:]:
                await loop.sock_sendall(one, GET)
                assert await loop.sock_recv(one, 4096)


async def test_client_that_reads_no_response_is_disconnected() -> None:
    ended = asyncio.Event()

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * (1 << 20))
        finally:
            ended.set()

    async with serve_through_listener(large, ConcurrencyLimit(2, 2), stall_timeout=0.05) as url:
        with contextlib.closing(await open_connection(url)) as one:
            await asyncio.get_running_loop().sock_sendall(one, GET)
            async with Deadline("the answer to be given up"):
                await ended.wait()


# Bodies.


def nested(containers: int) -> bytes:
    return b"[" + b"[]," * (containers - 2) + b"[]]"


@pytest.mark.parametrize(
    ("data", "is_too_much"),
    [
        (nested(codec.MAX_CONTAINERS), False),
        (nested(codec.MAX_CONTAINERS + 1), True),
        (b'["' + b"[]," * codec.MAX_CONTAINERS + b'"]', False),
        (b'["' + b'\\"[],' * codec.MAX_CONTAINERS + b'"]', False),
        (b'["' + b"x" * (codec.BIG_BYTES // 4) + b'\\\\",' + nested(200_001) + b"]", True),
        (b"[" + b"1," * codec.MAX_VALUES + b"1]", False),
        (b"[" + b"1," * (codec.MAX_VALUES + 1) + b"1]", True),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, False),  # too deep, which parsing tells
    ],
    ids=lambda value: str(value)[:12],
)
def test_values_are_counted_outside_of_strings(data: bytes, is_too_much: bool) -> None:
    assert codec.has_too_many_values(data) is is_too_much
    assert codec.has_too_many_values(bytearray(data)) is is_too_much


async def test_body_over_value_limit_is_refused(client: Client) -> None:
    body = b'{"prompt":%b}' % nested(codec.MAX_CONTAINERS + 1)
    status, reply = await client.call("POST", "/run", body)
    assert (status, reply["code"]) == (413, "payload_too_large")
    status, reply = await client.call("POST", "/run", b'{"prompt":%b}' % nested(199_999))
    assert (status, reply["code"]) == (400, "bad_request")  # a prompt is text


async def test_frame_over_value_limit_is_refused(client: Client) -> None:
    session = await client.create()
    for path in (f"/sessions/{session}/ws", "/acp"):
        ws = await client.http.ws_connect(client.url + path, headers=client.headers())
        client.close_later(ws)
        await ws.send_bytes(b"") if path == "/acp" else None  # is ignored there
        await ws.send_str(nested(codec.MAX_CONTAINERS + 1).decode())
        async with Deadline("the close"):
            while not ws.closed:
                await ws.receive()
        assert ws.close_code == 1009


async def test_stalled_body_times_out(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.incoming, "stall_timeout", 0.05)
    answer = await ask(client, head(client, CALLS[0], HUGE[:-9] + b"\r\n", token=True) + b"{")
    assert (answer.status, answer.code) == (408, "request_timeout")


async def test_chunked_body_is_read(client: Client) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b'{"system":"'
        for _ in range(size):
            yield b"x" * (64 << 10)
        yield b'"}'

    for size in (0, 3):
        status, reply = await client.call("POST", "/sessions", None, data=chunks(size))
        assert status == 200
        assert len(reply["system"]) == size << 16
    status, reply = await client.call("POST", "/run", None, data=chunks(260))
    assert (status, reply["code"]) == (413, "payload_too_large")


async def test_byte_budget_is_granted_to_apps_in_turn() -> None:
    budget = ByteBudget(100, 60)
    order: list[str] = []

    async def hold(name: str, key: str, size: int, until: asyncio.Event) -> None:
        async with budget.reserve(key, size, 60):
            order.append(name)
            await until.wait()

    first, second, others = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for task in (
            hold("a1", "a", 50, first),
            hold("a2", "a", 50, others),  # the app's limit is reached
            hold("b1", "b", 60, second),  # the total limit is reached
            hold("c1", "c", 50, others),  # fits, but b is before it
        ):
            group.create_task(task)
        await eventually("the first to hold", lambda: order == ["a1"])
        for _ in range(5):
            await asyncio.sleep(0)
        assert (order, budget.used) == (["a1"], 50)
        with pytest.raises(Error) as refused:
            async with budget.reserve("a", 60, 0.01):
                pass
        assert refused.value.code == "rate_limited"
        first.set()
        await eventually("the next", lambda: len(order) == 2)
        assert order == ["a1", "b1"]
        second.set()
        await eventually("the others", lambda: len(order) == 4)
        assert order == ["a1", "b1", "c1", "a2"]
        others.set()
    assert budget.used == 0


async def test_cancelled_claim_holds_no_bytes() -> None:
    budget = ByteBudget(10, 10)

    async def hold(size: int) -> None:
        async with budget.reserve("a", size, 60):
            await asyncio.Event().wait()

    holding, waiting = asyncio.create_task(hold(10)), asyncio.create_task(hold(5))
    await eventually("the first to hold", lambda: budget.used == 10)
    holding.cancel()
    waiting.cancel()  # at the moment at which its bytes are granted
    await asyncio.gather(holding, waiting, return_exceptions=True)
    assert budget.used == 0


# Uploads.


def form(*names: str) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name in names:
        form.add_field(name, b"x", filename=f"{name}.txt")
    return form


async def test_upload_of_two_files_is_refused_and_discarded(
    server: LocalServer, client: Client
) -> None:
    status, reply = await client.call("POST", "/files", None, data=form("file", "file"))
    assert (status, reply["code"]) == (400, "bad_request")
    assert await server.services.sessions.queries.all_files() == []


async def test_form_over_part_and_field_limits_is_refused(client: Client) -> None:
    status, _ = await client.call("POST", "/files", None, data=form("other", "file", "more"))
    assert status == 200
    status, reply = await client.call("POST", "/files", None, data=form(*["other"] * 30, "file"))
    assert (status, reply["code"]) == (400, "bad_request")
    large = form("file")
    large.add_field("other", b"x" * (65 << 10), filename="other")
    status, reply = await client.call("POST", "/files", None, data=large)
    assert (status, reply["code"]) == (413, "payload_too_large")


def upload_head(client: Client, more: str, size: int) -> bytes:
    lines = f"{more}Content-Length: {size}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return head(client, ("POST", "/files"), lines.encode(), token=True)


def part(more: str = "") -> bytes:
    text = f'--b\r\nContent-Disposition: form-data; name="file"\r\n{more}\r\nx\r\n--b--\r\n'
    return text.encode()


async def test_compressed_part_is_refused(client: Client) -> None:
    body = part(PACKED.decode())
    answer = await ask(client, upload_head(client, "", len(body)) + body)
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


async def test_upload_is_continued_after_authentication(client: Client) -> None:
    request = upload_head(client, "Expect: 100-continue\r\n", len(part()))
    assert (await ask(client, request, then=part())).status == 200


async def test_stalled_upload_times_out(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.incoming, "stall_timeout", 0.05)
    for begun in (b"", part()[:-10]):
        answer = await ask(client, upload_head(client, "", 1000) + begun)
        assert (answer.status, answer.code) == (408, "request_timeout")


# Requests that two readers may understand differently.


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        (b"Transfer-Encoding: gzip, chunked\r\n", 415, "unsupported_media_type"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", 400, "bad_request"),
        (b"Content-Length: 0\r\nExpect: 100-continue\r\nExpect: wonders\r\n", 417, None),
        (b"Content-Length: 0\r\nAuthorization: Bearer cf_other\r\n", 401, "unauthorized"),
    ],
    ids=["packed on its way", "two sizes", "two expectations", "two tokens"],
)
async def test_ambiguous_request_is_refused(
    client: Client, more: bytes, status: int, code: str | None
) -> None:
    request = head(client, CALLS[0], more, token=True)
    answer = await ask(client, request + b"2\r\n{}\r\n0\r\n\r\n" * (b"chunked" in more))
    assert (answer.status, answer.code) == (status, code or "expectation_failed")


async def test_invalid_handshake_is_refused(client: Client) -> None:
    session = await client.create()
    for path in (f"/sessions/{session}/ws", "/acp"):
        good = upgrade_request(client.url, path, client.token)
        key = next(
            line for line in good.split(b"\r\n") if line.lower().startswith(b"sec-websocket-k")
        )
        for bad in (
            good.replace(key, b"Sec-WebSocket-Key: \xff"),
            good.replace(key, b"Sec-WebSocket-Key: x"),
            good.replace(b"HTTP/1.1", b"HTTP/1.0", 1),
        ):
            assert (await ask(client, bad)).code == "bad_request"
        own = f"Origin: {client.url}\r\n".encode()
        for origins in (own + b"Origin: http://elsewhere\r\n", own + own):
            answer = await ask(client, good[:-2] + origins + b"\r\n")
            assert (answer.status, answer.code) == (403, "forbidden")


async def test_range_is_sent_only_for_same_version_of_file(client: Client) -> None:
    call = ("GET", "/static/app.js")
    whole = await ask(client, head(client, call, b""))
    [tag] = [line[6:] for line in whole.head.split(b"\r\n") if line.startswith(b"etag: ")]
    [date] = [
        line[15:] for line in whole.head.split(b"\r\n") if line.startswith(b"last-modified: ")
    ]
    date = date.title().replace(b"Gmt", b"GMT")
    for condition, status in (
        (b'If-Range: "other"', 200),
        (b"If-Range: Mon, 01 Jan 2001 00:00:00 GMT", 200),
        (b"If-Range: %b" % tag, 206),
        (b"If-Range: %b" % date, 206),
        (b"If-Match: %b" % tag, 206),
        (b"If-Unmodified-Since: %b" % date, 206),
    ):
        lines = b"Range: bytes=0-1\r\n%b\r\n" % condition
        assert (await ask(client, head(client, call, lines))).status == status, condition
    for condition in (b'If-Match: "other"', b"If-Unmodified-Since: Mon, 01 Jan 2001 00:00:00 GMT"):
        answer = await ask(client, head(client, call, condition + b"\r\n"))
        assert (answer.status, answer.code) == (412, "precondition_failed")


async def test_fully_qualified_host_is_same_host(client: Client) -> None:
    port = urlsplit(client.url).port
    for host, status in ((f"localhost.:{port}", 200), ("LOCALHOST.", 200), ("evil.", 403)):
        request = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert (await ask(client, request)).status == status


async def test_failed_turn_has_request_id(client: Client) -> None:
    status, reply = await client.turn(await client.create("mock-fail-new"), "x")
    assert status >= 500
    assert reply["request_id"] == client.last_headers["X-Request-Id"]
