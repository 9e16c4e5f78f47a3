"""The session's WebSocket: who may in, and what its commands do."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

import msgspec
from aiohttp import WSMsgType, web

from ...auth.credential import Credential, unauthorized
from ...errors import CloseCode, Error, bad_request
from ...sessions.content import check_content
from ...sessions.session import Session
from ...sessions.session_settings import MAX_CHANGES
from ...sessions.settings import SettingChange
from ...storage.failures import failure_of
from ...ws import protocol
from ...ws.connection import Disconnect, new_socket
from ...ws.session_socket import SessionSocket
from ..context import (
    CREDENTIAL,
    LOGGED_SESSION_ID,
    ServerContext,
    admit,
    authenticate_app,
    context_of,
    prompt,
)
from ..endpoint import Endpoint, Tag
from ..listener import BoundedRequestHandler
from ..request_origin import bearer, check_origin
from ..request_values import read_query

logger = logging.getLogger(__name__)

MAX_FIRST_BYTES = 16 << 10
FIRST_TOO_BIG = f"the first frame has at most {MAX_FIRST_BYTES} bytes"
SETTLE_SECS = 0.05


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
    services = context_of(request)
    session_id = request.match_info["session_id"]
    request[LOGGED_SESSION_ID] = session_id
    check_origin(request, services.settings)
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("this is a WebSocket: upgrade to it")
    query = read_query(request, SocketQuery)
    after = query.after
    session: Session | None = None
    app_name = ""
    if bearer(request) is not None or "Authorization" in request.headers:
        app_name = authenticate_app(request)
        session = await services.sessions.get(session_id, app_name)

    ws = new_socket(request)
    try:
        if session is None:
            with services.sockets.waiting.take(request.remote or ""):
                auth = await _first_frame(request, ws, services.settings.auth_timeout_secs)
            after = after if auth.after is None else auth.after
            session = await _let_in(services, request, auth, session_id)
            app_name = request[CREDENTIAL].app_name
        else:
            await ws.prepare(request)
        _check_protocol(query.protocol)
        if request[CREDENTIAL].is_revoked:  # while other things were waited for
            raise Disconnect(CloseCode.REVOKED, "the credential was revoked")
        _check_room(services, session, app_name)
        if after is not None and after > session.log.head:
            raise Disconnect(CloseCode.POSITION_UNKNOWN, "the log does not reach so far")
    except Disconnect as goodbye:
        await _leave(ws, goodbye)
        return ws

    commands = Commands(services, request)
    cursor = session.log.head if after is None else after
    per_second = services.settings.max_commands_per_sec
    viewer = SessionSocket(request, ws, session, app_name, cursor, commands.dispatch, per_second)
    viewer.send(
        protocol.frame(
            "ready",
            protocol=protocol.PROTOCOL,
            session_id=session.id,
            agent=session.row.agent,
            head=session.log.head,
            state=session.state_name,
            pending_permissions=session.permissions.shown(),
            queued=session.turns.view(),
            model=session.row.model,
            permission=session.row.permission,
            **session.agent_view(),
        )
    )
    try:
        await services.sockets.serve(viewer, request[CREDENTIAL])
    finally:
        await commands.stop()
    return ws


def _check_protocol(version: str) -> None:
    if version != str(protocol.PROTOCOL):
        raise Disconnect(
            CloseCode.PROTOCOL_VERSION, f"this server speaks protocol {protocol.PROTOCOL}"
        )


async def _first_frame(
    request: web.Request, ws: web.WebSocketResponse[bool], timeout: float
) -> protocol.AuthCommand:
    """The frame that must come first, if no header said who asks.

    Until it has come, little more than such a frame is read.
    """
    connection = request.protocol
    if not isinstance(connection, BoundedRequestHandler):
        raise unauthorized()  # the operator's socket: who has it has no need of this
    is_spent = connection.limit(MAX_FIRST_BYTES)
    await ws.prepare(request)
    try:
        async with asyncio.timeout(timeout):
            message = await _receive(ws, is_spent)
            while message.type in (WSMsgType.PING, WSMsgType.PONG):
                if message.type is WSMsgType.PING:
                    await ws.pong(message.data)
                message = await _receive(ws, is_spent)
    except TimeoutError:
        raise Disconnect(CloseCode.AUTH_TIMEOUT, f"no auth within {timeout:g} s") from None
    return _parse_first(message)


async def _receive(ws: web.WebSocketResponse[bool], is_spent: asyncio.Future[None]) -> Any:
    """The next message, unless it is larger than may be read."""
    receiving: asyncio.Future[Any] = asyncio.ensure_future(ws.receive())
    try:
        await asyncio.wait({receiving, is_spent}, return_when=asyncio.FIRST_COMPLETED)
        # What has come is with the task in a moment, and nothing more will come.
        await asyncio.wait({receiving}, timeout=SETTLE_SECS)
        if not receiving.done():
            raise Disconnect(CloseCode.TOO_BIG, FIRST_TOO_BIG)
        return await receiving
    finally:
        receiving.cancel()


def _parse_first(message: Any) -> protocol.AuthCommand:
    if message.type is WSMsgType.TEXT and len(message.data) > MAX_FIRST_BYTES:
        raise Disconnect(CloseCode.TOO_BIG, FIRST_TOO_BIG)
    if message.type is not WSMsgType.TEXT:
        raise Disconnect(CloseCode.BAD_FRAME, "the first frame must be auth")
    try:
        command = protocol.parse_command(message.data)
    except (protocol.MalformedFrameError, protocol.InvalidCommandError):
        raise Disconnect(CloseCode.BAD_FRAME, "the first frame must be auth") from None
    if not isinstance(command, protocol.AuthCommand):
        raise Disconnect(CloseCode.BAD_FRAME, "the first frame must be auth")
    return command


async def _let_in(
    services: ServerContext, request: web.Request, auth: protocol.AuthCommand, session_id: str
) -> Session:
    """The session that a first frame opens."""
    _check_protocol(str(auth.protocol))
    app_name = admit(request, _authenticate(services, request, auth, session_id))
    try:
        return await services.sessions.get(session_id, app_name)
    except Exception as error:  # noqa: BLE001 - failure_of logs it
        failure = failure_of(error, "opening a socket", session=session_id)
        raise Disconnect.of(failure) from None


def _check_room(services: ServerContext, session: Session, app_name: str) -> None:
    if services.sessions.is_draining:
        raise Disconnect(CloseCode.RESTARTING, "the server restarts", retry_after_ms=2000)
    if session.subscribers >= services.settings.max_sockets_per_session:
        raise Disconnect(CloseCode.TOO_MANY_SOCKETS, "the session has all the sockets it may")
    if services.sockets.is_full(app_name):
        raise Disconnect(CloseCode.TOO_MANY_SOCKETS, "the app has all the sockets it may")


def _authenticate(
    services: ServerContext, request: web.Request, auth: protocol.AuthCommand, session_id: str
) -> Credential:
    try:
        if auth.ticket is not None:
            return services.tokens.tickets.redeem(auth.ticket, session_id).credential
        return services.tokens.admit(auth.token, request.remote)
    except Error:
        raise Disconnect(CloseCode.REFUSED, "the credential is refused") from None


async def _leave(ws: web.WebSocketResponse[bool], goodbye: Disconnect) -> None:
    """Close a socket that never became a viewer."""
    if ws.closed:
        return
    try:
        await ws.send_frame(
            protocol.bye_frame(goodbye.code, goodbye.reason, goodbye.retry_after_ms), WSMsgType.TEXT
        )
        await ws.close(code=int(goodbye.code), message=goodbye.reason.encode())
    except ConnectionError:
        return  # it did not wait for the answer


class Commands:
    """What the frames of one socket do."""

    def __init__(self, services: ServerContext, request: web.Request) -> None:
        self._services = services
        self._request = request
        self._settings: list[tuple[Any, SettingChange]] = []
        self._setting: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        if self._setting is not None:
            await asyncio.gather(self._setting, return_exceptions=True)

    async def dispatch(self, viewer: SessionSocket, command: protocol.Command) -> None:
        """Carry out one command.

        Raises:
            Error: it cannot be done; the socket stays open.
            Goodbye: the socket is to be closed.
        """
        session = viewer.session
        match command:
            case protocol.PromptCommand():
                await self._prompt(viewer, command)
            case protocol.CancelCommand(turn_index=turn_index):
                if not session.cancel(turn_index):
                    raise Error("not_found", "there is no such turn to cancel")
            case protocol.PermissionCommand(request_id=request_id, option_id=option_id):
                session.permissions.answer(request_id, option_id=option_id)
            case (
                protocol.SetModeCommand()
                | protocol.SetModelCommand()
                | protocol.SetConfigOptionCommand()
            ):
                self._set(viewer, command)
            case protocol.CloseCommand():
                self._services.sessions.closing.spawn(
                    self._close(session), f"close-{session.id}-by-socket"
                )
            case protocol.PingCommand(id=ping_id):
                viewer.send(protocol.frame("pong", id=ping_id))
            case protocol.AuthCommand():
                self._renew(session, command)

    async def _prompt(self, viewer: SessionSocket, command: protocol.PromptCommand) -> None:
        blocks = check_content(command.prompt)
        turn, duplicate = await prompt(
            self._request, viewer.session, blocks, command.files or [], client_id=command.id
        )
        # No await from here on: `accepted` comes before the turn's protocol.
        viewer.send(
            protocol.frame(
                "accepted",
                id=command.id,
                turn_index=turn.index,
                queued=viewer.session.turns.must_wait(turn),
                duplicate=duplicate,
            )
        )

    def _set(self, viewer: SessionSocket, command: protocol.SettingCommand) -> None:
        """Behind the reader's back: the agent may have to start first, or never answer."""
        if len(self._settings) >= MAX_CHANGES:
            raise Error("rate_limited", "the last changes are not through yet", retryable=True)
        # Asked for now: the client's next prompt waits for it.
        self._settings.append((command.id, viewer.session.request_change(command.setting)))
        if self._setting is None or self._setting.done():
            self._setting = self._services.sessions.tasks.spawn(
                self._carry_out(viewer), f"set-{viewer.session.id}"
            )

    async def _carry_out(self, viewer: SessionSocket) -> None:
        while self._settings:
            frame_id, change = self._settings.pop(0)
            try:
                await change.wait()
            except Error as error:
                viewer.send(protocol.error_frame(error, frame_id))

    async def _close(self, session: Session) -> None:
        await self._services.sessions.close(session, "client")

    def _renew(self, session: Session, auth: protocol.AuthCommand) -> None:
        credential = _authenticate(self._services, self._request, auth, session.id)
        if credential is not self._request[CREDENTIAL]:
            raise Disconnect(CloseCode.REFUSED, "the credential is refused")
