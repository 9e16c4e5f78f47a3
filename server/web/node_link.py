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
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from ..cluster.channels import PIECE_BYTES, ChannelLostError, NodeChannel
from ..cluster.membership import OtherNodeError
from ..cluster.node import ClusterNode, node_unreachable
from ..sessions.entries import HIDDEN_ID
from .context import CREDENTIAL, REQUEST_ID, authenticate_app, context_of, waiting
from .control_socket import is_operator
from .request_body import READ_BODY

FORWARD = "http"
"""The kind of the channels for requests."""
SEND_ATTEMPTS = 3
REPEATED_BYTES = 1 << 20
"""A request with a longer body is sent once."""
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
        prompt_id: of a prompt to which the client gave no id, so that it can be sent again.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    remote: str
    is_operator: bool
    request_id: str
    has_body: bool
    prompt_id: str = ""


class ForwardedResponse(msgspec.Struct, array_like=True):
    """The beginning of a response."""

    status: int
    reason: str
    headers: list[tuple[str, str]]


class ResponseLostError(Exception):
    """The other node has ended, or a message was lost, before the response began."""


class Sending:
    """The body of a request that is sent to another node, perhaps again.

    Attributes:
        is_repeatable: whether the request may be sent again.
        prompt_id: of a prompt to which the client gave no id.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._sent: list[bytes] = []
        self._size = 0
        is_prompt = request.method == hdrs.METH_POST and request.path.endswith("/turn")
        self.is_repeatable = "session_id" in request.match_info and (
            is_prompt or request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        )
        has_id = not is_prompt or "Idempotency-Key" in request.headers
        self.prompt_id = "" if has_id else HIDDEN_ID + uuid.uuid4().hex

    async def send(self, channel: NodeChannel) -> None:
        request = self._request
        if not request.body_exists:
            return
        if (data := request.get(READ_BODY)) is not None:
            await _forward_bytes(data, channel)
            channel.end()
            return
        for data in tuple(self._sent):
            await _forward_bytes(data, channel)
        while data := await request.content.readany():
            self._keep(data)
            await _forward_bytes(data, channel)
        channel.end()

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        self.is_repeatable = self.is_repeatable and self._size <= REPEATED_BYTES
        if self.is_repeatable:
            self._sent.append(piece)
        else:
            self._sent.clear()


class NodeLink:
    """Sends requests to other nodes, and carries out the requests of other nodes."""

    def __init__(self, node: ClusterNode) -> None:
        self.node = node
        self._name = f"\0clawdforge-link-{os.getpid()}-{secrets.token_hex(8)}"
        self._secret = secrets.token_hex(16)
        self._is_listening = asyncio.Event()
        node.channels.servers[FORWARD] = self._serve

    # On the node that the client reached

    @contextlib.asynccontextmanager
    async def listening(self, runner: web.AppRunner) -> AsyncIterator[None]:
        """Serve the requests of this process itself."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening_socket:
            listening_socket.bind(self._name)
            site = web.SockSite(runner, listening_socket)
            await site.start()
            self._is_listening.set()
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

        A request that may be repeated is sent again if the response is lost before it begins: to
        the node that has its session then.

        Raises:
            Error: ``draining``; the node is out of reach.
        """
        sending = Sending(request)
        for _ in range(SEND_ATTEMPTS):
            try:
                return await self._forward(request, node, sending)
            except ResponseLostError:
                if not sending.is_repeatable:
                    break
                node = await self._owner_of(request)
        raise node_unreachable()

    async def _owner_of(self, request: web.Request) -> int:
        """The node that has the session of a request now."""
        try:
            await context_of(request).sessions.find(request.match_info["session_id"])
        except OtherNodeError as error:
            return error.owner
        assert self.node.number is not None
        return self.node.number

    async def _forward(
        self, request: web.Request, node: int, sending: Sending
    ) -> web.StreamResponse:
        await self.node.check_alive(node)
        if (remote := context_of(request).sessions.remote) is not None:
            remote.forwarded += 1
        channel = self.node.channels.open(node, FORWARD)
        try:
            try:
                if CREDENTIAL in request:
                    async with waiting(request):
                        head = await self._exchange(request, channel, sending)
                else:
                    head = await self._exchange(request, channel, sending)
            except ChannelLostError:
                raise ResponseLostError from None
            return await _pass_on(request, channel, head)
        except ChannelLostError:
            raise node_unreachable() from None
        finally:
            channel.close()

    async def _exchange(
        self, request: web.Request, channel: NodeChannel, body: Sending
    ) -> ForwardedResponse:
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
            body.prompt_id,
        )
        await channel.send(msgspec.msgpack.encode(origin))
        sending = asyncio.create_task(body.send(channel))
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
        await self._is_listening.wait()  # the server may be starting
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
            passed = [
                (str(name), value)
                for name, value in response.headers.items()
                if name.lower() not in _HOP_HEADERS or name.lower() == "content-length"
            ]
            head = ForwardedResponse(response.status, response.reason or "", passed)
            await channel.send(msgspec.msgpack.encode(head))
            async for data, _ in response.content.iter_chunks():
                await _forward_bytes(data, channel)
            channel.end()


LINK = web.AppKey("node-link", NodeLink)


async def _body_of(channel: NodeChannel) -> AsyncIterator[bytes]:
    while (piece := await channel.receive()) is not None:
        yield piece


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
        except OtherNodeError:  # the session has moved meanwhile
            raise node_unreachable() from None
    sessions = context_of(request).sessions
    if request.method == hdrs.METH_POST and request.path in PLACED:
        chosen = link.node.choose_node()
        if chosen != sessions.cluster.number:
            authenticate_app(request)  # only authenticated requests are passed on
            return await link.forward(request, chosen)
    try:
        return await handler(request)
    except OtherNodeError as error:
        is_read = request.content.at_eof() and request.body_exists
        if is_read and READ_BODY not in request:
            raise node_unreachable() from None
        return await link.forward(request, error.owner)


PLACED = frozenset({"/sessions"})
"""The calls that create a session, by their path."""
