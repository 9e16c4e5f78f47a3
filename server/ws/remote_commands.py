"""The commands of a client for a session that another node of the cluster runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Callable

import msgspec

from ..auth.credential import Credential
from ..auth.tokens import TokenRegistry
from ..cluster.channels import ChannelLostError, NodeChannel
from ..cluster.membership import OtherNodeError
from ..cluster.node import ClusterNode, node_unreachable
from ..codec import call_off_loop, dumps, loads
from ..errors import Error, failure_of, forbidden_to_shares
from ..sessions.entries import HIDDEN_ID
from ..sessions.registry import SessionRegistry
from ..sessions.remote_session import READY, RemoteSession
from ..sessions.session import Session
from ..tasks import Tasks
from ..uploads.files import FileStore
from . import protocol
from .session_commands import SessionCommands, ready_frame

COMMAND_CHANNEL = "session-commands"
"""The kind of the channels on which nodes send the commands of their clients."""
FRAME, DONE, MOVED = b"f", b"d", b"m"
"""The first byte of a piece: a frame for the client follows, a command was executed, or it was not,
because the session has moved to another node."""
NEW = b"n"
"""The first byte of a prompt whose id nobody has used: it is sent for the first time."""
_HIDDEN = re.compile(rb'"id":"\\u0000[^"]*"')
MAX_MOVES = 3
"""The nodes that are asked one after the other to execute a command."""


class RemoteCommands:
    """Executes the commands of one client on the node that has the session at that moment.

    If that is another node, it executes them like those of its own clients, and sends the frames
    back. If the answer to a prompt is lost, the prompt is sent again under the same id, so that it
    runs once; a prompt without an id gets one, which clients do not see.

    Args:
        send: sends a frame to the client.
        hold: called with True while a command is executed, so that no entry overtakes its response.
    """

    def __init__(
        self,
        session: Session | RemoteSession,
        credential: Credential,
        send: Callable[[bytes], None],
        *,
        request_id: str,
        sessions: SessionRegistry,
        files: FileStore,
        hold: Callable[[bool], None] = lambda held: None,
    ) -> None:
        self._session = session
        self._credential = credential
        self._send = send
        self._request_id = request_id
        self._sessions = sessions
        self._files = files
        self._hold = hold
        self._channel: NodeChannel | None = None
        self._done: asyncio.Future[bool] | None = None
        # The prompts without an answer, by their ids.
        self._unanswered: dict[str, tuple[protocol.PromptCommand, bytes]] = {}
        self._lock = asyncio.Lock()
        self._is_finished = False
        self._tasks = Tasks()
        self._local: SessionCommands | None = None
        self._local_session: Session | None = None

    @property
    def is_pending(self) -> bool:
        """Whether the owner may still send frames."""
        return self._channel is not None or (self._local is not None and self._local.is_pending)

    async def finish(self) -> None:
        self._is_finished = True
        if self._channel is not None:
            self._channel.close()
        await self._tasks.finish(0)
        if self._local is not None:
            await self._local.finish()

    async def execute(self, command: protocol.SessionCommand, data: bytes | str) -> None:
        """Execute one command.

        Args:
            data: the frame as the client sent it.

        Raises:
            Error: the command fails; the socket stays open.
        """
        if isinstance(command, protocol.PingCommand):
            self._send(protocol.frame("pong", id=command.id))
            return
        if self._credential.session_id is not None:
            raise forbidden_to_shares()
        with self._sessions.uses.using(self._session.id):
            if (session := self._sessions.memory.get(self._session.id)) is not None:
                await self._commands_of(session).execute(command)
                return
            frame = data.encode() if isinstance(data, str) else bytes(data)
            is_new = False
            if isinstance(command, protocol.PromptCommand):
                if is_new := command.id is None:
                    command, frame = _with_hidden_id(command, frame)
                assert command.id is not None
                self._unanswered[command.id] = command, frame
            try:
                await self._execute_elsewhere(command, frame, is_new=is_new)
            except BaseException:
                if isinstance(command, protocol.PromptCommand):
                    self._unanswered.pop(command.id or "", None)
                raise

    async def _execute_elsewhere(
        self, command: protocol.SessionCommand, frame: bytes, *, is_new: bool = False
    ) -> None:
        async with self._lock:
            self._hold(True)
            try:
                for number in range(MAX_MOVES):
                    piece = NEW + frame if is_new and number == 0 else frame
                    if await self._execute_at_owner(command, piece):
                        return
            finally:
                self._hold(False)
        raise node_unreachable()

    async def _execute_at_owner(self, command: protocol.SessionCommand, frame: bytes) -> bool:
        """Execute a command where the session is now.

        Returns:
            False if the session has moved meanwhile, or the answer to a prompt was lost.
        """
        if self._channel is None:
            session = await self._sessions.get_viewed(self._session.id, self._credential.app_name)
            if isinstance(session, Session):
                await self._commands_of(session).execute(command)
                return True
            self._open(session)
        assert self._channel is not None
        try:
            return await self._execute_there(self._channel, frame)
        except ChannelLostError:
            if isinstance(command, protocol.PromptCommand):
                return command.id not in self._unanswered
            raise node_unreachable() from None

    def _commands_of(self, session: Session) -> SessionCommands:
        """The commands for the session, which this node has. It is in use."""
        if self._local is None or self._local_session is not session:
            self._local_session = session
            self._local = SessionCommands(
                session,
                self._credential,
                self._send_shown,
                request_id=self._request_id,
                sessions=self._sessions,
                files=self._files,
            )
        return self._local

    def _send_shown(self, frame: bytes) -> None:
        """Send a frame to the client, and note which prompt it answers."""
        if self._unanswered and (frame_id := loads(frame).get("id")) is not None:
            self._unanswered.pop(frame_id, None)
        if _HIDDEN.search(frame) is not None:
            frame = _HIDDEN.sub(b'"id":null', frame)
            frame = frame.replace(b'"duplicate":true', b'"duplicate":false')
            frame = frame.replace(b'{"type":"error","id":null,', b'{"type":"error",')
        self._send(frame)

    def _open(self, session: RemoteSession) -> None:
        """Open a channel to the node that has the session."""
        assert session.owner is not None
        assert self._sessions.remote is not None
        channels = self._sessions.remote.node.channels
        channel = self._channel = channels.open(session.owner, COMMAND_CHANNEL)
        client = {
            "session_id": self._session.id,
            "app": self._credential.app_name,
            "request_id": self._request_id,
        }
        channel.send_now(dumps(client))
        self._tasks.spawn(self._read(channel), f"commands-{self._session.id}")

    async def _execute_there(self, channel: NodeChannel, frame: bytes) -> bool:
        if self._sessions.remote is not None:
            self._sessions.remote.forwarded += 1
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._done = done
        try:
            await channel.send(frame)
            return await done
        finally:
            self._done = None
            if done.done() and not done.cancelled():
                done.exception()  # the channel was lost during `send`

    async def _read(self, channel: NodeChannel) -> None:
        try:
            async for piece in channel:
                if piece[:1] == FRAME:
                    self._send_shown(piece[1:])
                    continue
                has_moved = piece == MOVED
                if has_moved and self._channel is channel:
                    self._channel = None
                if self._done is not None and not self._done.done():
                    self._done.set_result(not has_moved)
                if has_moved:
                    return
        except ChannelLostError:
            pass
        finally:
            channel.close()
            if self._channel is channel:
                self._channel = None
                if self._done is not None and not self._done.done():
                    self._done.set_exception(ChannelLostError())
                elif self._unanswered and not self._is_finished:
                    self._tasks.spawn(self._ask_again(), f"ask-again-{self._session.id}")

    async def _ask_again(self) -> None:
        """Send the steered prompts again whose answers were lost after the node had taken them."""
        for prompt_id, (command, frame) in tuple(self._unanswered.items()):
            try:
                with self._sessions.uses.using(self._session.id):
                    await self._execute_elsewhere(command, frame)
            except Error as error:
                if self._unanswered.pop(prompt_id, None) is not None:
                    self._send_shown(protocol.error_frame(error, prompt_id))


def _with_hidden_id(
    command: protocol.PromptCommand, frame: bytes
) -> tuple[protocol.PromptCommand, bytes]:
    """A prompt with an id of its own, and its frame."""
    hidden = HIDDEN_ID + uuid.uuid4().hex
    whole = b'%b,"id":%b}' % (frame.rstrip()[:-1], dumps(hidden))  # the last `id` counts
    return msgspec.structs.replace(command, id=hidden), whole


def commands_for(
    session: Session | RemoteSession,
    credential: Credential,
    send: Callable[[bytes], None],
    *,
    request_id: str,
    sessions: SessionRegistry,
    files: FileStore,
    hold: Callable[[bool], None],
) -> SessionCommands | RemoteCommands:
    """Return the object that executes a client's commands, on the node that runs *session*."""
    if isinstance(session, RemoteSession) or sessions.remote is not None:
        return RemoteCommands(
            session,
            credential,
            send,
            request_id=request_id,
            sessions=sessions,
            files=files,
            hold=hold,
        )
    return SessionCommands(
        session, credential, send, request_id=request_id, sessions=sessions, files=files
    )


