"""Requests to hosts that apps name, so that no request reaches what the operator has not allowed.

A host is looked up once for each connection, and the connection goes to exactly the addresses that
were checked. Redirects are not followed, no proxy of the environment is used, certificates are
verified, and of a response only the status and a few headers are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ..hosts import AllowedHosts, is_public
from ..origins import DEFAULT_PORTS, Address, address_of

MAX_URL_LENGTH = 2048
MAX_DRAINED_BYTES = 16 << 10
"""A connection is used again only if the body of its response was not longer."""
MAX_LOOKUPS = 32
"""Hosts that are looked up at once. The system may take half a minute for one."""
_URL = re.compile(r"https?://[!-~]+\Z", re.IGNORECASE)

Lookup = Callable[[str, int], Awaitable[Sequence[Address]]]


class RequestError(Exception):
    """A request without a response. The message is for the app, and contains no address."""


class HttpResponse(NamedTuple):
    """The status of a response, and when to try again.

    Attributes:
        retry_after: seconds; None if the header is missing or is a date.
    """

    status: int
    retry_after: float | None


class RefusedAddressError(OSError):
    """A host has an address to which no request may go."""


class OutboundClient:
    """Sends requests to allowed hosts.

    Args:
        hosts: the allowed hosts.
        setting: the name of the setting that allows hosts, for messages.
        timeout: seconds for the whole of a request.
        lookup: returns the addresses of a host.
        tls: verifies certificates; by default with the system's authorities.
    """

    def __init__(
        self,
        hosts: AllowedHosts,
        setting: str,
        timeout: float,
        *,
        lookup: Lookup | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = hosts
        self._setting = setting
        self._timeout = timeout
        self._lookup = lookup or _SystemLookup()
        self._tls = tls
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def check_url(self, text: str) -> URL:
        """Parse the address of a request.

        Raises:
            ValueError: no request may be sent to it; the message says why.
        """
        if len(text) > MAX_URL_LENGTH or not _URL.match(text):
            raise ValueError(f"not an http(s) address of at most {MAX_URL_LENGTH} characters")
        try:
            url = URL(text)
            host, port = _named_host(url)
        except ValueError:
            raise ValueError("not an http(s) address") from None
        if url.raw_user is not None or url.raw_password is not None or "#" in text:
            raise ValueError("an address with a user name or a fragment")
        if not self._hosts.names(host, port):
            raise ValueError(f"the operator has not allowed this host in {self._setting}")
        if (literal := address_of(url.raw_host or "")) is not None:
            self._check_addresses(url, [literal])
        return url

    async def check_addresses(self, url: URL) -> None:
        """Check now what each request checks again: whether ``http://`` is enough for the host.

        Raises:
            ValueError: it has a public address, or one that is not allowed.
        """
        if url.scheme != "http":
            return
        try:
            async with asyncio.timeout(self._timeout):
                addresses = await self._lookup(url.raw_host or "", url.port or 0)
        except (OSError, TimeoutError):
            return  # perhaps later
        self._check_addresses(url, addresses)

    async def post(self, url: URL, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        """Send a POST request to an address that :meth:`check_url` has returned.

        Raises:
            RequestError: there is no response.
        """
        try:
            return await self._post(url, headers, body)
        except TimeoutError:
            raise RequestError(f"no response within {self._timeout:g} s") from None
        except aiohttp.ClientConnectorCertificateError:
            raise RequestError("the certificate is not trusted") from None
        except aiohttp.ClientSSLError:
            raise RequestError("no TLS connection") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, RefusedAddressError):
                raise RequestError(str(error.os_error)) from None
            if isinstance(error.os_error, socket.gaierror):
                raise RequestError("the host has no address") from None
            raise RequestError("cannot connect to the host") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise RequestError("the connection ended, or the response is not HTTP") from None

    async def close(self) -> None:
        if isinstance(self._lookup, _SystemLookup):
            self._lookup.cancel()
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def _post(self, url: URL, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        async with self._session(url).post(
            url, data=body, headers=headers, allow_redirects=False
        ) as response:
            # The client cannot be made to read more than this.
            with contextlib.suppress(aiohttp.ClientError):
                await _drain_response(response)
            return HttpResponse(response.status, _retry_after(response.headers.get("Retry-After")))

    def _session(self, url: URL) -> aiohttp.ClientSession:
        session = self._sessions.get(url.scheme)
        if session is None:
            connector = aiohttp.TCPConnector(
                resolver=_CheckedResolver(self, url.scheme),
                use_dns_cache=False,
                limit=0,  # the callers have limits
                ssl=self._tls or True,
            )
            session = self._sessions[url.scheme] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                auto_decompress=False,
                read_bufsize=MAX_DRAINED_BYTES,
                trust_env=False,
            )
        return session

    def _check_addresses(self, url: URL, addresses: Sequence[Address]) -> None:
        host, port = _named_host(url)
        for address in addresses:
            if not self._hosts.allows(host, address, port):
                raise ValueError(
                    "the host has a private address, which the operator has not allowed"
                    f" in {self._setting}"
                )
            if url.scheme == "http" and is_public(address):
                raise ValueError("http:// is allowed only for private addresses: use https://")

    async def addresses(self, scheme: str, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, which were checked.

        Raises:
            OSError: it has none; :class:`RefusedAddressError` if one is not allowed.
        """
        addresses = await self._lookup(host, port)
        try:
            self._check_addresses(URL.build(scheme=scheme, host=host, port=port), addresses)
        except ValueError as error:
            raise RefusedAddressError(str(error)) from None
        return addresses


