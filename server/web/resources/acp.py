"""``GET /acp``: the upgrade to ACP over WebSocket."""

from __future__ import annotations

import uuid

from aiohttp import hdrs, web

from ...acp.connection import AcpConnection
from ...acp.params import UrlOptions
from ...errors import Error, ErrorCode, bad_request, draining
from ...ws.upgrade import new_websocket
from ..context import (
    CREDENTIAL,
    LOGGED_SESSION_ID,
    REQUEST_ID,
    ServerContext,
    authenticate_app,
    context_of,
    record_credential,
)
from ..endpoint import Endpoint, Tag
from ..request_origin import check_origin
from ..request_values import read_query
from ..responses import error_response

SUBPROTOCOL = "acp"
AUTH_PREFIX = "acp.auth."
CONNECTION_ID = "Acp-Connection-Id"


@Endpoint(
    "GET",
    "/acp",
    tag=Tag.WEBSOCKETS,
    scope="read",
    summary="Open a WebSocket that speaks ACP",
    description="The Agent Client Protocol as agents speak it, one JSON-RPC message per text frame."
    " A client that cannot send a header offers the token as a subprotocol.",
    auth_in_handler=True,
    waits=("socket",),
    query=UrlOptions,
    failures=("upgrade_required", "rate_limited", "draining"),
    statuses={101: "The connection is now a WebSocket."},
)
async def acp_socket(request: web.Request) -> web.StreamResponse:
    context = context_of(request)
    if request.headers.get(hdrs.UPGRADE, "").strip().lower() != "websocket":
        error = Error(ErrorCode.UPGRADE_REQUIRED, "this is a WebSocket: upgrade to it")
        response = error_response(error, request[REQUEST_ID])
        response.headers[hdrs.UPGRADE] = "websocket"
        return response
    check_origin(request, context.settings)
    offered = _subprotocols(request)
    only_session = await _authenticate_upgrade(context, request, offered)
    credential = request[CREDENTIAL]
    credential.require("read")
    options = read_query(request, UrlOptions)
    if context.sessions.is_draining:
        raise draining()
    if context.sockets.is_full(credential.app_name):
        raise Error(ErrorCode.RATE_LIMITED, "connection limit reached for this app", retry_after=5)
    if only_session is not None:
        request[LOGGED_SESSION_ID] = only_session

    connection_id = str(uuid.uuid4())
    ws = new_websocket(request, (SUBPROTOCOL,) if offered else ())
    ws.headers[CONNECTION_ID] = connection_id
    await ws.prepare(request)
    await context.sockets.serve(
        AcpConnection(
            request,
            ws,
            credential,
            context.sessions,
            context.logins,
            connection_id=connection_id,
            upgrade_id=request[REQUEST_ID],
            options=options,
            only_session=only_session,
        ),
        credential,
    )
    return ws


def _subprotocols(request: web.Request) -> list[str]:
    """The subprotocols that the client offers.

    aiohttp logs offers that it does not support, and one may contain a token. Therefore an offer
    without the supported subprotocol is refused here.
    """
    values = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    offered = [name.strip() for value in values for name in value.split(",")]
    if offered and SUBPROTOCOL not in offered:
        raise bad_request(f"the subprotocol {SUBPROTOCOL!r} must be among those offered")
    return offered


async def _authenticate_upgrade(
    context: ServerContext, request: web.Request, offered: list[str]
) -> str | None:
    """Authenticate the client by its header, or by the token or ticket among its subprotocols.

    Returns:
        The id of the only session that a ticket admits to, or None.

    Raises:
        Error: ``unauthorized``.
    """
    secrets = [name.removeprefix(AUTH_PREFIX) for name in offered if name.startswith(AUTH_PREFIX)]
    if "Authorization" in request.headers or not secrets:
        authenticate_app(request)
        return None
    credential, only_session = await context.tokens.authenticate_with_ticket(
        secrets[0], request.remote
    )
    record_credential(request, credential)
    return only_session
