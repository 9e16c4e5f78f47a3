"""The proxy that inserts the keys of providers into the requests of agents.

It listens on loopback. An agent sends the token of its session in place of a key; the proxy checks
it, sends the request on with the real key, and passes the response back as it arrives. Only the
endpoints that agents use are available, each only at the address that the operator configured.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from ..agents.usage import Usage
from ..limits import decrement
from ..reload.state import Inherited, Passed
from .connections import GatewayConnection, GatewayConnections
from .metering import ResponseMeter
from .providers import PROVIDERS, Provider, Secret, Upstream
from .session_keys import Holder, SessionKey, SessionKeys
from .tunnels import StopListening

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 << 20
MAX_REQUESTS_PER_SESSION = 32
MAX_PROXIED_REQUESTS = 1024
UPSTREAM_CONNECT_SECS = 30
KEEP_ALIVE_SECS = 30.0
PASSED_HEADERS = frozenset(
    {
        *("accept", "accept-language", "content-type", "content-encoding", "user-agent"),
        "anthropic-version",
        *("anthropic-beta", "anthropic-dangerous-direct-browser-access", "openai-beta", "x-app"),
        *("originator", "session_id", "session-id", "conversation_id", "thread-id", "version"),
        *("x-goog-api-client", "x-client-request-id", "idempotency-key"),
    }
)
PASSED_PREFIXES = ("x-stainless-", "x-codex-", "x-claude-", "x-gemini-")
KEPT_BACK = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade", "set-cookie", "alt-svc", "content-length", "date"),
    }
)
"""Headers of responses that are not passed on."""
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "x-goog-api-key")

MaySpend = Callable[[Holder], str | None]
"""Returns why an app may not spend any more; None if it may spend."""
CountUsage = Callable[[str, str, Usage], None]
"""Counts the tokens of a response, for a session's key and its app."""


class CarriedKeyProxy(msgspec.Struct, kw_only=True):
    """The proxy for the next version of the server.

    Attributes:
        listener: the descriptor of its socket.
    """

    listener: int
    keys: list[SessionKey]


