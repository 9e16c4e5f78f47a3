"""The key proxy: which requests it sends on, with which key, and what it counts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import tomllib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from server.agents.usage import Usage
from server.gateways.key_proxy import KeyProxy
from server.gateways.session_keys import Holder, SessionKeys
from server.sandbox.trial import TrialSpec

from ..support.waiting import eventually

KEY = "sk-the-real-key"
MESSAGE: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


class Upstream:
    """The API of a provider that records its requests.

    Attributes:
        pieces: its response, in the pieces in which it is sent.
        length: of its response, as its header says; None for chunks.
        gate: must be set before each piece but the first is sent.
        breaks_off: the connection ends after the first piece.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.pieces: list[bytes] = [b'{"usage": {"input_tokens": 3, "output_tokens": 4}}']
        self.kind = "application/json"
        self.length: int | None = None
        self.breaks_off = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.ended = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers, await request.read()))
        if "redirect" in request.path:
            raise web.HTTPFound("http://127.0.0.1:9/elsewhere")
        response = web.StreamResponse(headers={"Content-Type": self.kind, "Set-Cookie": "a=b"})
        response.content_length = self.length
        await response.prepare(request)
        try:
            for number, piece in enumerate(self.pieces):
                if number and self.breaks_off:
                    assert request.transport is not None
                    request.transport.close()  # after what was written
                    return response
                if number:
                    await self.gate.wait()
                await response.write(piece)
            await response.write_eof()
        finally:
            self.ended.set()
        return response

    @property
    def last(self) -> dict[str, str]:
        """The headers of the last request."""
        return self.requests[-1][2]


