"""The beginning of a session socket: its auth frame, its checks, and the close of a refused socket.

The auth frame comes first if the upgrade had no ``Authorization`` header.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import WSMsgType, web

from ..auth.credential import Credential
from ..auth.shared_tickets import redeem_ticket
from ..auth.shares import is_share
from ..auth.tokens import TokenRegistry
from ..errors import CloseCode, Error, ErrorCode
from .disconnect import Disconnect
from .protocol import (
    PROTOCOL,
    AuthCommand,
    InvalidCommandError,
    MalformedFrameError,
    bye_frame,
    parse_command,
)

MAX_AUTH_FRAME_BYTES = 16 << 10
SETTLE_SECS = 0.05
"""The time in which a received message reaches the task that waits for it."""


async def receive_auth(
    response: web.WebSocketResponse[bool], limit_reached: asyncio.Future[None], timeout: float
) -> AuthCommand:
    """Receive the auth frame.

    Args:
        limit_reached: done once the client has sent more than an auth frame may have.
        timeout: seconds in which the frame must arrive.

    Raises:
        Disconnect: the frame is late, too large or not an auth frame.
    """
    try:
        async with asyncio.timeout(timeout):
            message = await _receive(response, limit_reached)
            while message.type in (WSMsgType.PING, WSMsgType.PONG):
                if message.type is WSMsgType.PING:
                    await response.pong(message.data)
                message = await _receive(response, limit_reached)
    except TimeoutError:
        raise Disconnect(CloseCode.AUTH_TIMEOUT, f"no auth within {timeout:g} s") from None
    if message.type is WSMsgType.TEXT and len(message.data) > MAX_AUTH_FRAME_BYTES:
        raise _too_big()
    command: Any = None
    if message.type is WSMsgType.TEXT:
        with contextlib.suppress(MalformedFrameError, InvalidCommandError):
            command = parse_command(message.data)
    if not isinstance(command, AuthCommand):
        raise Disconnect(CloseCode.BAD_FRAME, "the first frame must be auth")
    return command


async def _receive(
    response: web.WebSocketResponse[bool], limit_reached: asyncio.Future[None]
) -> Any:
    receiving: asyncio.Future[Any] = asyncio.ensure_future(response.receive())
    try:
        await asyncio.wait({receiving, limit_reached}, return_when=asyncio.FIRST_COMPLETED)
        # If the limit is reached, nothing more is read: a message is either complete or too big.
        await asyncio.wait({receiving}, timeout=SETTLE_SECS)
        if not receiving.done():
            raise _too_big()
        return await receiving
    finally:
        receiving.cancel()


def _too_big() -> Disconnect:
    reason = f"the first frame has at most {MAX_AUTH_FRAME_BYTES} bytes"
    return Disconnect(CloseCode.TOO_BIG, reason)


def check_protocol(version: str) -> None:
    """Check the version of the protocol that a client asks for.

    Raises:
        Disconnect: the server does not speak that version.
    """
    if version != str(PROTOCOL):
        raise Disconnect(CloseCode.PROTOCOL_VERSION, f"this server speaks protocol {PROTOCOL}")


async def authenticate(
    tokens: TokenRegistry, command: AuthCommand, session_id: str | None, address: str | None
) -> Credential:
    """Authenticate a client by the token or the ticket of its auth frame.

    Args:
        session_id: the session that a ticket must be for; None if no ticket is accepted.

    Raises:
        Disconnect: the credential is refused.
    """
    try:
        if command.ticket is not None and session_id is not None:
            return (await redeem_ticket(tokens, command.ticket, session_id))[0]
        if session_id is not None and command.token is not None and is_share(command.token):
            return tokens.shares.authenticate(command.token, session_id)
        return tokens.authenticate(command.token, address)
    except Error as error:
        if error.code is ErrorCode.NOT_FOUND:
            raise Disconnect.from_error(error) from None
        raise Disconnect(CloseCode.REFUSED, "the credential is refused") from None


async def send_bye(response: web.WebSocketResponse[bool], disconnect: Disconnect) -> None:
    """Close a WebSocket that has not become a :class:`SessionSocket`."""
    if response.closed:
        return
    bye = bye_frame(disconnect.code, disconnect.reason, disconnect.retry_after_ms)
    try:
        await response.send_frame(bye, WSMsgType.TEXT)
        await response.close(code=int(disconnect.code), message=disconnect.reason.encode())
    except ConnectionError:
        pass  # the client has disconnected
