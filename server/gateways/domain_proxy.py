"""The HTTP proxy through which sandboxed programs reach the domains that the operator allows.

It answers ``CONNECT host:port``, and requests with an absolute address of the scheme ``http``, one
per connection. The session's token is the password. It looks at the name that the program asks
for; what the program sends inside a tunnel is its own.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import re
import socket
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

from ..limits import decrement
from .connections import MAX_UNKNOWN
from .domains import AllowedDomains
from .tunnels import StopListening

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 << 10
HEAD_SECS = 30
TUNNEL_CONNECT_SECS = 30
TUNNEL_IDLE_SECS = 900
"""A tunnel ends if neither side sends anything for this time."""
MAX_TUNNELS_PER_SESSION = 64
TUNNEL_PIECE_BYTES = 1 << 16
HOST_NAME = re.compile(r"[a-z0-9._:-]+\Z")
"""The names of hosts. The resolver would read another character, such as NUL, in its own way."""

FindSession = Callable[[str], str | None]
"""Returns the key of the session with that token; None if it has ended."""


class DomainProxy:
    """The proxy.

    Args:
        domains: the hosts that programs may reach.
        find_session: see :data:`FindSession`.
    """

    def __init__(self, domains: AllowedDomains, find_session: FindSession) -> None:
        self._domains = domains
        self._find_session = find_session
        self._tunnels: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unknown: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        self._servers: list[asyncio.Server] = []
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        self._servers.append(server)
        self.port = int(server.sockets[0].getsockname()[1])

    async def serve(self, listener: socket.socket) -> StopListening:
        """Also accept connections at *listener*, which may be in another network namespace."""
        server = await asyncio.start_server(self._handle, sock=listener, limit=MAX_HEAD_BYTES)

        async def stop() -> None:
            server.close()

        return stop

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._unknown) >= MAX_UNKNOWN:  # silent ones must not lock other sessions out
            self._unknown.pop(next(iter(self._unknown))).abort()
        self._tasks.add(task)
        self._unknown[task] = writer.transport
        try:
            await self._answer(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the program has disconnected, or sent no request
        finally:
            self._tasks.discard(task)
            self._unknown.pop(task, None)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_SECS):
            head = await reader.readuntil(b"\r\n\r\n")
        request, headers = _parse(head)
        session = self._session_of(headers)
        if session is None:
            challenge = 'Proxy-Authenticate: Basic realm="sandbox"'
            await _refuse_tunnel(writer, 407, "Proxy Authentication Required", challenge)
            return
        task = asyncio.current_task()
        assert task is not None
        self._unknown.pop(task, None)
        target = _tunnel_target(*request) if request is not None else None
        if request is None or target is None:
            await _refuse_tunnel(writer, 400, "Bad Request")
            return
        host, port = target
        if not self._domains.allows(host, port):
            extra = {"session": session}
            logger.info("a sandbox may not connect to %s:%d; refused", host, port, extra=extra)
            await _refuse_tunnel(writer, 403, f"{host}:{port} is not allowed by the operator")
            return
        if self._tunnels[session] >= MAX_TUNNELS_PER_SESSION:
            await _refuse_tunnel(writer, 429, "Too Many Requests")
            return
        self._tunnels[session] += 1
        try:
            await self._connect(reader, writer, request, headers, target)
        finally:
            decrement(self._tunnels, session)

    def _session_of(self, headers: list[tuple[str, str]]) -> str | None:
        for name, value in headers:
            scheme, _, encoded = value.partition(" ")
            if name == "proxy-authorization" and scheme.lower() == "basic":
                try:
                    text = base64.b64decode(encoded.strip(), validate=True).decode()
                except (binascii.Error, UnicodeDecodeError):
                    return None
                return self._find_session(text.partition(":")[2])
        return None

    async def _connect(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: tuple[str, str],
        headers: list[tuple[str, str]],
        target: tuple[str, int],
    ) -> None:
        host, port = target
        try:
            async with asyncio.timeout(TUNNEL_CONNECT_SECS):
                upstream = await self._open(host, port)
        except (OSError, TimeoutError):
            await _refuse_tunnel(writer, 502, f"{host}:{port} cannot be reached")
            return
        if upstream is None:
            await _refuse_tunnel(writer, 403, f"{host}:{port} has an address that is not public")
            return
        to_program, to_host = writer, upstream[1]
        try:
            if request[0] == "CONNECT":
                to_program.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                to_host.write(_head_of(request, headers))
            async with asyncio.timeout(TUNNEL_IDLE_SECS) as idle, asyncio.TaskGroup() as group:
                group.create_task(_copy_stream(reader, to_host, idle))
                group.create_task(_copy_stream(upstream[0], to_program, idle))
        except ExceptionGroup as errors:
            _, others = errors.split(OSError)
            if others is not None:
                raise
        finally:
            to_host.close()

    async def _open(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to an address of the host; None if all of them are not allowed.

        Raises:
            OSError: no address can be reached.
        """
        loop = asyncio.get_running_loop()
        results = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(entry[4][0]) for entry in results)
        failure: OSError | None = None
        for address in addresses:
            if not self._domains.allows_address(host, port, address):
                continue
            try:  # this address, so that the name cannot resolve to another one
                return await asyncio.open_connection(address, port)
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure
        return None


def _parse(head: bytes) -> tuple[tuple[str, str] | None, list[tuple[str, str]]]:
    """The method and the target, and the headers with names in lower case."""
    line, *lines = head.decode("latin-1").split("\r\n")
    words = line.split(" ")
    headers = []
    for text in lines:
        name, colon, value = text.partition(":")
        if colon:
            headers.append((name.strip().lower(), value.strip()))
    is_valid = len(words) == 3 and words[2].startswith("HTTP/1.")
    return ((words[0], words[1]) if is_valid else None), headers


def _tunnel_target(method: str, target: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or not HOST_NAME.match(host) or parts.username is not None:
        return None
    if method == "CONNECT":
        return (host, port) if port and not parts.path else None
    return (host, port or 80) if parts.scheme == "http" else None


def _head_of(request: tuple[str, str], headers: list[tuple[str, str]]) -> bytes:
    """The head of a request as the host gets it."""
    method, target = request
    parts = urlsplit(target)
    path = parts.path or "/"
    lines = [f"{method} {path}{'?' + parts.query if parts.query else ''} HTTP/1.1"]
    lines.append(f"host: {parts.netloc}")
    dropped = ("host", "connection", "proxy-connection", "keep-alive", "proxy-authorization")
    lines += [f"{name}: {value}" for name, value in headers if name not in dropped]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1")


async def _refuse_tunnel(
    writer: asyncio.StreamWriter, status: int, reason: str, *headers: str
) -> None:
    body = f"{reason}\n".encode()
    lines = [f"HTTP/1.1 {status} {reason}", *headers, f"Content-Length: {len(body)}"]
    writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
    await writer.drain()


async def _copy_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: asyncio.Timeout
) -> None:
    """Copy one direction of a tunnel. Each piece postpones the end of both directions."""
    loop = asyncio.get_running_loop()
    while piece := await reader.read(TUNNEL_PIECE_BYTES):
        idle.reschedule(loop.time() + TUNNEL_IDLE_SECS)
        writer.write(piece)
        await writer.drain()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