class _CheckedResolver(AbstractResolver):
    """Gives aiohttp the addresses that were checked, so that it connects to these and no others."""

    def __init__(self, client: OutboundClient, scheme: str) -> None:
        self._client = client
        self._scheme = scheme

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._client.addresses(self._scheme, host, port)
        ]

    async def close(self) -> None:
        pass


class _SystemLookup:
    """The system's lookup, in threads of its own: a slow one delays no other work of the server.

    The threads are daemons, so that a lookup does not delay the end of the server either.
    """

    def __init__(self) -> None:
        self._threads = asyncio.Semaphore(MAX_LOOKUPS)
        self._running: dict[str, asyncio.Task[list[Any]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        if (literal := address_of(host)) is not None:
            return [literal]
        # Requests to a host whose lookup hangs share one thread, also if they have given up.
        task = self._running.get(host)
        if task is None:
            task = self._running[host] = asyncio.create_task(self._look_up(host), name="lookup")
            task.add_done_callback(functools.partial(self._finish, host))
        results = await asyncio.shield(task)
        texts = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in results)
        return [address for text in texts if (address := address_of(text)) is not None]

    def cancel(self) -> None:
        """Wait for no lookup any more."""
        for task in self._running.values():
            task.cancel()

    def _finish(self, host: str, task: asyncio.Task[list[Any]]) -> None:
        del self._running[host]
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it

    async def _look_up(self, host: str) -> list[Any]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Any]] = loop.create_future()

        def report(results: list[Any], error: OSError | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(results)

        def look_up() -> None:
            results: list[Any] = []
            failure: OSError | None = None
            try:
                results = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except OSError as error:
                failure = error
            except UnicodeError:
                failure = socket.gaierror(socket.EAI_NONAME, "not a host")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(report, results, failure)

        async with self._threads:
            threading.Thread(target=look_up, name="lookup", daemon=True).start()
            return await done


def _named_host(url: URL) -> tuple[str, int]:
    """The host of an address, as rules name it, and its port."""
    host, port = url.raw_host, url.port or DEFAULT_PORTS.get(url.scheme)
    if not host or not port:
        raise ValueError(url)
    host = host.lower()
    return (f"[{address_of(host) or host}]" if ":" in host else host), port


async def _drain_response(response: aiohttp.ClientResponse) -> None:
    """Read a short body, so that the connection can be used again; end it at a longer one."""
    left = MAX_DRAINED_BYTES
    while left > 0:
        chunk = await response.content.read(left)
        if not chunk:
            return
        left -= len(chunk)
    response.close()


def _retry_after(value: str | None) -> float | None:
    """The number in ``Retry-After``."""
    return float(value) if value is not None and re.fullmatch(r"\d{1,9}", value) else None