@contextlib.asynccontextmanager
async def serve(handler: Any) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclasses.dataclass
class Setup:
    """A running proxy, and a session that uses it."""

    proxy: KeyProxy
    upstream: Upstream
    http: aiohttp.ClientSession
    counted: list[tuple[str, str, Usage]]
    holders: dict[str, Holder]
    home: Path

    def environ(
        self,
        trusted: Mapping[str, str] | None = None,
        chosen: Mapping[str, str] | None = None,
        key: str = "session",
        agent: str = "claude",
    ) -> dict[str, str]:
        """The variables of an agent that starts for a session."""
        given = {
            "ANTHROPIC_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": self.upstream.url,
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{self.upstream.url}/v1",
            "GEMINI_API_KEY": KEY,
            "GOOGLE_GEMINI_BASE_URL": self.upstream.url,
        }
        trusted = {**given, **(trusted or {})}
        chosen = chosen or {}
        self.holders.setdefault(key, Holder("app", is_working=True))
        spec = TrialSpec(key, "/", agent, "app")
        replaced = self.proxy.keys.replace(spec, trusted, chosen)
        full = {k: v for k, v in {**trusted, **chosen}.items() if k not in replaced.unset}
        return {**full, **replaced.environ}

    async def post(
        self, url: str, token: str | None, method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        given = {"x-api-key": token} if token is not None else {}
        async with self.http.request(
            method, url, json=MESSAGE, headers={**given, **headers}, allow_redirects=False
        ) as reply:
            try:
                return reply.status, json.loads(await reply.text())
            except ValueError:
                return reply.status, {}


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    upstream = Upstream()
    async with serve(upstream.answer) as url, aiohttp.ClientSession() as http:
        upstream.url = url
        proxy = KeyProxy(SessionKeys(tmp_path), {})
        made = Setup(proxy, upstream, http, [], {}, tmp_path)
        proxy.count_usage = lambda *counted: made.counted.append(counted)
        proxy.keys.find_holder = made.holders.get
        await proxy.start()
        try:
            yield made
        finally:
            await proxy.stop()


@pytest.mark.parametrize(
    ("base", "path", "header"),
    [
        ("ANTHROPIC_BASE_URL", "/v1/messages?beta=true", "x-api-key"),
        ("OPENAI_BASE_URL", "/responses", "authorization"),
        ("OPENAI_BASE_URL", "/chat/completions", "authorization"),
        (
            "GOOGLE_GEMINI_BASE_URL",
            "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
            "x-goog-api-key",
        ),
    ],
)
async def test_key_of_the_operator_is_inserted(
    setup: Setup, base: str, path: str, header: str
) -> None:
    environ = setup.environ()
    assert KEY not in json.dumps(environ)
    token = environ["ANTHROPIC_API_KEY"]
    assert (await setup.post(environ[base] + path, token, Cookie="x=y"))[0] == 200
    method, raw_path, headers, body = setup.upstream.requests[-1]
    assert headers[header] == (f"Bearer {KEY}" if header == "authorization" else KEY)
    assert (method, raw_path) == ("POST", path if path.startswith("/v1") else f"/v1{path}")
    assert json.loads(body) == MESSAGE
    assert token not in json.dumps(headers)
    assert "cookie" not in headers


async def test_token_of_no_session_is_refused(setup: Setup) -> None:
    environ = setup.environ()
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    for token in (None, "", "sk-cf-guessed", KEY, environ["ANTHROPIC_API_KEY"][:-1]):
        assert (await setup.post(url, token))[0] == 401
    assert not setup.upstream.requests


async def test_token_ends_with_its_session(setup: Setup) -> None:
    environ = setup.environ()
    url, token = environ["ANTHROPIC_BASE_URL"] + "/v1/messages", environ["ANTHROPIC_API_KEY"]
    assert (await setup.post(url, token))[0] == 200
    assert setup.environ(key="other")["ANTHROPIC_API_KEY"] != token
    assert setup.environ()["ANTHROPIC_API_KEY"] == token
    del setup.holders["session"]
    assert (await setup.post(url, token))[0] == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/anthropic/v1/files"),
        ("POST", "/anthropic/v1/messages/batches"),
        ("POST", "/anthropic/v1/messages/../organizations/keys"),
        ("POST", "/anthropic/v1/messages/%2e%2e/files"),
        ("POST", "/anthropic/v1/messages%3F/files"),
        ("POST", "/anthropic//v1/messages"),
        ("GET", "/anthropic/v1/models/../files"),
        ("GET", "/anthropic/v1/models//files"),
        ("DELETE", "/anthropic/v1/messages"),
        ("GET", "/openai/v1/responses/resp_1"),
        ("POST", "/openai/v1/files"),
        ("GET", "/openai/v1/organization/admin_api_keys"),
        ("POST", "/gemini/v1beta/cachedContents"),
        ("POST", "/gemini/upload/v1beta/files"),
        ("POST", "/gemini/v1beta/models/m:generateContent/../../x"),
        ("GET", "/http://127.0.0.1:1/v1/messages"),
        ("GET", "/unknown/v1/messages"),
        ("GET", "/"),
    ],
)
async def test_other_endpoints_are_not_available(setup: Setup, method: str, path: str) -> None:
    token = setup.environ()["ANTHROPIC_API_KEY"]
    port = setup.proxy.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nx-api-key: {token}\r\n"
    writer.write(f"{request}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
    status = (await reader.readline()).split()[1]
    writer.close()
    assert status in (b"404", b"405", b"400")
    assert not setup.upstream.requests


async def test_response_is_passed_on_as_it_arrives(setup: Setup) -> None:
    start = {"message": {"usage": {"input_tokens": 10, "cache_read_input_tokens": 2}}}
    setup.upstream.kind = "text/event-stream"
    setup.upstream.pieces = [
        f"event: message_start\ndata: {json.dumps(start)}\n\n".encode(),
        b'event: message_delta\ndata: {"usage": {"outp',
        b'ut_tokens": 7}}\n\n',
    ]
    setup.upstream.gate.clear()
    environ = setup.environ()
    url, token = environ["ANTHROPIC_BASE_URL"] + "/v1/messages", environ["ANTHROPIC_API_KEY"]
    async with setup.http.post(url, json=MESSAGE, headers={"x-api-key": token}) as reply:
        assert await reply.content.readany() == setup.upstream.pieces[0]
        setup.upstream.gate.set()
        assert await reply.content.read() == b"".join(setup.upstream.pieces[1:])
        assert "Set-Cookie" not in reply.headers
    total = Usage()
    for key, owner, usage in setup.counted:
        assert (key, owner) == ("session", "app")
        total = total.plus(usage)
    assert total == Usage(input_tokens=10, output_tokens=7, cached_read_tokens=2)


@pytest.mark.parametrize(
    ("reply", "usage"),
    [
        (
            {"usage": {"input_tokens": 3, "output_tokens": 4}},
            Usage(input_tokens=3, output_tokens=4),
        ),
        (
            {
                "usage": {
                    "input_tokens": 30,
                    "input_tokens_details": {"cached_tokens": 10},
                    "output_tokens": 4,
                    "output_tokens_details": {"reasoning_tokens": 1},
                }
            },
            Usage(input_tokens=20, output_tokens=4, cached_read_tokens=10, thought_tokens=1),
        ),
        (
            {"usage": {"prompt_tokens": 5, "completion_tokens": 6}},
            Usage(input_tokens=5, output_tokens=6),
        ),
        (
            {
                "usageMetadata": {
                    "promptTokenCount": 9,
                    "candidatesTokenCount": 2,
                    "thoughtsTokenCount": 3,
                }
            },
            Usage(input_tokens=9, output_tokens=5, thought_tokens=3),
        ),
        ({"usage": {"input_tokens": -1, "output_tokens": "many"}}, Usage()),
        ([], None),
    ],
)
async def test_tokens_are_counted(setup: Setup, reply: Any, usage: Usage | None) -> None:
    setup.upstream.pieces = [json.dumps(reply).encode()]
    environ = setup.environ()
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    assert (await setup.post(url, environ["ANTHROPIC_API_KEY"]))[0] == 200
    assert setup.counted == ([] if usage is None else [("session", "app", usage)])


async def test_request_ends_when_its_agent_disconnects(setup: Setup) -> None:
    setup.upstream.pieces = [b"data: first\n\n", *[b"data: more\n\n"] * 10]
    setup.upstream.gate.clear()
    environ = setup.environ()
    url, token = environ["ANTHROPIC_BASE_URL"] + "/v1/messages", environ["ANTHROPIC_API_KEY"]
    async with setup.http.post(url, json=MESSAGE, headers={"x-api-key": token}) as reply:
        await reply.content.readany()
        reply.close()
    await eventually("the end of the request", setup.upstream.ended.is_set)


@pytest.mark.parametrize("length", [None, 1000])
async def test_response_that_breaks_off_is_not_completed(setup: Setup, length: int | None) -> None:
    setup.upstream.pieces = [b"first", b"never sent"]
    setup.upstream.length = length
    setup.upstream.breaks_off = True
    environ = setup.environ()
    url, token = environ["ANTHROPIC_BASE_URL"] + "/v1/messages", environ["ANTHROPIC_API_KEY"]
    async with setup.http.post(url, json=MESSAGE, headers={"x-api-key": token}) as reply:
        assert reply.status == 200
        read, has_broken_off = b"", False
        try:
            async for piece in reply.content.iter_any():
                read += piece
        except aiohttp.ClientPayloadError:
            has_broken_off = True
    assert (read, has_broken_off) == (b"first", True)


async def test_app_that_may_not_spend_is_refused(setup: Setup) -> None:
    environ = setup.environ()
    setup.proxy.may_spend = lambda holder: f"{holder.owner} has spent its budget"
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    status, reply = await setup.post(url, environ["ANTHROPIC_API_KEY"])
    assert (status, reply["error"]["type"]) == (402, "budget_exceeded")
    assert not setup.upstream.requests


async def test_requests_of_a_session_at_once_are_limited(setup: Setup) -> None:
    setup.upstream.pieces *= 2
    setup.upstream.gate.clear()
    environ = setup.environ()
    url, token = environ["ANTHROPIC_BASE_URL"] + "/v1/messages", environ["ANTHROPIC_API_KEY"]
    tasks = [asyncio.create_task(setup.post(url, token)) for _ in range(40)]
    await eventually("all requests", lambda: len(setup.upstream.requests) == 32)
    other = setup.environ(key="other")["ANTHROPIC_API_KEY"]
    third = asyncio.create_task(setup.post(url, other))
    await eventually("another session's", lambda: len(setup.upstream.requests) == 33)
    setup.upstream.gate.set()
    statuses = [(await task)[0] for task in tasks]
    assert (statuses.count(200), statuses.count(429)) == (32, 8)
    assert (await third)[0] == 200


async def test_redirect_is_not_followed(setup: Setup) -> None:
    environ = setup.environ({"ANTHROPIC_BASE_URL": f"{setup.upstream.url}/redirect"})
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    assert (await setup.post(url, environ["ANTHROPIC_API_KEY"]))[0] == 302
    assert len(setup.upstream.requests) == 1


async def test_unreachable_provider_is_reported_without_the_key(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    environ = setup.environ({"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"})
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    status, reply = await setup.post(url, environ["ANTHROPIC_API_KEY"])
    assert status == 502
    assert KEY not in json.dumps(reply) + caplog.text


async def test_login_of_a_subscription_is_inserted_with_its_beta(setup: Setup) -> None:
    login = {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "the-login"}
    environ = setup.environ(login)
    assert "the-login" not in json.dumps(environ)
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    token = f"Bearer {environ['CLAUDE_CODE_OAUTH_TOKEN']}"
    assert (await setup.post(url, None, Authorization=token, **{"anthropic-beta": "a"}))[0] == 200
    assert setup.upstream.last["authorization"] == "Bearer the-login"
    assert setup.upstream.last["anthropic-beta"] == "a,oauth-2025-04-20"
    assert "x-api-key" not in setup.upstream.last


async def test_headers_of_the_operator_are_added_by_the_proxy(setup: Setup) -> None:
    environ = setup.environ({"ANTHROPIC_CUSTOM_HEADERS": "X-Gateway: secret\nbad\nX-Team: a"})
    assert "ANTHROPIC_CUSTOM_HEADERS" not in environ
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    assert (await setup.post(url, environ["ANTHROPIC_API_KEY"], **{"X-Gateway": "mine"}))[0] == 200
    assert setup.upstream.last["x-gateway"] == "secret"
    assert setup.upstream.last["x-team"] == "a"


async def test_address_of_a_client_never_gets_a_key_of_the_operator(setup: Setup) -> None:
    chosen = {"ANTHROPIC_BASE_URL": "http://evil.example"}
    environ = setup.environ(chosen=chosen)
    assert environ["ANTHROPIC_BASE_URL"] == chosen["ANTHROPIC_BASE_URL"]
    assert "ANTHROPIC_API_KEY" not in environ
    assert KEY not in json.dumps(environ)
    token = environ["OPENAI_API_KEY"]
    url = f"{setup.proxy.keys.url}/anthropic/v1/messages"
    assert (await setup.post(url, token))[0] == 404


@pytest.mark.parametrize(
    ("switch", "key"),
    [
        ("CLAUDE_CODE_USE_BEDROCK", "ANTHROPIC_API_KEY"),
        ("GOOGLE_GENAI_USE_VERTEXAI", "GEMINI_API_KEY"),
    ],
)
async def test_client_that_selects_another_service_gets_no_key_of_the_operator(
    setup: Setup, switch: str, key: str
) -> None:
    environ = setup.environ(chosen={switch: "1"})
    assert environ[switch] == "1"
    assert KEY not in json.dumps(environ)
    operators = setup.environ({switch: "1"})
    assert operators[key] == KEY
    changed = setup.environ({switch: "1"}, chosen={switch: "0"})
    assert key not in changed


async def test_key_of_a_client_is_used_at_the_operators_address(setup: Setup) -> None:
    environ = setup.environ(chosen={"ANTHROPIC_API_KEY": "sk-of-the-client"})
    assert "sk-of-the-client" not in json.dumps(environ)
    url = environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    assert (await setup.post(url, environ["ANTHROPIC_API_KEY"]))[0] == 200
    assert setup.upstream.last["x-api-key"] == "sk-of-the-client"


async def test_key_with_an_unusable_address_does_not_reach_the_agent(setup: Setup) -> None:
    environ = setup.environ({"ANTHROPIC_BASE_URL": "ftp://x"})
    assert "ANTHROPIC_API_KEY" not in environ


async def test_codex_gets_a_login_and_an_address(setup: Setup) -> None:
    folder = setup.home / ".codex"
    folder.mkdir()
    (folder / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": "sk-stored"}))
    spec = TrialSpec("session", "/", "codex", "app")
    replaced = setup.proxy.keys.replace(spec, {}, {})
    stored = json.loads(replaced.files[".codex/auth.json"])["OPENAI_API_KEY"]
    assert stored.startswith("sk-cf-")
    assert json.loads(replaced.environ["CODEX_CONFIG"])["openai_base_url"].endswith("/openai/v1")
    (folder / "config.toml").write_text(
        'model_provider = "own"\n[model_providers.own]\nname = "own"\nbase_url = "http://own/v1"\n'
    )
    replaced = setup.proxy.keys.replace(spec, {}, {})
    provider = json.loads(replaced.environ["CODEX_CONFIG"])["model_providers"]["own"]
    assert provider == {"name": "own", "base_url": f"{setup.proxy.keys.url}/openai/v1"}
    # Requests that codex sends before it knows the variable go there, too.
    own = tomllib.loads(replaced.files[".codex/config.toml"].decode())
    assert own == {"model_provider": "own", "model_providers": {"own": provider}}


@pytest.mark.parametrize(
    "config", ["", "model = 'x'", "[", 'openai_base_url = "http://\\u0061/v1"']
)
async def test_codex_keeps_a_configuration_without_a_plain_address(
    setup: Setup, config: str
) -> None:
    folder = setup.home / ".codex"
    folder.mkdir()
    (folder / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": "sk-stored"}))
    (folder / "config.toml").write_text(config)
    replaced = setup.proxy.keys.replace(TrialSpec("session", "/", "codex", "app"), {}, {})
    assert list(replaced.files) == [".codex/auth.json"]


async def test_large_request_is_refused(setup: Setup) -> None:
    environ = setup.environ()
    url, token = environ["ANTHROPIC_BASE_URL"] + "/v1/messages", environ["ANTHROPIC_API_KEY"]

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield bytes(1 << 20)

    async with setup.http.post(
        url, data=endless(), headers={"x-api-key": token, "Expect": ""}
    ) as reply:
        assert reply.status in (413, 502)
