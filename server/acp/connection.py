"""One ACP client: what it asks, and the sessions that it watches and drives.

The reader carries out at once what is quick, in the order in which it was asked;
what waits for an agent is a task, so that a cancel is always read. Answers that
belong behind a session's updates go the way of its log (``attachment.py``).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web

from .. import __version__
from ..auth.credential import Credential, unauthorized
from ..codec import aside, dumps, loads
from ..errors import CloseCode, Error, bad_request, not_found, session_closed
from ..sessions.content import check_content
from ..sessions.creation import SessionRequest
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from ..sessions.settings import SetConfigOption, SetMode, SetModel, Setting
from ..storage.failures import failure_of
from ..storage.schema import SessionRow
from ..ws import framing
from ..ws.connection import WRITE_BYTES, WebSocketConnection
from ..ws.disconnect import Disconnect
from . import jsonrpc, translate
from . import params as messages
from .jsonrpc import RpcError
from .params import NAMESPACE, Wishes
from .subscription import SessionSubscription
from .truncate import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

Json = dict[str, Any]

PAGE = 50
TITLE_LENGTH = 200
MAX_WAITING = 16
"""Requests that may wait for agents at once."""


class AcpConnection(WebSocketConnection):
    """A prepared socket of an ACP client.

    Args:
        request_id: of its upgrade, for the log.
        wishes: what its address asks for; what it says later counts more.
        only: the one session that its ticket is for.
    """

    def __init__(
        self,
        request: web.Request,
        socket_response: web.WebSocketResponse[bool],
        credential: Credential,
        sessions: SessionRegistry,
        *,
        connection_id: str,
        request_id: str,
        wishes: Wishes,
        only: str | None,
    ) -> None:
        super().__init__(
            request,
            socket_response,
            credential.app_name,
            name=f"ACP connection {connection_id}",
            messages_per_sec=sessions.settings.max_commands_per_sec,
        )
        self._credential = credential
        self._sessions = sessions
        self._request_id = request_id
        self._wishes = wishes
        self._only = only
        self._initialized = False
        self._left = False
        self._attached: dict[str, SessionSubscription] = {}
        self._ids = itertools.count(1)
        self._cancels: dict[bytes, Callable[[], object]] = {}
        self._waiting = 0
        self._calls: dict[str, Callable[[jsonrpc.Request], Awaitable[None]]] = {
            "initialize": self._initialize,
            "session/new": self._new,
            "session/load": self._load,
            "session/resume": self._resume,
            "session/list": self._list,
            "session/close": self._close_session,
            "session/prompt": self._prompt,
            "session/set_mode": self._set_mode,
            "session/set_model": self._set_model,
            "session/set_config_option": self._set_config_option,
        }

    @property
    def lag(self) -> int:
        behind = [one.session.log.head - one.cursor for one in self._attached.values()]
        return max(behind, default=0)

    def on_open(self) -> None:
        pass

    def on_close(self) -> None:
        self._left = True
        for attachment in tuple(self._attached.values()):
            self._detach(attachment)

    # Down.

    async def next_frames(self) -> list[bytes]:
        told: list[bytes] = []
        size = 0
        for attachment in tuple(self._attached.values()):
            cursor = attachment.cursor
            batches = await attachment.session.log.read(cursor)
            current = self._attached.get(attachment.session.id)
            if current is not attachment or attachment.cursor != cursor:
                continue  # it was loaded anew meanwhile, or it is gone
            for batch in batches:
                messages_of_batch = attachment.tell(batch, WRITE_BYTES - size)
                told += messages_of_batch
                size += sum(map(len, messages_of_batch))
                if size >= WRITE_BYTES:
                    break
            if attachment.is_over:
                self._detach(attachment)
            else:  # the next round begins with another
                self._attached[attachment.session.id] = self._attached.pop(attachment.session.id)
            if size >= WRITE_BYTES:
                break
        # Answers first: `session/new` is answered before its session's updates.
        return [*self._outbox.take(), *map(framing.text_frame, told)]

    def has_more(self) -> bool:
        return any(attachment.has_more for attachment in self._attached.values())

    # Up.

    def on_binary(self) -> None:
        pass  # as the transport's description has it

    async def on_text(self, data: bytes) -> None:
        try:
            message = await aside(jsonrpc.parse, data)
        except RpcError as error:
            self.send(jsonrpc.error(error.request_id, error))
            if not self._initialized:
                self._refuse_to_begin()
            return
        begins = isinstance(message, jsonrpc.Request) and message.method == "initialize"
        if not (self._initialized or begins):
            self._refuse_to_begin()
            return
        match message:
            case jsonrpc.Request():
                await self._answer(message, self._call(message))
            case jsonrpc.Notification(method="session/cancel"):
                await self._cancel(message.params)
            case jsonrpc.Notification(method="$/cancel_request"):
                self._cancel_request(message.params)
            case jsonrpc.Response():
                self._take_answer(message)

    def _refuse_to_begin(self) -> None:
        self.close(Disconnect(CloseCode.PROTOCOL_ERROR, "the first message must be initialize"))

    def _call(self, request: jsonrpc.Request) -> Awaitable[None]:
        call = self._calls.get(request.method)
        if call is None:
            return _fail(
                RpcError(
                    jsonrpc.METHOD_NOT_FOUND, f"no such method: {request.method[:TITLE_LENGTH]}"
                )
            )
        return call(request)

    async def _answer(self, request: jsonrpc.Request, call: Awaitable[None]) -> None:
        """Await *call*; what it raises is the answer."""
        try:
            await call
        except RpcError as error:
            self.send(jsonrpc.error(request.id, error))
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, f"{request.method} of {self.name}")
            self.send(jsonrpc.error(request.id, RpcError.of(failure)))

    def _later(self, request: jsonrpc.Request, call: Coroutine[Any, Any, None]) -> None:
        """Carry out behind the reader's back what may wait for an agent."""
        try:
            self._check_waiting()
        except Error:
            call.close()
            raise
        self._waiting += 1
        task = self._sessions.tasks.spawn(
            self._answer(request, call), f"{request.method} of {self.name}"
        )

        def carried_out(task: asyncio.Task[None]) -> None:
            # Not in the task's own body: one that is cancelled before it begins never runs it.
            call.close()
            self._waiting -= 1
            self._forget(request)
            if task.cancelled():
                self.send(
                    jsonrpc.error(request.id, RpcError(jsonrpc.REQUEST_CANCELLED, "cancelled"))
                )

        task.add_done_callback(carried_out)
        self._cancels[request.key] = task.cancel

    def _check_waiting(self) -> None:
        if self._waiting >= MAX_WAITING:
            raise Error("rate_limited", "the last requests are not through yet")

    def _forget(self, request: jsonrpc.Request) -> None:
        """It is answered, and cannot be cancelled any more."""
        self._cancels.pop(request.key, None)

    def _reply(self, request: jsonrpc.Request, result: Any) -> None:
        self.send(jsonrpc.result(request.id, result))

    # The beginning.

    async def _initialize(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.Initialize, request.params)
        if self._initialized:
            raise RpcError(jsonrpc.INVALID_REQUEST, "the connection is initialized already")
        self._wishes = params.wishes.over(self._wishes)
        agent = await self._sessions.agents.choose(self._wishes.agent)
        capabilities = await self._sessions.backend.capabilities(agent)
        self._initialized = True
        self._reply(
            request,
            {
                "protocolVersion": messages.PROTOCOL_VERSION,
                "agentCapabilities": {
                    "loadSession": True,
                    "promptCapabilities": capabilities.get("promptCapabilities") or {},
                    "mcpCapabilities": {"http": False, "sse": False},
                    "sessionCapabilities": {"list": {}, "resume": {}, "close": {}},
                },
                "agentInfo": {"name": "clawdforge", "title": "clawdforge", "version": __version__},
                "authMethods": [],
                "_meta": {NAMESPACE: {"agent": agent}},
            },
        )

    # Sessions.

    async def _new(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.NewSession, request.params)
        if self._only is not None:
            raise Error("forbidden", "a ticket is for its one session")
        self._later(request, self._create(request, params))

    async def _create(self, request: jsonrpc.Request, params: messages.NewSession) -> None:
        wishes = params.wishes.over(self._wishes)
        permission = "ask" if self._sessions.backend.can_ask else "approve-all"
        # Without workspace roots each session has a folder of its own, whatever the client names.
        roots = self._sessions.settings.workspace_roots
        creating = asyncio.create_task(
            self._sessions.create(
                self.app_name,
                SessionRequest(
                    agent=wishes.agent,
                    model=wishes.model,
                    permission=wishes.permission or permission,
                    mode=wishes.mode,
                    config_options=wishes.options or {},
                    cwd=params.cwd if roots else None,
                    client_cwd=params.cwd,
                ),
            ),
            name=f"session of {self.name}",
        )
        try:
            session = await asyncio.shield(creating)  # it may be stored when it is cancelled
            await session.agent.wait_started()
        except BaseException:
            abandon = self._sessions.closing.spawn(self._abandon(creating), "abandoned session")
            await asyncio.shield(abandon)
            raise
        if self._left:
            await self._abandon(creating)
            return
        attachment = self._attach(session, 0)
        row = session.row
        ours = {
            "agent": row.agent,
            "model": row.model,
            "permission": row.permission,
            "cwd": row.cwd,
            "ignored": _ignored(params),
        }
        settings = attachment.settings()
        self._reply(request, {"sessionId": session.id, **settings, "_meta": {NAMESPACE: ours}})

    async def _abandon(self, creating: asyncio.Task[Session]) -> None:
        """Close a new session, if it comes to be one: nobody has its id."""
        await asyncio.wait({creating})
        failed = creating.cancelled() or creating.exception() is not None
        if not failed and not self._sessions.is_draining:
            await self._sessions.close(creating.result(), "client")

    async def _load(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.LoadSession, request.params)
        attachment = await self._attached_to(params.session_id)
        for answer in attachment.replay(request):
            self.send(answer)
        self.schedule_write()

    async def _resume(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.ResumeSession, request.params)
        attachment = await self._attached_to(params.session_id)
        self._reply(request, attachment.settings())
        for ask in attachment.ask_pending():
            self.send(ask)

    async def _list(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.ListSessions, request.params)
        if self._only is not None:
            rows = [(await self._session(self._only)).row]
            rows = [row for row in rows if params.cwd in (None, row.cwd, row.client_cwd)]
        else:
            before = None if params.cursor is None else _position(params.cursor)
            rows = await self._sessions.queries.session_page(
                self.app_name, before=before, limit=PAGE + 1, cwd=params.cwd
            )
        page: Json = {"sessions": [_info(row) for row in rows[:PAGE]]}
        if len(rows) > PAGE:
            page["nextCursor"] = _cursor(rows[PAGE - 1].n)
        self._reply(request, page)

    async def _close_session(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.CloseSession, request.params)
        session = await self._session(params.session_id)
        attachment = self._attached.get(session.id)
        if attachment is not None:
            attachment.answer_at_end(request)
        # Not one of the requests that may be cancelled: a close goes through.
        close = self._close_and_answer(request, session, attachment)
        name = f"close-{session.id}-over-acp"
        self._sessions.closing.spawn(self._answer(request, close), name)

    async def _close_and_answer(
        self, request: jsonrpc.Request, session: Session, attachment: SessionSubscription | None
    ) -> None:
        await self._sessions.close(session, "client")
        if attachment is None:
            self._reply(request, {})

    async def _session(self, session_id: str) -> Session:
        """The app's session of that id; with a ticket, only the ticket's.

        Raises:
            Error: ``not_found``.
        """
        if self._only not in (None, session_id):
            raise not_found()
        return await self._sessions.get(session_id, self.app_name)

    async def _attached_to(self, session_id: str) -> SessionSubscription:
        """The session on this connection; from now on, where it was not yet."""
        session = await self._session(session_id)
        if session.is_closed:
            raise session_closed()
        return self._attached.get(session_id) or self._attach(session, session.log.head)

    def _attach(self, session: Session, cursor: int) -> SessionSubscription:
        if session.subscribers >= self._sessions.settings.max_sockets_per_session:
            raise Error("rate_limited", "the session has all the sockets it may")
        attachment = self._attached[session.id] = SessionSubscription(
            session,
            cursor,
            answered=self._forget,
            next_id=self._ids.__next__,
            limit=self._wishes.max_message_bytes or MAX_MESSAGE_BYTES,
        )
        session.subscribers += 1
        session.log.subscribe(self.schedule_write)
        self.schedule_write()
        return attachment

    def _detach(self, attachment: SessionSubscription) -> None:
        del self._attached[attachment.session.id]
        attachment.session.log.unsubscribe(self.schedule_write)
        attachment.session.subscribers -= 1

    # Turns.

    async def _prompt(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.Prompt, request.params)
        blocks = check_content(params.prompt)
        attachment = await self._attached_to(params.session_id)
        self._credential.check()
        turn, _ = await attachment.session.prompt(dumps(blocks), request_id=self._request_id)
        if self._credential.is_revoked:  # while it was being stored
            attachment.session.cancel(turn.index)
            raise unauthorized()
        # No await from here on: the turn's end finds who asked.
        attachment.prompts[turn.index] = request
        self._cancels[request.key] = lambda: attachment.session.cancel(turn.index)

    async def _cancel(self, value: Any) -> None:
        """Cancel what this client asked for, or else what runs."""
        try:
            params = messages.read(messages.Cancel, value)
            session = await self._session(params.session_id)
        except (RpcError, Error):
            return  # a notification has no answer
        attachment = self._attached.get(session.id)
        own = tuple(attachment.prompts) if attachment is not None else ()
        for index in own:
            session.cancel(index)
        if not own:
            session.cancel()

    def _cancel_request(self, value: Any) -> None:
        try:
            params = messages.read(messages.CancelRequest, value)
        except RpcError:
            return
        cancel = self._cancels.get(jsonrpc.key_of(params.request_id))
        if cancel is not None:
            cancel()

    def _take_answer(self, response: jsonrpc.Response) -> None:
        """The client's answer to a permission request; the first of any client counts."""
        for attachment in self._attached.values():
            for request_id, asked in tuple(attachment.asked.items()):
                if asked == response.id:
                    del attachment.asked[request_id]
                    self._decide(attachment.session, request_id, response.result)
                    return

    def _decide(self, session: Session, request_id: str, result: Any) -> None:
        outcome = result.get("outcome") if isinstance(result, dict) else None
        choice = outcome if isinstance(outcome, dict) else {}
        try:
            match choice.get("outcome"), choice.get("optionId"):
                case "selected", str(option_id):
                    session.permissions.resolve(request_id, option_id=option_id)
                    return
                case "cancelled", _:
                    session.permissions.resolve(request_id)
                    return
            raise bad_request("no outcome")
        except Error as error:
            logger.info("%s: no answer to a permission request: %s", self.name, error.message)
        # It cannot answer. Another client may; where there is none, nobody is waited for.
        if session.subscribers == 1 and any(
            pending["request_id"] == request_id for pending in session.permissions.pending()
        ):
            session.permissions.resolve(request_id)

    # Settings.

    async def _set_mode(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.SetMode, request.params)
        await self._set(request, params.session_id, SetMode(mode=params.mode_id))

    async def _set_model(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.SetModel, request.params)
        await self._set(request, params.session_id, SetModel(model=params.model_id))

    async def _set_config_option(self, request: jsonrpc.Request) -> None:
        params = messages.read(messages.SetConfigOption, request.params)
        setting = SetConfigOption(key=params.config_id, value=params.value)
        await self._set(request, params.session_id, setting)

    async def _set(self, request: jsonrpc.Request, session_id: str, setting: Setting) -> None:
        attachment = await self._attached_to(session_id)
        self._check_waiting()
        # Asked for now: the client's next prompt waits for it.
        change = attachment.session.request_change(setting)

        async def answer() -> None:
            self._reply(request, await change.wait())

        self._later(request, answer())


async def _fail(error: RpcError) -> None:
    raise error


def _ignored(params: messages.NewSession) -> list[str]:
    """What the client named and this server does nothing with."""
    named = {
        "mcpServers": params.mcp_servers,
        "additionalDirectories": params.additional_directories,
    }
    return [name for name, value in named.items() if value]


def _info(row: SessionRow) -> Json:
    title = loads(row.meta).get("title")
    ours = {"agent": row.agent, "model": row.model, "permission": row.permission}
    return {
        "sessionId": row.id,
        "cwd": row.cwd,
        **({"title": title[:TITLE_LENGTH]} if isinstance(title, str) else {}),
        "updatedAt": translate.iso_time(row.last_turn_at or row.created_at),
        "_meta": {NAMESPACE: ours},
    }


def _cursor(number: int) -> str:
    return base64.urlsafe_b64encode(b"n%d" % number).decode()


def _position(cursor: str) -> int:
    try:
        decoded = base64.urlsafe_b64decode(cursor.encode()).decode()
        if decoded.startswith("n") and decoded[1:].isdecimal() and len(decoded) < 20:
            return int(decoded[1:])
    except (binascii.Error, UnicodeError):
        pass
    raise bad_request("cursor: it is none of this server's")
