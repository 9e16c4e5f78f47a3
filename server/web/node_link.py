"""Requests that belong to another node of the cluster.

The node that a client reached sends the request through a channel to the session's node. That node
sends it to itself through a socket that only its own process can connect to, so the same code
handles it as a request of a client. The response comes back over the same channel, piece by piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from ..cluster.channels import PIECE_BYTES, ChannelLostError, NodeChannel
from ..cluster.membership import ElsewhereError
from ..cluster.node import ClusterNode, out_of_reach
from .context import CREDENTIAL, REQUEST_ID, authenticate_app, context_of, waiting
from .control_socket import is_operator
from .request_body import READ_BODY

FORWARD = "http"
"""The kind of the channels for requests."""
_SENDER = struct.Struct("iII")
_HOP_HEADERS = frozenset(
    {
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "upgrade",
        "te",
        "trailer",
        "proxy-connection",
    }
)


class ForwardedRequest(msgspec.Struct, array_like=True):
    """A request as it is sent to the session's node.

    Attributes:
        remote: the address of the client.
        is_operator: whether it came through the operator's socket of the other node.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    remote: str
    is_operator: bool
    request_id: str
    has_body: bool


class ForwardedResponse(msgspec.Struct, array_like=True):
    """The beginning of a response."""

    status: int
    reason: str
    headers: list[tuple[str, str]]


class NodeLink:
    """Sends requests to other nodes, and carries out the requests of other nodes."""

    def __init__(self, node: ClusterNode) -> None:
        self.node = node
        self._name = f"\0clawdforge-link-{os.getpid()}-{secrets.token_hex(8)}"
        self._secret = secrets.token_hex(16)
        node.channels.servers[FORWARD] = self._serve

    # On the node that the client reached

    @contextlib.asynccontextmanager
    async def listening(self, runner: web.AppRunner) -> AsyncIterator[None]:
        """Serve the requests of this process itself."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening_socket:
            listening_socket.bind(self._name)
            site = web.SockSite(runner, listening_socket)
            await site.start()
            try:
                yield
            finally:
                await site.stop()

    def origin_of(self, request: web.Request) -> ForwardedRequest | None:
        """The request of another node that *request* carries out; None if a client has sent it."""
        connection = request.get_extra_info("socket")
        if connection is None or connection.family != socket.AF_UNIX:
            return None
        if request.headers.get("X-Clawdforge-Link") is None:
            return None
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SENDER.size)
        pid, uid, _ = _SENDER.unpack(raw)
        secret, _, origin = request.headers["X-Clawdforge-Link"].partition(" ")
        if (pid, uid) != (os.getpid(), os.getuid()):
            return None
        if not secrets.compare_digest(secret, self._secret):
            return None
        return msgspec.json.decode(origin, type=ForwardedRequest)

    async def forward(self, request: web.Request, node: int) -> web.StreamResponse:
        """Send *request* to a node, and its response to the client.

        Raises:
            Error: ``draining``; the node is out of reach.
        """
        self.node.check_alive(node)
        channel = self.node.channels.open(node, FORWARD)
        try:
            if CREDENTIAL in request:
                async with waiting(request):
                    head = await self._exchange(request, channel)
            else:
                head = await self._exchange(request, channel)
            return await _pass_on(request, channel, head)
        except ChannelLostError:
            raise out_of_reach() from None
        finally:
            channel.close()

    async def _exchange(self, request: web.Request, channel: NodeChannel) -> ForwardedResponse:
        """Send the request, and return the beginning of the response."""
        headers = [
            (str(name), value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_HEADERS
        ]
        origin = ForwardedRequest(
            request.method,
            request.raw_path,
            headers,
            request.remote or "",
            is_operator(request),
            request[REQUEST_ID],
            request.body_exists,
        )
        await channel.send(msgspec.msgpack.encode(origin))
        sending = asyncio.create_task(_send_body(request, channel))
        try:
            piece = await channel.receive()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if piece is None:
            raise ChannelLostError
        return msgspec.msgpack.decode(piece, type=ForwardedResponse)

    # On the session's node

    async def _serve(self, channel: NodeChannel) -> None:
        piece = await channel.receive()
        origin = msgspec.msgpack.decode(piece or b"", type=ForwardedRequest)
        headers = CIMultiDict(origin.headers)
        about = msgspec.json.encode(msgspec.structs.replace(origin, headers=[], target=""))
        headers["X-Clawdforge-Link"] = f"{self._secret} {about.decode()}"
        connector = aiohttp.UnixConnector(self._name, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            ) as client,
            client.request(
                origin.method,
                f"http://node{origin.target}",
                headers=headers,
                data=_body_of(channel) if origin.has_body else None,
                allow_redirects=False,
            ) as response,
        ):
            found = [
                (str(name), value)
                for name, value in response.headers.items()
                if name.lower() not in _HOP_HEADERS or name.lower() == "content-length"
            ]
            head = ForwardedResponse(response.status, response.reason or "", found)
            await channel.send(msgspec.msgpack.encode(head))
            async for data, _ in response.content.iter_chunks():
                await _forward_bytes(data, channel)
            channel.end()


LINK = web.AppKey("node-link", NodeLink)


async def _body_of(channel: NodeChannel) -> AsyncIterator[bytes]:
    while (piece := await channel.receive()) is not None:
        yield piece


async def _send_body(request: web.Request, channel: NodeChannel) -> None:
    if not request.body_exists:
        return
    if (data := request.get(READ_BODY)) is not None:
        await _forward_bytes(data, channel)
    else:
        while data := await request.content.readany():
            await _forward_bytes(data, channel)
    channel.end()


async def _forward_bytes(data: bytes, channel: NodeChannel) -> None:
    for start in range(0, len(data), PIECE_BYTES):
        await channel.send(data[start : start + PIECE_BYTES])


async def _pass_on(
    request: web.Request, channel: NodeChannel, head: ForwardedResponse
) -> web.StreamResponse:
    """Send the client the response of another node."""
    response = web.StreamResponse(status=head.status, reason=head.reason)
    for name, value in head.headers:
        response.headers.add(name, value)
    await response.prepare(request)
    async for piece in _pieces(request, channel):
        await response.write(piece)
    await response.write_eof()
    return response


async def _pieces(request: web.Request, channel: NodeChannel) -> AsyncIterator[bytes]:
    credential: Any = request.get(CREDENTIAL)
    while True:
        async with credential.waiting() if credential is not None else contextlib.nullcontext():
            piece = await channel.receive()
        if piece is None:
            return
        yield piece


@web.middleware
async def node_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send a request to the node that runs its session, or that has a free slot for a new one."""
    with context_of(request).sessions.uses.scope():
        return await _handle(request, handler)


async def _handle(request: web.Request, handler: Handler) -> web.StreamResponse:
    link = request.app[LINK]
    if link.origin_of(request) is not None:
        try:
            return await handler(request)
        except ElsewhereError:  # the session has moved meanwhile
            raise out_of_reach() from None
    sessions = context_of(request).sessions
    if request.method == hdrs.METH_POST and request.path in PLACED:
        placed = link.node.place()
        if placed != sessions.cluster.number:
            authenticate_app(request)  # only authenticated requests are passed on
            return await link.forward(request, placed)
    try:
        return await handler(request)
    except ElsewhereError as error:
        is_read = request.content.at_eof() and request.body_exists
        if is_read and READ_BODY not in request:
            raise out_of_reach() from None
        return await link.forward(request, error.owner)


PLACED = frozenset({"/sessions"})
"""The calls that create a session, by their path."""
