"""A WebSocket on all sessions of an app: the list of sessions, and any number of their logs."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web

from ..auth.credential import Credential
from ..auth.tokens import TokenRegistry
from ..codec import call_off_loop
from ..errors import CloseCode, Error, ErrorCode, bad_request, failure_of
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from ..uploads.files import FileStore
from . import framing, protocol
from .connection import WRITE_BYTES, WebSocketConnection
from .cursors import SessionCursors
from .disconnect import Disconnect
from .handshake import authenticate
from .list_follower import ListFollower
from .session_commands import SessionCommands, ready_frame


class AppSocket(WebSocketConnection):
    """A follower of an app's list of sessions, which may subscribe to sessions and prompt them.

    Args:
        fields: of a session's state in the list; None for all.
        request_id: of the upgrade, for the server's log.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        credential: Credential,
        *,
        fields: frozenset[str] | None,
        request_id: str,
        sessions: SessionRegistry,
        tokens: TokenRegistry,
        files: FileStore,
    ) -> None:
        super().__init__(
            request,
            response,
            credential.app_name,
            name=f"socket of app {credential.app_name}",
            messages_per_sec=sessions.settings.max_commands_per_sec,
        )
        self._credential = credential
        self._request_id = request_id
        self._sessions = sessions
        self._tokens = tokens
        self._files = files
        self._list = ListFollower(sessions, credential.app_name, fields, self.schedule_write)
        self._cursors = SessionCursors(self.schedule_write)
        self._commands: dict[str, SessionCommands] = {}

    @property
    def lag(self) -> int:
        return self._cursors.lag

    async def open_list(self) -> None:
        """Follow the list, and send its present state. :meth:`finish` must follow."""
        self.send(await self._list.open())

    def on_open(self) -> None:
        pass

    def on_close(self) -> None:
        self._cursors.clear()

    async def finish(self) -> None:
        """Follow nothing any more, and wait for the changes of settings that were requested."""
        self._list.close()
        for commands in self._commands.values():
            await commands.finish()

    # Frames to the client

    async def next_frames(self) -> list[bytes]:
        entries, ended = await self._cursors.read(WRITE_BYTES)
        changes = self._list.take(self._cursors)
        gone = [self._list.remove(session_id) for session_id in ended]
        # The outbox comes first: `accepted` precedes the entries of its turn.
        return [
            *self._outbox.take(),
            *map(framing.text_frame, changes),
            *entries,
            *map(framing.text_frame, gone),
        ]

    def has_more(self) -> bool:
        return self._cursors.is_due or bool(self._list)

    def heartbeat_frames(self) -> list[bytes]:
        return [framing.text_frame(protocol.frame("heartbeat"))]

    def closing_frames(self, disconnect: Disconnect) -> list[bytes]:
        bye = protocol.bye_frame(disconnect.code, disconnect.reason, disconnect.retry_after_ms)
        return [framing.text_frame(bye)]

    # Commands of the client

    async def on_text(self, data: bytes) -> None:
        try:
            session_id, command = await call_off_loop(protocol.parse_addressed, data)
        except protocol.MalformedFrameError:
            self.close(Disconnect(CloseCode.BAD_FRAME, "a frame is one JSON object"))
            return
        except protocol.InvalidCommandError as error:
            self.send(protocol.error_frame(error, error.frame_id))
            return
        try:
            await self._execute(session_id, command)
        except Disconnect as disconnect:
            self.close(disconnect)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, "a command", session=str(session_id))
            frame = protocol.error_frame(failure, command.id)
            is_known = isinstance(session_id, str)
            self.send(protocol.addressed(frame, session_id) if is_known else frame)

    async def _execute(self, session_id: Any, command: protocol.AppCommand) -> None:
        """Execute one command.

        Raises:
            Error: the command fails; the socket stays open.
            Disconnect: the socket must be closed.
        """
        match command:
            case protocol.AuthCommand():
                self._authenticate_again(command)
                return
            case protocol.PingCommand(id=ping_id) if session_id is None:
                self.send(protocol.frame("pong", id=ping_id))
                return
        if not isinstance(session_id, str):
            raise bad_request("session_id: is needed")
        session = await self._sessions.get(session_id, self.app_name)
        match command:
            case protocol.SubscribeCommand(after=after):
                self._subscribe(session, after)
            case protocol.UnsubscribeCommand():
                self._cursors.remove(session.id)
            case _:
                await self._commands_for(session).execute(command)

    def _subscribe(self, session: Session, after: int | None) -> None:
        """Send the session's state, and then its entries.

        Raises:
            Error: ``bad_request`` or ``rate_limited``.
        """
        settings = self._sessions.settings
        is_subscribed = session.id in self._cursors
        if after is not None and after > session.log.head:
            raise bad_request(f"after: the newest entry is {session.log.head}")
        if not is_subscribed:
            if len(self._cursors) >= settings.max_subscriptions_per_socket:
                raise Error(ErrorCode.RATE_LIMITED, "subscription limit reached for this socket")
            if session.subscribers >= settings.max_sockets_per_session:
                raise Error(ErrorCode.RATE_LIMITED, "connection limit reached for this session")
        self.send(ready_frame(session))
        if after is not None or not is_subscribed:
            self._cursors.add(session, session.log.head if after is None else after)

    def _commands_for(self, session: Session) -> SessionCommands:
        self._commands = {
            known: commands for known, commands in self._commands.items() if commands.is_pending
        }
        if session.id not in self._commands:
            self._commands[session.id] = SessionCommands(
                session,
                self._credential,
                partial(self._send_addressed, session.id),
                request_id=self._request_id,
                sessions=self._sessions,
                files=self._files,
            )
        return self._commands[session.id]

    def _send_addressed(self, session_id: str, message: bytes) -> None:
        self.send(protocol.addressed(message, session_id))

    def _authenticate_again(self, command: protocol.AuthCommand) -> None:
        """Check the credential of a later auth frame: it must be the same one."""
        credential = authenticate(self._tokens, command, None, self._request.remote)
        if credential is not self._credential:
            raise Disconnect(CloseCode.REFUSED, "the credential is refused")
