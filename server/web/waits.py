"""Requests that wait for a turn during a reload: the next version answers them.

The connection is passed to the next version, which handles the request again. A secret replaces the
prompt: it identifies the turn that the request has begun, and the request waits for that turn.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
from aiohttp import web

from ..codec import dumps
from ..reload.state import PassedDescriptors
from .listener import Listener
from .request_handler import BoundedRequestHandler

CONTINUES = "X-Clawdforge-Continues"
"""The header with the secret, from the server to itself."""
_REPLACED = frozenset(
    (b"content-length", b"transfer-encoding", b"expect", CONTINUES.lower().encode())
)
_BODY = dumps({"prompt": "-"})


class WaitedTurn(NamedTuple):
    """The turn that a request waits for.

    Attributes:
        is_steered: whether the prompt was added to it; None if that was not requested.
    """

    turn_index: int
    is_steered: bool | None


CONTINUED = web.AppKey("continued-waits", dict[str, WaitedTurn])
"""The turns of the waits of an earlier version of the server, by their secrets."""


class CarriedWait(msgspec.Struct, kw_only=True):
    """A request that waits, for the next version of the server.

    Attributes:
        descriptor: of the connection.
        head: the request, without its end.
    """

    descriptor: int
    head: bytes
    turn_index: int
    is_steered: bool | None


@contextlib.contextmanager
def waiting_for(request: web.Request, turn: WaitedTurn) -> Iterator[None]:
    """Return a block in which the request only waits for a turn, also during a reload."""
    connection = request.protocol
    if not isinstance(connection, BoundedRequestHandler):
        yield
        return
    version = f"HTTP/{request.version.major}.{request.version.minor}"
    lines = [f"{request.method} {request.raw_path} {version}".encode("utf-8", "surrogateescape")]
    lines += [
        b"%b: %b" % header for header in request.raw_headers if header[0].lower() not in _REPLACED
    ]
    connection.is_busy, connection.wait = False, (b"\r\n".join(lines), turn)
    try:
        yield
    finally:
        connection.is_busy, connection.wait = True, None


def continued_turn(request: web.Request) -> WaitedTurn | None:
    """The turn that a request of an earlier version of the server waits for."""
    return request.app.get(CONTINUED, {}).pop(request.headers.get(CONTINUES, ""), None)


def pack_waits(
    connections: Iterable[BoundedRequestHandler], passed: PassedDescriptors
) -> list[CarriedWait]:
    waits = []
    for connection in connections:
        if connection.wait is None or connection.transport is None or connection.is_writing:
            continue
        head, turn = connection.wait
        client_socket = connection.transport.get_extra_info("socket")
        waits.append(
            CarriedWait(
                descriptor=passed.add(client_socket.fileno()),
                head=head,
                turn_index=turn.turn_index,
                is_steered=turn.is_steered,
            )
        )
    return waits


async def continue_waits(
    app: web.Application, listener: Listener, waits: Iterable[CarriedWait]
) -> None:
    """Handle the waiting requests of an earlier version of the server again."""
    continued = app[CONTINUED]
    for wait in waits:
        secret = secrets.token_urlsafe(32)
        continued[secret] = WaitedTurn(wait.turn_index, wait.is_steered)
        protocol = await listener.adopt(wait.descriptor)
        added = f"{CONTINUES}: {secret}\r\nContent-Length: {len(_BODY)}\r\n\r\n"
        protocol.data_received(wait.head + b"\r\n" + added.encode() + _BODY)
