"""The upgrade to a WebSocket whose client authenticates in its first frame."""

from __future__ import annotations

from aiohttp import web

from ..auth.credential import Credential, unauthorized
from ..errors import CloseCode, Error
from ..ws.disconnect import Disconnect
from ..ws.handshake import MAX_AUTH_FRAME_BYTES, authenticate, check_protocol, receive_auth
from ..ws.protocol import AuthCommand
from .context import ServerContext, context_of, record_credential
from .request_handler import BoundedRequestHandler


async def authenticate_by_frame(
    request: web.Request, response: web.WebSocketResponse[bool], session_id: str | None
) -> AuthCommand:
    """Upgrade, authenticate the client by its first frame, and record its credential.

    Until then the server reads little more than that frame.

    Args:
        session_id: the session that a ticket must be for; None if no ticket is accepted.

    Raises:
        Disconnect: the frame or its credential is refused.
    """
    context = context_of(request)
    connection = request.protocol
    with context.sockets.unauthenticated.acquire(request.remote or ""):
        if not isinstance(connection, BoundedRequestHandler):
            raise unauthorized()  # clients of the operator's socket must send a header
        limit_reached = connection.limit_reading(MAX_AUTH_FRAME_BYTES)
        await response.prepare(request)
        timeout = context.settings.auth_timeout_secs
        auth = await receive_auth(response, limit_reached, timeout)
    check_protocol(str(auth.protocol))
    try:
        credential = await authenticate(context.tokens, auth, session_id, request.remote)
    except Disconnect:
        await connection.pause(context.sockets.refusals.delay(request.remote or ""))
        raise
    record_credential(request, credential)
    return auth


def check_socket_limits(context: ServerContext, app_name: str) -> None:
    """Check that the app may open another socket.

    Raises:
        Disconnect: it may not, or the server is stopping.
    """
    if context.sessions.is_draining:
        raise Disconnect(CloseCode.RESTARTING, "the server restarts", retry_after_ms=2000)
    if context.sockets.is_full(app_name):
        reason = "connection limit reached for this app"
        raise Disconnect(CloseCode.TOO_MANY_SOCKETS, reason)


def require_reading(credential: Credential) -> None:
    """Check that a credential may follow sessions.

    Raises:
        Disconnect: it may not.
    """
    try:
        credential.require("read")
    except Error as error:
        raise Disconnect.from_error(error) from None