class CommandServer:
    """Executes the commands that clients of other nodes send for sessions of this node."""

    def __init__(
        self, node: ClusterNode, sessions: SessionRegistry, tokens: TokenRegistry, files: FileStore
    ) -> None:
        self._sessions = sessions
        self._tokens = tokens
        self._files = files
        node.channels.servers[COMMAND_CHANNEL] = self._serve
        node.channels.servers[READY] = self._serve_ready

    async def _serve_ready(self, channel: NodeChannel) -> None:
        """Send the state of a session."""
        request = loads(await channel.receive() or b"{}")
        session = await self._sessions.find(request["session_id"])
        if session is not None:
            await channel.send(ready_frame(session))
            channel.end()

    async def _serve(self, channel: NodeChannel) -> None:
        client = loads(await channel.receive() or b"{}")
        credential = await self._tokens.find(client["app"])
        commands: SessionCommands | None = None
        served: Session | None = None
        try:
            async for piece in channel:
                is_new = piece[:1] == NEW
                data = piece[1:] if is_new else piece
                # It is in use during a command only. In between, it may be released.
                with self._sessions.uses.using(client["session_id"]):
                    try:
                        session = await self._sessions.get(
                            client["session_id"], credential.app_name, is_used=False
                        )
                    except OtherNodeError:
                        await channel.send(MOVED)
                        continue
                    except Error as error:
                        _, command = await call_off_loop(protocol.parse_addressed, data)
                        _send(channel, protocol.error_frame(error, command.id))
                        await channel.send(DONE)
                        continue
                    if commands is None or session is not served:
                        served = session
                        commands = SessionCommands(
                            session,
                            credential,
                            lambda frame: _send(channel, frame),
                            request_id=client["request_id"],
                            sessions=self._sessions,
                            files=self._files,
                        )
                    await self._execute(channel, commands, data, session if is_new else None)
                await channel.send(DONE)
        finally:
            if commands is not None:
                await commands.finish()

    async def _execute(
        self,
        channel: NodeChannel,
        commands: SessionCommands,
        data: bytes,
        new_in: Session | None,
    ) -> None:
        """Execute a command.

        Args:
            new_in: the session in which the id of the prompt is new.
        """
        _, command = await call_off_loop(protocol.parse_addressed, data)
        if new_in is not None:
            new_in.turns.note_new_id(command.id)
        try:
            assert not isinstance(command, protocol.OnlyAppCommand | protocol.AuthCommand)
            await commands.execute(command)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure: Error = failure_of(error, "a command of a client of another node")
            _send(channel, protocol.error_frame(failure, command.id))


def _send(channel: NodeChannel, frame: bytes) -> None:
    with contextlib.suppress(ChannelLostError):  # the client's node has ended
        channel.send_now(FRAME + frame)
