"""The commands of one client for one session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..auth.credential import Credential
from ..auth.prompts import send_prompt_with_files
from ..auth.scopes import Scope
from ..codec import dumps
from ..errors import Error, ErrorCode, failure_of, forbidden_to_shares
from ..sessions.content import check_content
from ..sessions.registry import SessionRegistry
from ..sessions.remote_session import RemoteSession
from ..sessions.session import Session
from ..sessions.session_settings import MAX_CHANGES
from ..sessions.settings import SettingChange
from ..sessions.steering import SteerRequest
from ..uploads.files import FileStore
from . import protocol

MAX_STEERING = 16
"""Steered prompts of one client to which the agent has not responded."""


def ready_of(session: Session | RemoteSession) -> tuple[bytes, int]:
    """The first frame of a session, and the head of the log in it."""
    if isinstance(session, RemoteSession):
        return session.ready, session.ready_head
    return ready_frame(session), session.log.head


def ready_frame(session: Session) -> bytes:
    """The first frame of a session of this node: its state."""
    return protocol.frame(
        "ready",
        protocol=protocol.PROTOCOL,
        session_id=session.id,
        agent=session.row.agent,
        head=session.log.head,
        state=session.state_name,
        pending_permissions=session.permissions.view(),
        pending_elicitations=session.elicitations.pending(),
        queued=session.turns.waiting.view(),
        model=session.row.model,
        permission=session.row.permission,
        **session.agent_view(),
    )


class SessionCommands:
    """Executes the commands of one client for *session*.

    Args:
        credential: of the client.
        send: sends a frame to the client.
        request_id: of the upgrade, for the server's log.
    """

    def __init__(
        self,
        session: Session,
        credential: Credential,
        send: Callable[[bytes], None],
        *,
        request_id: str,
        sessions: SessionRegistry,
        files: FileStore,
    ) -> None:
        self._session = session
        self._credential = credential
        self._send = send
        self._request_id = request_id
        self._sessions = sessions
        self._files = files
        # Changes of settings that have been requested, each with the id of its frame.
        self._changes: list[tuple[Any, SettingChange]] = []
        self._reporting: asyncio.Task[None] | None = None
        self._steering = 0

    @property
    def is_pending(self) -> bool:
        """Whether a change of a setting is pending."""
        return self._reporting is not None and not self._reporting.done()

    async def finish(self) -> None:
        """Wait until the changes of settings that the client has requested are done."""
        if self._reporting is not None:
            await asyncio.gather(self._reporting, return_exceptions=True)

    async def execute(self, command: protocol.SessionCommand) -> None:
        """Execute one command.

        Raises:
            Error: the command fails; the socket stays open.
        """
        session = self._session
        is_share = self._credential.session_id is not None
        if is_share and not isinstance(command, protocol.PingCommand):
            raise forbidden_to_shares()
        self._credential.require(_scope_of_command(command))
        match command:
            case protocol.PromptCommand():
                await self._prompt(command)
            case protocol.CancelCommand(turn_index=turn_index):
                if not session.cancel(turn_index):
                    raise Error(ErrorCode.NOT_FOUND, "there is no such turn to cancel")
            case protocol.QueueCommand():
                await self._edit_queue(command)
            case protocol.PermissionCommand(request_id=request_id, option_id=option_id):
                session.permissions.resolve(request_id, option_id=option_id)
            case protocol.ElicitationCommand(request_id=request_id, action=action, content=content):
                session.elicitations.resolve(request_id, action, content)
            case (
                protocol.SetModeCommand()
                | protocol.SetModelCommand()
                | protocol.SetConfigOptionCommand()
            ):
                self._change_setting(command)
            case protocol.CloseCommand():
                self._sessions.closing.spawn(self._close_session(), f"close-{session.id}-by-socket")
            case protocol.PingCommand(id=ping_id):
                self._send(protocol.frame("pong", id=ping_id))

    async def _prompt(self, command: protocol.PromptCommand) -> None:
        if not command.steer:
            await self._accept(command, None)
            return
        # The agent may take long to respond, and a cancel must be read meanwhile. The order
        # of the prompts is decided before the next frame is read.
        steer = SteerRequest()
        if self._steering >= MAX_STEERING:
            raise Error(
                ErrorCode.RATE_LIMITED, "too many steered prompts are pending", retryable=True
            )
        self._steering += 1
        accepting = self._sessions.tasks.spawn(
            self._steer(command, steer), f"steer-{self._session.id}-by-socket"
        )
        ordered = asyncio.ensure_future(steer.ordered.wait())
        try:
            await asyncio.wait({accepting, ordered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ordered.cancel()

    async def _steer(self, command: protocol.PromptCommand, steer: SteerRequest) -> None:
        try:
            await self._accept(command, steer)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, "a steered prompt", session=self._session.id)
            self._send(protocol.error_frame(failure, command.id))
        finally:
            self._steering -= 1

    async def _accept(self, command: protocol.PromptCommand, steer: SteerRequest | None) -> None:
        accepted = await send_prompt_with_files(
            self._credential,
            self._session,
            self._files,
            check_content(command.prompt),
            command.files or [],
            request_id=self._request_id,
            client_id=command.id,
            steer=steer,
        )
        # No await from here on: `accepted` must precede the turn's entries.
        is_asked = steer is not None or accepted.is_steered
        self._send(
            protocol.frame(
                "accepted",
                id=command.id,
                turn_index=accepted.turn.index,
                queued=self._session.turns.must_wait(accepted.turn),
                duplicate=accepted.is_duplicate,
                **({"steered": accepted.is_steered} if is_asked else {}),
            )
        )

    async def _edit_queue(self, command: protocol.QueueCommand) -> None:
        prompt = command.prompt
        blocks = None if prompt is None else dumps(check_content(prompt))
        waiting = self._session.turns.waiting
        await waiting.edit(command.turn_index, blocks=blocks, before=command.before)

    def _change_setting(self, command: protocol.SettingCommand) -> None:
        """Request a change in the background: the agent may have to start, or may never respond."""
        if len(self._changes) >= MAX_CHANGES:
            raise Error(
                ErrorCode.RATE_LIMITED, "too many setting changes are pending", retryable=True
            )
        # Requested at once, so that the client's next prompt waits for it.
        self._changes.append((command.id, self._session.request_change(command.setting)))
        if self._reporting is None or self._reporting.done():
            self._reporting = self._sessions.tasks.spawn(
                self._report_failed_changes(), f"set-{self._session.id}"
            )

    async def _report_failed_changes(self) -> None:
        while self._changes:
            frame_id, change = self._changes.pop(0)
            try:
                await change.wait()
            except Error as error:
                self._send(protocol.error_frame(error, frame_id))

    async def _close_session(self) -> None:
        await self._sessions.close(self._session, "client")


def _scope_of_command(command: protocol.SessionCommand) -> Scope:
    """The scope that a command needs."""
    match command:
        case protocol.PingCommand():
            return "read"
        case protocol.PromptCommand() | protocol.CancelCommand() | protocol.QueueCommand():
            return "prompt"
        case protocol.PermissionCommand() | protocol.ElicitationCommand():
            return "approve"
        case _:
            return "manage"
