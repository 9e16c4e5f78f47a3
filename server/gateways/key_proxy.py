"""The proxy that inserts the keys of providers into the requests of agents.

It listens on loopback. An agent sends the token of its session in place of a key; the proxy checks
it, sends the request on with the real key, and passes the response back as it arrives. Only the
endpoints that agents use are available, each only at the address that the operator configured.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from ..agents.usage import Usage
from ..limits import decrement
from ..reload.state import Inherited, PassedDescriptors
from .connections import GatewayConnection, GatewayConnections
from .metering import ResponseMeter
from .provider_requests import (
    MAX_REQUEST_BYTES,
    limited_body,
    operator_certificates,
    operator_proxy,
    path_of,
    request_headers,
    token_of,
)
from .providers import PROVIDERS, Provider, Secret, Upstream
from .session_keys import Holder, SessionKey, SessionKeys
from .tunnels import StopListening

logger = logging.getLogger(__name__)

MAX_REQUESTS_PER_SESSION = 32
MAX_PROXIED_REQUESTS = 1024
UPSTREAM_CONNECT_SECS = 30
KEEP_ALIVE_SECS = 30.0
KEPT_BACK = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade", "set-cookie", "alt-svc", "content-length", "date"),
    }
)
"""Headers of responses that are not passed on."""

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

    def pack(self, passed: PassedDescriptors) -> CarriedKeyProxy | None:
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
        return operator_certificates(self._environ)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        provider = PROVIDERS.get(request.match_info["provider"])
        header, token = token_of(request)
        entry = self.keys.find(token) if token else None
        if entry is None:
            return refused_response(
                401, "authentication_error", "the token of the session is not valid"
            )
        key, holder = entry
        connection = request.protocol
        if isinstance(connection, GatewayConnection) and not self._connections.identify(
            connection, key.key
        ):
            refused = refused_response(429, "rate_limit_error", "too many connections")
            refused.force_close()
            return refused
        upstream = key.upstreams.get(provider.name) if provider is not None else None
        path = path_of(request)
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
                headers=request_headers(request, upstream, secret),
                data=limited_body(request) if request.can_read_body else None,
                allow_redirects=False,
                ssl=self._tls if upstream.address.startswith("https:") else True,
                proxy=operator_proxy(upstream.address, self._environ),
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


def _printable(reason: str | None) -> str | None:
    return reason if reason is not None and reason.isprintable() else None
