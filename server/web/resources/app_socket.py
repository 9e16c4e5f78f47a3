"""``GET /ws``: one WebSocket for all sessions of an app; and its list as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from aiohttp import web

from ...errors import CloseCode, bad_request, failure_of
from ...ws.app_socket import AppSocket
from ...ws.disconnect import Disconnect
from ...ws.handshake import check_protocol, send_bye
from ...ws.list_follower import ListFollower
from ...ws.upgrade import new_websocket
from ..context import (
    CREDENTIAL,
    REQUEST_ID,
    app_name_of,
    authenticate_app,
    context_of,
    stream_events,
)
from ..endpoint import Endpoint, Tag
from ..field_types import doc
from ..request_origin import bearer, check_origin
from ..request_values import read_query
from ..socket_auth import authenticate_by_frame, check_socket_limits, require_reading
from ..sse import SSE, EventStream

StateFields = Annotated[
    str | None,
    doc("The fields of each session's state, separated by commas; by default all of them."),
]
LIST_STREAM_EXAMPLE = 'data: {"type":"ready","protocol":1,"sessions":[]}\n\n'


class ListFilter(msgspec.Struct, frozen=True):
    """The part of each session's state that a client wants."""

    fields: StateFields = None


class AppSocketQuery(msgspec.Struct, frozen=True):
    """The part of each session's state that a client wants, and the version of the protocol."""

    fields: StateFields = None
    protocol: Annotated[str, doc("The version of the protocol: 1.")] = "1"


def _selected(fields: str | None) -> frozenset[str] | None:
    return None if fields is None else frozenset(fields.split(","))


@Endpoint(
    "GET",
    "/ws",
    tag=Tag.WEBSOCKETS,
    scope="read",
    summary="Open a WebSocket for all sessions",
    description="The list of the app's open sessions and its changes, and the entries of the"
    " sessions that the client subscribes to. A client that cannot send a header sends a first"
    " frame `auth`.",
    auth_in_handler=True,
    waits=("socket",),
    query=AppSocketQuery,
    failures=("rate_limited",),
    statuses={101: "The connection is now a WebSocket."},
)
async def app_socket(request: web.Request) -> web.StreamResponse:
    context = context_of(request)
    check_origin(request, context.settings)
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("this is a WebSocket: upgrade to it")
    query = read_query(request, AppSocketQuery)
    has_header = bearer(request) is not None or "Authorization" in request.headers
    if has_header:
        authenticate_app(request)
        request[CREDENTIAL].require("read")
    response = new_websocket(request)
    try:
        if has_header:
            await response.prepare(request)
        else:
            await authenticate_by_frame(request, response, None)
        check_protocol(query.protocol)
        require_reading(request[CREDENTIAL])
        if request[CREDENTIAL].is_revoked:  # during one of the waits above
            raise Disconnect(CloseCode.REVOKED, "the credential was revoked")
        check_socket_limits(context, request[CREDENTIAL].app_name)
    except Disconnect as disconnect:
        await send_bye(response, disconnect)
        return response

    socket = AppSocket(
        request,
        response,
        request[CREDENTIAL],
        fields=_selected(query.fields),
        request_id=request[REQUEST_ID],
        sessions=context.sessions,
        tokens=context.tokens,
        files=context.files,
    )
    try:
        await socket.open_list()
        await context.sockets.serve(socket, request[CREDENTIAL])
    except Exception as error:  # noqa: BLE001 - failure_of logs it
        await send_bye(response, Disconnect.from_error(failure_of(error, "opening a socket")))
    finally:
        await socket.finish()
    return response


@Endpoint(
    "GET",
    "/sessions/stream",
    tag=Tag.SESSIONS,
    scope="read",
    summary="Follow the list of sessions",
    description="Server-sent events with the frames of `GET /ws`: `ready`, `session` and"
    " `session_gone`.",
    waits=("stream",),
    media={SSE: LIST_STREAM_EXAMPLE},
    failures=("rate_limited",),
)
async def follow_sessions(request: web.Request, query: ListFilter) -> web.StreamResponse:
    context, app_name = context_of(request), app_name_of(request)
    changed = asyncio.Event()
    sessions = ListFollower(context.sessions, app_name, _selected(query.fields), changed.set)
    with context.sockets.stream(app_name):
        async with stream_events(request) as stream:
            async for frame in _list_frames(sessions, changed, stream):
                await stream.send_frame(frame)
    return stream.response


async def _list_frames(
    sessions: ListFollower, changed: asyncio.Event, stream: EventStream
) -> AsyncIterator[bytes]:
    """Yield the list and then its changes, without end."""
    try:
        yield await sessions.open()
        while True:
            changed.clear()
            for frame in sessions.take():
                yield frame
            try:
                async with asyncio.timeout(stream.keep_alive_secs):
                    await changed.wait()
            except TimeoutError:
                await stream.keep_alive()
    finally:
        sessions.close()
