"""A WebSocket on all sessions of an app: the list of sessions, and any number of their logs."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web

from ..auth.credential import Credential
from ..auth.tokens import TokenRegistry
from ..errors import Error, ErrorCode, bad_request
from ..sessions.registry import SessionRegistry
from ..sessions.remote_session import RemoteSession
from ..sessions.session import Session
from ..uploads.files import FileStore
from . import framing, protocol
from .command_socket import CommandSocket
from .cursors import SessionCursors
from .list_follower import ListFollower
from .paced_writer import WRITE_BYTES
from .remote_commands import RemoteCommands, commands_for
from .session_commands import SessionCommands, ready_of


class AppSocket(CommandSocket):
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
            credential,
            tokens,
            name=f"socket of app {credential.app_name}",
            tickets_for=None,
            commands_per_sec=sessions.settings.max_commands_per_sec,
        )
        self._request_id = request_id
        self._sessions = sessions
        self._files = files
        self._list = ListFollower(sessions, credential.app_name, fields, self.schedule_write)
        self._cursors = SessionCursors(self.schedule_write)
        self._commands: dict[str, SessionCommands | RemoteCommands] = {}

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
        changes = self._list.take(lambda id_: id_ in self._cursors or id_ in ended)
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

    # Commands of the client

    def send_failure(self, session_id: Any, frame: bytes) -> None:
        is_known = isinstance(session_id, str)
        self.send(protocol.addressed(frame, session_id) if is_known else frame)

    async def execute(
        self, session_id: Any, command: protocol.SessionCommand | protocol.OnlyAppCommand
    ) -> None:
        if isinstance(command, protocol.PingCommand) and session_id is None:
            self.send(protocol.frame("pong", id=command.id))
            return
        if not isinstance(session_id, str):
            raise bad_request("session_id: is needed")
        session = await self._sessions.get_viewed(session_id, self.app_name)
        match command:
            case protocol.SubscribeCommand(after=after):
                self._subscribe(session, after)
            case protocol.UnsubscribeCommand():
                self._cursors.remove(session.id)
            case _:
                commands = self._commands_for(session)
                if isinstance(commands, RemoteCommands):
                    await commands.execute(command, self.text)
                else:
                    await commands.execute(command)

    def _subscribe(self, session: Session | RemoteSession, after: int | None) -> None:
        """Send the session's state, and then its entries.

        Raises:
            Error: ``bad_request`` or ``rate_limited``.
        """
        self._credential.require("read")
        settings = self._sessions.settings
        is_subscribed = session.id in self._cursors
        if after is not None and after > session.log.head:
            raise bad_request(f"after: the newest entry is {session.log.head}")
        if not is_subscribed:
            if len(self._cursors) >= settings.max_subscriptions_per_socket:
                raise Error(ErrorCode.RATE_LIMITED, "subscription limit reached for this socket")
            if session.subscribers >= settings.max_sockets_per_session:
                raise Error(ErrorCode.RATE_LIMITED, "connection limit reached for this session")
        ready, head = ready_of(session)
        self.send(ready)
        if after is not None or not is_subscribed:
            self._cursors.add(session, head if after is None else after)

    def _commands_for(self, session: Session | RemoteSession) -> SessionCommands | RemoteCommands:
        self._commands = {
            known: commands for known, commands in self._commands.items() if commands.is_pending
        }
        known = self._commands.get(session.id)
        if known is None:
            known = self._commands[session.id] = commands_for(
                session,
                self._credential,
                partial(self._send_addressed, session.id),
                request_id=self._request_id,
                sessions=self._sessions,
                files=self._files,
                hold=partial(self._cursors.hold, session.id),
            )
        return known

    def _send_addressed(self, session_id: str, message: bytes) -> None:
        self.send(protocol.addressed(message, session_id))
