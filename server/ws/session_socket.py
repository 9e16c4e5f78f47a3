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
from ..auth.tokens import TokenRegistry
from ..errors import CloseCode
from ..sessions.registry import SessionRegistry
from ..sessions.remote_session import RemoteSession
from ..sessions.session import Session
from ..uploads.files import FileStore
from . import framing, protocol
from .command_socket import CommandSocket
from .disconnect import Disconnect
from .paced_writer import WRITE_BYTES
from .remote_commands import RemoteCommands, commands_for
from .session_commands import ready_of


class SessionSocket(CommandSocket):
    """A subscriber of *session* that may also send commands.

    Args:
        cursor: the position of the last entry that the client has; None for the head.
        request_id: of the upgrade, for the server's log.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        session: Session | RemoteSession,
        credential: Credential,
        *,
        cursor: int | None,
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
            name=f"socket of session {session.id}",
            tickets_for=session.id,
            commands_per_sec=sessions.settings.max_commands_per_sec,
        )
        self.session = session
        self._ready, head = ready_of(session)
        self._cursor = head if cursor is None else cursor
        self._is_send_scheduled = False
        self._is_held = False
        self._commands = commands_for(
            session,
            credential,
            self.send,
            request_id=request_id,
            sessions=sessions,
            files=files,
            hold=self._hold,
        )

    @property
    def lag(self) -> int:
        return self.session.log.head - self._cursor

    def on_open(self) -> None:
        self.session.subscribers += 1
        self.session.log.subscribe(self._on_new_entries)
        self.send(self._ready)
        self._ready = b""

    def on_close(self) -> None:
        self.session.log.unsubscribe(self._on_new_entries)
        self.session.subscribers -= 1

    async def finish(self) -> None:
        """Wait until the changes of settings that the client has requested are done."""
        await self._commands.finish()

    # Frames to the client

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
            self.output.write(framing.batch_frames(batches[0]))
            self._cursor = batches[0].last
            self.output.note_data()

    def _can_write_now(self) -> bool:
        """Whether the writer waits, and the transport's buffer is empty."""
        return (
            self._is_idle
            and not self._is_held
            and not self.session.is_log_complete  # the writer must close the connection
            and self.output.is_empty
        )

    def _hold(self, is_held: bool) -> None:
        """Send no entries for a moment, so that none overtakes the response of another node."""
        self._is_held = is_held
        if not is_held:
            self.schedule_write()

    async def next_frames(self) -> list[bytes]:
        if self._is_held:
            return self._outbox.take()
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
        return self._cursor < self.session.log.head and not self._is_held

    def heartbeat_frames(self) -> list[bytes]:
        return [framing.text_frame(protocol.frame("heartbeat", head=self.session.log.head))]

    def final_close(self) -> Disconnect | None:
        if self.session.is_log_complete and self._cursor >= self.session.log.last:
            return Disconnect(CloseCode.SESSION_CLOSED, "the session is closed")
        return None

    # Commands of the client

    def parse(self, data: bytes) -> tuple[Any, protocol.Command]:
        return self.session.id, protocol.parse_command(data)

    async def execute(
        self, session_id: Any, command: protocol.SessionCommand | protocol.OnlyAppCommand
    ) -> None:
        assert not isinstance(command, protocol.OnlyAppCommand)  # `parse` does not accept it
        if isinstance(self._commands, RemoteCommands):
            await self._commands.execute(command, self.text)
        else:
            await self._commands.execute(command)