class KeyProxy:
    """The proxy. It is also a ``Carrier``: agents keep its address and their tokens in a reload.

    Args:
        keys: the tokens of all sessions.
        environ: the server's environment, with its certificates and proxies.

    Attributes:
        may_spend: see :data:`MaySpend`.
        count_usage: see :data:`CountUsage`.
        requests: the number of requests that were sent on.
    """

    name = "key-proxy"

    def __init__(self, keys: SessionKeys, environ: Mapping[str, str]) -> None:
        self.may_spend: MaySpend = lambda _: None
        self.count_usage: CountUsage = lambda *_: None
        self.requests = 0
        self.keys = keys
        self._environ = environ
        self._client: aiohttp.ClientSession | None = None
        self._active: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._connections = GatewayConnections()

    @property
    def runner(self) -> web.AppRunner:
        assert self._runner is not None, "the proxy is not started"
        return self._runner

    async def start(self, inherited: Inherited | None = None) -> None:
        """Listen on a free port of 127.0.0.1, or at the socket of an earlier version."""
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECS),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=UPSTREAM_CONNECT_SECS),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_route("*", "/{provider}/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        carried = inherited.part(self.name, CarriedKeyProxy) if inherited is not None else None
        if carried is None or inherited is None:
            self._listener = await loop.create_server(self._connection, "127.0.0.1", 0)
        else:
            listener = socket.socket(fileno=inherited.claim(carried.listener))
            self.keys.restore(carried.keys)
            self._listener = await loop.create_server(self._connection, sock=listener)
        self.keys.url = f"http://127.0.0.1:{self.port}"

    def _connection(self) -> GatewayConnection:
        server = self.runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        return GatewayConnection(self._connections, server, loop=loop, access_log=None)

    # A reload of the server. Requests in progress end; agents send them again.

    def is_settled(self) -> bool:
        return True

    async def freeze(self) -> None:
        """Do nothing."""

    def thaw(self) -> None:
        """Do nothing."""

    def pack(self, passed: Passed) -> CarriedKeyProxy | None:
        if self._listener is None:
            return None
        descriptor = passed.add(self._listener.sockets[0].fileno())
        return CarriedKeyProxy(listener=descriptor, keys=self.keys.pack())

    def children(self) -> Sequence[int]:
        return []

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    async def serve(self, listener: socket.socket) -> StopListening:
        """Also accept connections at *listener*, which may be in another network namespace."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connection, sock=listener)

        async def stop() -> None:
            server.close()

        return stop

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        return _trust(self._environ)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        provider = PROVIDERS.get(request.match_info["provider"])
        header, token = _token_of(request)
        found = self.keys.find(token) if token else None
        if found is None:
            return refused_response(
                401, "authentication_error", "the token of the session is not valid"
            )
        key, holder = found
        connection = request.protocol
        if isinstance(connection, GatewayConnection) and not self._connections.identify(
            connection, key.key
        ):
            refused = refused_response(429, "rate_limit_error", "too many connections")
            refused.force_close()
            return refused
        upstream = key.upstreams.get(provider.name) if provider is not None else None
        path = _path_of(request)
        endpoint = provider.endpoint(request.method, path) if provider is not None else None
        if provider is None or upstream is None or endpoint is None:
            return refused_response(
                404, "not_found_error", "this endpoint is not available to agents"
            )
        if (reason := self.may_spend(holder)) is not None:
            return refused_response(402, "budget_exceeded", reason)
        if (request.content_length or 0) > MAX_REQUEST_BYTES:
            return refused_response(413, "request_too_large", "the request is too large")
        if (
            self._active[key.key] >= MAX_REQUESTS_PER_SESSION
            or self._active.total() > MAX_PROXIED_REQUESTS
        ):
            return refused_response(
                429, "rate_limit_error", "too many requests of the session at once"
            )
        self._active[key.key] += 1
        try:
            return await self._pass_on(
                request, provider, upstream, endpoint, upstream.secret_for(header), key, holder
            )
        finally:
            decrement(self._active, key.key)

    async def _pass_on(
        self,
        request: web.Request,
        provider: Provider,
        upstream: Upstream,
        endpoint: str,
        secret: Secret,
        key: SessionKey,
        holder: Holder,
    ) -> web.StreamResponse:
        assert self._client is not None
        query = [pair for pair in parse_qsl(request.query_string) if pair[0] in provider.query]
        address = upstream.address + endpoint + (f"?{urlencode(query)}" if query else "")
        self.requests += 1
        try:
            async with self._client.request(
                request.method,
                URL(address, encoded=True),
                headers=_request_headers(request, upstream, secret),
                data=_limited(request) if request.can_read_body else None,
                allow_redirects=False,
                ssl=self._tls if upstream.address.startswith("https:") else True,
                proxy=_proxy_for(upstream.address, self._environ),
            ) as response:
                return await self._pass_back(request, response, key, holder)
        except (aiohttp.ClientError, TimeoutError) as error:
            host = urlsplit(upstream.address).hostname
            logger.warning(
                "a request to the API of the provider %s at %s has failed: %s",
                *(provider.name, host, type(error).__name__),
                extra={"session": key.key, "app": holder.owner},
            )
            return refused_response(502, "api_error", f"{host} cannot be reached")

    async def _pass_back(
        self,
        request: web.Request,
        response: aiohttp.ClientResponse,
        key: SessionKey,
        holder: Holder,
    ) -> web.StreamResponse:
        passed = web.StreamResponse(status=response.status, reason=_printable(response.reason))
        for name, value in response.headers.items():
            if name.lower() not in KEPT_BACK:
                passed.headers.add(name, value)
        passed.content_length = response.content_length
        is_stream = response.content_type == "text/event-stream"
        meter = ResponseMeter(is_stream=is_stream)
        await passed.prepare(request)
        left = response.content_length or 0
        try:
            async for piece in response.content.iter_any():
                meter.feed(piece)
                left -= len(piece)
                if left == 0:
                    meter.complete()
                # Before the agent can end its turn.
                if (usage := meter.take()) is not None:
                    self.count_usage(key.key, holder.owner, usage)
                await passed.write(piece)
        except (aiohttp.ClientError, TimeoutError):
            # An error response would be a part of the body.
            if request.transport is not None:
                request.transport.close()
            raise
        meter.complete()
        if (usage := meter.take()) is not None:
            self.count_usage(key.key, holder.owner, usage)
        await passed.write_eof()
        return passed


def refused_response(status: int, kind: str, message: str) -> web.Response:
    """A response in the form of an error of all three providers."""
    error = {"type": kind, "code": kind, "status": kind.upper(), "message": message}
    return web.json_response({"type": "error", "error": error}, status=status)


def _token_of(request: web.Request) -> tuple[str, str]:
    """The header with the session's token, and the token; both empty without one."""
    for name in CREDENTIAL_HEADERS:
        value = request.headers.get(name, "").strip()
        if name == "authorization":
            scheme, _, value = value.partition(" ")
            value = value.strip() if scheme.lower() == "bearer" else ""
        if value:
            return name, value
    return "x-goog-api-key", request.query.get("key", "")


def _path_of(request: web.Request) -> str:
    """The path at the provider, as the agent sent it: not decoded, so that nothing is hidden."""
    if not request.raw_path.startswith("/"):
        return ""
    return "/" + request.raw_path.split("?", 1)[0].lstrip("/").partition("/")[2]


def _request_headers(request: web.Request, upstream: Upstream, secret: Secret) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        lower = name.lower()
        if lower in PASSED_HEADERS or lower.startswith(PASSED_PREFIXES):
            headers[lower] = f"{headers[lower]},{value}" if lower in headers else value
    if secret.beta is not None and secret.beta not in headers.get("anthropic-beta", ""):
        known = headers.get("anthropic-beta")
        headers["anthropic-beta"] = f"{known},{secret.beta}" if known else secret.beta
    headers |= {name.lower(): value for name, value in upstream.headers}
    if not any(name in headers for name in CREDENTIAL_HEADERS):
        headers[secret.header] = secret.value
    headers["accept-encoding"] = "identity"  # the usage must be readable
    if request.content_length is not None and request.can_read_body:
        headers["content-length"] = str(request.content_length)
    return headers


async def _limited(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises:
        web.HTTPException: it is too large.
    """
    size = 0
    async for piece in request.content.iter_any():
        size += len(piece)
        if size > MAX_REQUEST_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_REQUEST_BYTES, size)
        yield piece


def _printable(reason: str | None) -> str | None:
    return reason if reason is not None and reason.isprintable() else None


def _proxy_for(address: str, environ: Mapping[str, str]) -> str | None:
    """The operator's own proxy for that address."""
    parts = urlsplit(address)
    names = (f"{parts.scheme}_proxy", f"{parts.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    found = next(filter(None, (environ.get(name) for name in names)), None)
    if found is None or not found.startswith(("http://", "https://")):
        return None
    excluded = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")
    suffixes = [name.strip().partition(":")[0].lstrip("*.").lower() for name in excluded]
    host = parts.hostname or ""
    is_excluded = "*" in map(str.strip, excluded) or any(
        host == name or host.endswith(f".{name}") for name in suffixes if name
    )
    return None if is_excluded else found


def _trust(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The certificates that the operator set for agents, in addition to the system's."""
    context = ssl.create_default_context()
    for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"):
        file = environ.get(name, "")
        if file and os.path.isfile(file):  # noqa: PTH113
            try:
                context.load_verify_locations(cafile=file)
            except (OSError, ssl.SSLError) as error:
                logger.warning("%s: the certificates cannot be read: %s", name, error)
    return context
