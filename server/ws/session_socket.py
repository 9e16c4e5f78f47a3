"""One socket on a session: a cursor in its log, and commands.

What the log has behind the cursor goes out, and the cursor moves. So replay,
live and slow are one code path, nothing can be left out or repeated, and a slow
peer costs no memory but its transport's buffer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..codec import aside
from ..errors import CloseCode
from ..sessions.session import Session
from ..storage.failures import failure_of
from . import framing, protocol
from .connection import WRITE_BYTES, Disconnect, WebSocketConnection

logger = logging.getLogger(__name__)

Dispatch = Callable[["SessionSocket", protocol.Command], Awaitable[None]]


class SessionSocket(WebSocketConnection):
    """A prepared socket that watches and drives *session*.

    Args:
        cursor: the position that the peer has; what is behind it is sent.
        dispatch: carries out one command.
        commands_per_sec: how often it may be asked to.
    """

    def __init__(
        self,
        request: web.Request,
        socket_response: web.WebSocketResponse[bool],
        session: Session,
        app_name: str,
        cursor: int,
        dispatch: Dispatch,
        commands_per_sec: float,
    ) -> None:
        super().__init__(
            request,
            socket_response,
            app_name,
            name=f"viewer of session {session.id}",
            commands_per_sec=commands_per_sec,
        )
        self.session = session
        self._cursor = cursor
        self._dispatch = dispatch
        self._is_told = False

    @property
    def lag(self) -> int:
        return self.session.log.head - self._cursor

    def _enter(self) -> None:
        self.session.subscribers += 1
        self.session.log.watch(self._log_moved)

    def _leave(self) -> None:
        self.session.log.unwatch(self._log_moved)
        self.session.subscribers -= 1

    # Down.

    def _log_moved(self) -> None:
        if not self._is_told:
            self._is_told = True
            asyncio.get_running_loop().call_soon(self._send_new)

    def _send_new(self) -> None:
        """Send what the log has gained, if that is all there is to do; else wake the writer.

        The writer's own way takes a few turns of the event loop, and a thousand viewers of
        one session would feel them.
        """
        self._is_told = False
        batches = self.session.log.recent(self._cursor) if self._is_free() else None
        if batches is None or len(batches) > 1 or (batches and len(batches[0].body) > WRITE_BYTES):
            self.wake()
        elif batches:
            self._write(framing.batch_frames(batches[0]))
            self._cursor = batches[0].last
            self._last_wrote = time.monotonic()

    def _is_free(self) -> bool:
        """Whether the writer rests, and the peer has taken all that it was sent."""
        return (
            self._is_resting
            and not self.session.is_over  # the writer says good-bye
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        )

    async def _gather(self) -> list[bytes]:
        batches = await self.session.log.read(self._cursor)
        # Answers first: `accepted` comes before the entries of its turn.
        chunks = self._take_outbox()
        size = sum(map(len, chunks))
        for batch in batches:
            chunks.append(framing.batch_frames(batch))
            self._cursor = batch.last
            size += len(chunks[-1])
            if size >= WRITE_BYTES:
                break
        return chunks

    def _has_more(self) -> bool:
        return self._cursor < self.session.log.head

    def _heartbeat(self) -> list[bytes]:
        return [framing.text_frame(protocol.frame("heartbeat", head=self.session.log.head))]

    def _natural_end(self) -> Disconnect | None:
        if self.session.is_over and self._cursor >= self.session.log.last:
            return Disconnect(CloseCode.SESSION_CLOSED, "the session is closed")
        return None

    def _farewell(self, goodbye: Disconnect) -> list[bytes]:
        return [
            framing.text_frame(
                protocol.bye_frame(goodbye.code, goodbye.reason, goodbye.retry_after_ms)
            )
        ]

    # Up.

    async def _command(self, data: bytes) -> None:
        try:
            command = await aside(protocol.parse_command, data)
        except protocol.MalformedFrameError:
            self.close(Disconnect(CloseCode.BAD_FRAME, "a frame is one JSON object"))
            return
        except protocol.InvalidCommandError as error:
            self.send(protocol.error_frame(error, error.frame_id))
            return
        try:
            await self._dispatch(self, command)
        except Disconnect as goodbye:
            self.close(goodbye)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, "a command", session=self.session.id)
            self.send(protocol.error_frame(failure, command.id))
