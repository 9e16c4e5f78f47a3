"""A WebSocket whose client sends commands of the session protocol."""

from __future__ import annotations

import abc
from typing import Any

from aiohttp import web

from ..auth.credential import Credential
from ..auth.tokens import TokenRegistry
from ..codec import call_off_loop
from ..errors import CloseCode, failure_of
from . import framing, protocol
from .connection import WebSocketConnection
from .disconnect import Disconnect
from .handshake import authenticate


class CommandSocket(WebSocketConnection):
    """Reads commands, reports each failure in an ``error`` frame, and ends with ``bye``.

    Args:
        tickets_for: the session that a ticket in a later ``auth`` frame must be for; None if no
            ticket is accepted.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        credential: Credential,
        tokens: TokenRegistry,
        *,
        name: str,
        tickets_for: str | None,
        commands_per_sec: float,
    ) -> None:
        super().__init__(
            request, response, credential.app_name, name=name, messages_per_sec=commands_per_sec
        )
        self._credential = credential
        self._tokens = tokens
        self._tickets_for = tickets_for
        self.text: bytes | str = b""

    @abc.abstractmethod
    async def execute(
        self, session_id: Any, command: protocol.SessionCommand | protocol.OnlyAppCommand
    ) -> None:
        """Execute one command, except ``auth``.

        Args:
            session_id: of the frame; it may have any type.

        Raises:
            Error: the command fails; the socket stays open.
            Disconnect: the socket must be closed.
        """

    def parse(self, data: bytes) -> tuple[Any, protocol.AppCommand]:
        """Read one frame: its ``session_id`` and its command."""
        return protocol.parse_addressed(data)

    def send_failure(self, session_id: Any, frame: bytes) -> None:
        """Send the ``error`` frame of a command that has failed."""
        self.send(frame)

    def closing_frames(self, disconnect: Disconnect) -> list[bytes]:
        bye = protocol.bye_frame(disconnect.code, disconnect.reason, disconnect.retry_after_ms)
        return [framing.text_frame(bye)]

    async def on_text(self, data: bytes) -> None:
        try:
            session_id, command = await call_off_loop(self.parse, data)
        except protocol.MalformedFrameError:
            self.close(Disconnect(CloseCode.BAD_FRAME, "a frame is one JSON object"))
            return
        except protocol.InvalidCommandError as error:
            self.send_failure(error.session_id, protocol.error_frame(error, error.frame_id))
            return
        try:
            if isinstance(command, protocol.AuthCommand):
                await self._authenticate_again(command)
            else:
                self.text = data
                await self.execute(session_id, command)
        except Disconnect as disconnect:
            self.close(disconnect)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, f"a command of the {self.name}")
            self.send_failure(session_id, protocol.error_frame(failure, command.id))

    async def _authenticate_again(self, command: protocol.AuthCommand) -> None:
        """Check the credential of a later auth frame: it must be that of the first."""
        address = self._request.remote
        credential = await authenticate(self._tokens, command, self._tickets_for, address)
        if credential is not self._credential:
            raise Disconnect(CloseCode.REFUSED, "the credential is refused")
