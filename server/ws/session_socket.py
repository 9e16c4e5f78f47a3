"""A WebSocket on one session: a cursor in the session's log, and the client's commands.

The socket sends the log's entries after its cursor and moves the cursor. Replay and live delivery
are the same code, so that no entry can be omitted or repeated. A slow client takes no memory except
its transport's buffer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..auth.credential import Credential
from ..auth.prompts import send_prompt_with_files
from ..auth.tokens import TokenRegistry
from ..codec import call_off_loop
from ..errors import CloseCode, Error, ErrorCode, failure_of
from ..sessions.content import check_content
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from ..sessions.session_settings import MAX_CHANGES
from ..sessions.settings import SettingChange
from ..uploads.files import FileStore
from . import framing, protocol
from .connection import WRITE_BYTES, WebSocketConnection
from .disconnect import Disconnect
from .handshake import authenticate


class SessionSocket(WebSocketConnection):
    """A subscriber of *session* that may also send commands.

    Args:
        cursor: the position of the last entry that the client has.
        request_id: of the upgrade, for the server's log.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        session: Session,
        credential: Credential,
        *,
        cursor: int,
        request_id: str,
        sessions: SessionRegistry,
        tokens: TokenRegistry,
        files: FileStore,
    ) -> None:
        super().__init__(
            request,
            response,
            credential.app_name,
            name=f"socket of session {session.id}",
            messages_per_sec=sessions.settings.max_commands_per_sec,
        )
        self.session = session
        self._credential = credential
        self._cursor = cursor
        self._request_id = request_id
        self._sessions = sessions
        self._tokens = tokens
        self._files = files
        self._is_send_scheduled = False
        # Changes of settings that have been requested, each with the id of its frame.
        self._changes: list[tuple[Any, SettingChange]] = []
        self._reporting: asyncio.Task[None] | None = None

    @property
    def lag(self) -> int:
        return self.session.log.head - self._cursor

    def on_open(self) -> None:
        self.session.subscribers += 1
        self.session.log.subscribe(self._on_new_entries)
        self.send(self._ready_frame())

    def on_close(self) -> None:
        self.session.log.unsubscribe(self._on_new_entries)
        self.session.subscribers -= 1

    async def finish(self) -> None:
        """Wait until the changes of settings that the client has requested are done."""
        if self._reporting is not None:
            await asyncio.gather(self._reporting, return_exceptions=True)

    # Frames to the client

    def _ready_frame(self) -> bytes:
        session = self.session
        return protocol.frame(
            "ready",
            protocol=protocol.PROTOCOL,
            session_id=session.id,
            agent=session.row.agent,
            head=session.log.head,
            state=session.state_name,
            pending_permissions=session.permissions.view(),
            queued=session.turns.view(),
            model=session.row.model,
            permission=session.row.permission,
            **session.agent_view(),
        )

    def _on_new_entries(self) -> None:
        if not self._is_send_scheduled:
            self._is_send_scheduled = True
            asyncio.get_running_loop().call_soon(self._send_new)

    def _send_new(self) -> None:
        """Write new entries directly if there is nothing else to write; else wake the writer.

        The writer takes several iterations of the event loop, which would be noticeable with a
        thousand subscribers of one session.
        """
        self._is_send_scheduled = False
        batches = self.session.log.recent(self._cursor) if self._can_write_now() else None
        if batches is None or len(batches) > 1 or (batches and len(batches[0].body) > WRITE_BYTES):
            self.schedule_write()
        elif batches:
            self._write(framing.batch_frames(batches[0]))
            self._cursor = batches[0].last
            self._last_write = self._clock()

    def _can_write_now(self) -> bool:
        """Whether the writer waits, and the transport's buffer is empty."""
        return (
            self._is_idle
            and not self.session.is_log_complete  # the writer must close the connection
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        )

    async def next_frames(self) -> list[bytes]:
        batches = await self.session.log.read(self._cursor)
        # The outbox comes first: `accepted` precedes the entries of its turn.
        frames = self._outbox.take()
        size = sum(map(len, frames))
        for batch in batches:
            frames.append(framing.batch_frames(batch))
            self._cursor = batch.last
            size += len(frames[-1])
            if size >= WRITE_BYTES:
                break
        return frames

    def has_more(self) -> bool:
        return self._cursor < self.session.log.head

    def heartbeat_frames(self) -> list[bytes]:
        return [framing.text_frame(protocol.frame("heartbeat", head=self.session.log.head))]

    def final_close(self) -> Disconnect | None:
        if self.session.is_log_complete and self._cursor >= self.session.log.last:
            return Disconnect(CloseCode.SESSION_CLOSED, "the session is closed")
        return None

    def closing_frames(self, disconnect: Disconnect) -> list[bytes]:
        bye = protocol.bye_frame(disconnect.code, disconnect.reason, disconnect.retry_after_ms)
        return [framing.text_frame(bye)]

    # Commands of the client

    async def on_text(self, data: bytes) -> None:
        try:
            command = await call_off_loop(protocol.parse_command, data)
        except protocol.MalformedFrameError:
            self.close(Disconnect(CloseCode.BAD_FRAME, "a frame is one JSON object"))
            return
        except protocol.InvalidCommandError as error:
            self.send(protocol.error_frame(error, error.frame_id))
            return
        try:
            await self._execute(command)
        except Disconnect as disconnect:
            self.close(disconnect)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, "a command", session=self.session.id)
            self.send(protocol.error_frame(failure, command.id))

    async def _execute(self, command: protocol.Command) -> None:
        """Execute one command.

        Raises:
            Error: the command fails; the socket stays open.
            Disconnect: the socket must be closed.
        """
        session = self.session
        match command:
            case protocol.PromptCommand():
                await self._prompt(command)
            case protocol.CancelCommand(turn_index=turn_index):
                if not session.cancel(turn_index):
                    raise Error(ErrorCode.NOT_FOUND, "there is no such turn to cancel")
            case protocol.PermissionCommand(request_id=request_id, option_id=option_id):
                session.permissions.resolve(request_id, option_id=option_id)
            case (
                protocol.SetModeCommand()
                | protocol.SetModelCommand()
                | protocol.SetConfigOptionCommand()
            ):
                self._change_setting(command)
            case protocol.CloseCommand():
                self._sessions.closing.spawn(self._close_session(), f"close-{session.id}-by-socket")
            case protocol.PingCommand(id=ping_id):
                self.send(protocol.frame("pong", id=ping_id))
            case protocol.AuthCommand():
                self._authenticate_again(command)

    async def _prompt(self, command: protocol.PromptCommand) -> None:
        turn, is_duplicate = await send_prompt_with_files(
            self._credential,
            self.session,
            self._files,
            check_content(command.prompt),
            command.files or [],
            request_id=self._request_id,
            client_id=command.id,
        )
        # No await from here on: `accepted` must precede the turn's entries.
        self.send(
            protocol.frame(
                "accepted",
                id=command.id,
                turn_index=turn.index,
                queued=self.session.turns.must_wait(turn),
                duplicate=is_duplicate,
            )
        )

    def _change_setting(self, command: protocol.SettingCommand) -> None:
        """Request a change in the background: the agent may have to start, or may never respond."""
        if len(self._changes) >= MAX_CHANGES:
            raise Error(
                ErrorCode.RATE_LIMITED, "too many setting changes are pending", retryable=True
            )
        # Requested at once, so that the client's next prompt waits for it.
        self._changes.append((command.id, self.session.request_change(command.setting)))
        if self._reporting is None or self._reporting.done():
            self._reporting = self._sessions.tasks.spawn(
                self._report_failed_changes(), f"set-{self.session.id}"
            )

    async def _report_failed_changes(self) -> None:
        while self._changes:
            frame_id, change = self._changes.pop(0)
            try:
                await change.wait()
            except Error as error:
                self.send(protocol.error_frame(error, frame_id))

    async def _close_session(self) -> None:
        await self._sessions.close(self.session, "client")

    def _authenticate_again(self, command: protocol.AuthCommand) -> None:
        """Check the credential of a later auth frame: it must be the same one."""
        address = self._request.remote
        credential = authenticate(self._tokens, command, self.session.id, address)
        if credential is not self._credential:
            raise Disconnect(CloseCode.REFUSED, "the credential is refused")
