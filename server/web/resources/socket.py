"""``GET /sessions/{session_id}/ws``: the upgrade to the session protocol."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from ...errors import CloseCode, bad_request, failure_of
from ...sessions.remote_session import RemoteSession, ViewedSession
from ...sessions.session import Session
from ...ws.disconnect import Disconnect
from ...ws.handshake import check_protocol, send_bye
from ...ws.session_socket import SessionSocket
from ...ws.upgrade import new_websocket
from ..context import (
    CREDENTIAL,
    LOGGED_SESSION_ID,
    REQUEST_ID,
    ServerContext,
    authenticate_reader,
    context_of,
)
from ..endpoint import Endpoint, Tag
from ..request_origin import bearer, check_origin
from ..request_values import read_query
from ..socket_auth import authenticate_by_frame, check_socket_limits, require_reading


class SocketQuery(msgspec.Struct, frozen=True):
    """The position at which a socket starts."""

    after: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=10**18)] | None,
        msgspec.Meta(
            description="The last `seq` that the client has; by default only new entries are sent."
        ),
    ] = None
    protocol: Annotated[str, msgspec.Meta(description="The version of the protocol: 1.")] = "1"


@Endpoint(
    "GET",
    "/sessions/{session_id}/ws",
    tag=Tag.WEBSOCKETS,
    scope="read",
    summary="Open the session's WebSocket",
    description="The primary interface, which OpenAPI cannot describe. A client that cannot send a"
    " header sends a first frame `auth`.",
    auth_in_handler=True,
    waits=("socket",),
    query=SocketQuery,
    failures=("rate_limited",),
    statuses={101: "The connection is now a WebSocket."},
)
async def session_socket(request: web.Request) -> web.StreamResponse:
    context = context_of(request)
    session_id = request.match_info["session_id"]
    request[LOGGED_SESSION_ID] = session_id
    check_origin(request, context.settings)
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("this is a WebSocket: upgrade to it")
    query = read_query(request, SocketQuery)
    after = query.after
    session: Session | RemoteSession | None = None
    if bearer(request) is not None or "Authorization" in request.headers:
        app_name = authenticate_reader(request, session_id)
        request[CREDENTIAL].require("read")
        session = await context.sessions.get_viewed(session_id, app_name)

    response = new_websocket(request)
    try:
        if session is None:
            session, auth_after = await _open_by_frame(request, response, session_id)
            after = after if auth_after is None else auth_after
        else:
            await response.prepare(request)
        check_protocol(query.protocol)
        require_reading(request[CREDENTIAL])
        if request[CREDENTIAL].is_revoked:  # during one of the waits above
            raise Disconnect(CloseCode.REVOKED, "the credential was revoked")
        _check_limits(context, session, request[CREDENTIAL].app_name)
        if after is not None and after > session.log.head:
            raise Disconnect(CloseCode.POSITION_UNKNOWN, "`after` is past the end of the log")
    except Disconnect as disconnect:
        await send_bye(response, disconnect)
        return response

    socket = SessionSocket(
        request,
        response,
        session,
        request[CREDENTIAL],
        cursor=after,
        request_id=request[REQUEST_ID],
        sessions=context.sessions,
        tokens=context.tokens,
        files=context.files,
    )
    try:
        await context.sockets.serve(socket, request[CREDENTIAL])
    finally:
        await socket.finish()
    return response


async def _open_by_frame(
    request: web.Request, response: web.WebSocketResponse[bool], session_id: str
) -> tuple[Session | RemoteSession, int | None]:
    """Return the session, and the position that the client's first frame names.

    Raises:
        Disconnect: the client may not open the session.
    """
    auth = await authenticate_by_frame(request, response, session_id)
    app_name = request[CREDENTIAL].app_name
    try:
        return await context_of(request).sessions.get_viewed(session_id, app_name), auth.after
    except Exception as error:  # noqa: BLE001 - failure_of logs it
        failure = failure_of(error, "opening a socket", session=session_id)
        raise Disconnect.from_error(failure) from None


def _check_limits(context: ServerContext, session: ViewedSession, app_name: str) -> None:
    if session.subscribers >= context.settings.max_sockets_per_session:
        reason = "connection limit reached for this session"
        raise Disconnect(CloseCode.TOO_MANY_SOCKETS, reason)
    check_socket_limits(context, app_name)
