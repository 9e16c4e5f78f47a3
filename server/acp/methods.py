"""ACP's methods: what the server does for each request and notification of a client."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .. import __version__
from ..agents.logins import AgentLogins
from ..auth.credential import Credential
from ..auth.prompts import send_prompt
from ..cluster.membership import OtherNodeError
from ..errors import Error, ErrorCode, not_found, session_closed
from ..sessions.content import check_content
from ..sessions.options import elicitation_options
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from ..sessions.turns import Turn
from . import client_responses, jsonrpc, params, resumption
from .client import AcpClient
from .creation_methods import CreationMethods
from .jsonrpc import JsonRpcError
from .listing import decode_cursor, encode_cursor, session_item
from .login_methods import LoginMethods
from .params import NAMESPACE, UrlOptions, read_params
from .relay import AcpRelays
from .removal_methods import RemovalMethods
from .requests import Requests
from .scopes import SCOPE_OF_METHOD
from .session_options import agent_capabilities, change_options, options_in_meta
from .setting_methods import SettingMethods
from .steering_method import SteeringMethod
from .subscription import SessionSubscription
from .subscriptions import Subscriptions
from .truncate import DEFAULT_MAX_BYTES
from .update_filter import UpdateFilter

logger = logging.getLogger(__name__)

LIST_PAGE_SIZE = 50


class AcpMethods:
    """The methods that one ACP client may call.

    Args:
        only_session: the id of the only session that the client's ticket admits to, or None.
        options: of the URL; those in a message take precedence.
        upgrade_id: the id of the upgrade request, for the server's log.

    Attributes:
        is_initialized: the client has called ``initialize``.
        client: what it has said about itself.
        initialize_params: of its ``initialize``.
        relays: reaches the sessions of other nodes; None without a cluster.
        page_size: sessions on one page of ``session/list``.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        logins: AgentLogins,
        credential: Credential,
        requests: Requests,
        subscriptions: Subscriptions,
        send: Callable[[bytes], None],
        *,
        name: str,
        upgrade_id: str,
        options: UrlOptions,
        only_session: str | None,
    ) -> None:
        self.relays: AcpRelays | None = None
        self.initialize_params: Any = None
        self.is_initialized = False
        self.page_size = LIST_PAGE_SIZE
        self._sessions = sessions
        self._credential = credential
        self._requests = requests
        self._subscriptions = subscriptions
        self._send = send
        self._name = name
        self._upgrade_id = upgrade_id
        self.client = AcpClient(credential, options, only_session)
        self._logins = LoginMethods(
            requests,
            logins,
            credential.app_name,
            lambda: sessions.agents.choose(self.client.options.agent),
        )
        creation = CreationMethods(
            sessions, requests, self.client, session=self._session, subscribe=self._subscribe
        )
        self._methods: Mapping[str, Callable[[jsonrpc.Request], Awaitable[None]]] = {
            "initialize": self._initialize,
            **creation.by_name,
            "session/load": self._load,
            "session/resume": self._resume,
            "session/list": self._list,
            "session/close": self._close,
            "session/prompt": self._prompt,
            **self._logins.by_name,
            **RemovalMethods(
                sessions, requests, self._session, has_ticket=only_session is not None
            ).by_name,
            **SettingMethods(requests, self._subscription).by_name,
            **SteeringMethod(requests, self._subscription, credential, upgrade_id).by_name,
        }

    async def handle_request(self, request: jsonrpc.Request) -> None:
        """Call the request's method, and send an error if it fails."""
        await self._requests.execute(request, self._call(request))

    async def _call(self, request: jsonrpc.Request) -> None:
        method = self._methods.get(request.method)
        if method is None:
            message = f"no such method: {request.method[:200]}"
            raise JsonRpcError(jsonrpc.METHOD_NOT_FOUND, message)
        self._credential.require(SCOPE_OF_METHOD.get(request.method, "manage"))
        if self.relays is None:
            await method(request)
            return
        if request.method == "session/new" and (node := self.relays.better_node()) is not None:
            await self.relays.forward(node, request)
            return
        try:
            await method(request)
        except OtherNodeError as other_node:
            await self.relays.forward(other_node.owner, request)

    async def handle_notification(self, notification: jsonrpc.Notification) -> None:
        """Handle a cancellation; ignore any other notification, and invalid ones."""
        try:
            if notification.method == "session/cancel":
                self._credential.require("prompt")
                await self._cancel(notification.params)
            elif notification.method == "$/cancel_request":
                cancel = read_params(params.CancelRequestParams, notification.params)
                self._requests.cancel(jsonrpc.key_of(cancel.request_id))
                if self.relays is not None:
                    await self.relays.forward_to_all(notification)
        except OtherNodeError as other_node:
            if self.relays is not None:
                with contextlib.suppress(Error):
                    await self.relays.forward(other_node.owner, notification)
        except (JsonRpcError, Error) as error:
            is_unknown = isinstance(error, Error) and error.code is ErrorCode.NOT_FOUND
            if is_unknown and self.relays is not None:  # perhaps a subagent's session
                with contextlib.suppress(Error):
                    await self.relays.forward_to_all(notification)

    async def relay_response(self, response: jsonrpc.Response) -> bool:
        """Pass the client's response on to another node. False if its request is of this node."""
        if self.relays is None or "approve" not in self._credential.scopes:
            return False
        return await self.relays.answer(response)

    def handle_response(self, response: jsonrpc.Response) -> None:
        """Handle the client's response to a request of an agent.

        Without the scope ``approve`` it is ignored, and the request waits for another client.
        """
        if "approve" not in self._credential.scopes:
            return
        client_responses.handle_response(self._subscriptions, response, self._name)

    # Initialization

    async def _initialize(self, request: jsonrpc.Request) -> None:
        initialize = read_params(params.InitializeParams, request.params)
        if self.is_initialized:
            raise JsonRpcError(jsonrpc.INVALID_REQUEST, "the connection is initialized already")
        if self._sessions.backend.can_ask:
            self.client.elicitation = params.elicitation_modes(initialize.client_capabilities)
        if "client_capabilities" not in self._sessions.backend.unsupported_options:
            known = initialize.client_capabilities
            self.client.capabilities = params.announced_to_agents(known)
        self.client.options = initialize.session_options.with_defaults(self.client.options)
        self.initialize_params = request.params
        self._subscriptions.have_positions = initialize.session_options.positions
        self._subscriptions.updates = UpdateFilter(initialize.client_capabilities)
        self.client.session_options = options_in_meta(request.params)
        agent = await self._sessions.agents.choose(self.client.options.agent)
        capabilities = await self._sessions.backend.capabilities(agent)
        self.is_initialized = True
        self._requests.respond(
            request,
            {
                "protocolVersion": params.PROTOCOL_VERSION,
                "agentCapabilities": agent_capabilities(self._sessions, capabilities),
                "agentInfo": {"name": "clawdforge", "title": "clawdforge", "version": __version__},
                "authMethods": self._logins.offered(agent),
                "_meta": {NAMESPACE: {"agent": agent}, "steering": {"supported": True}},
            },
        )

    # Sessions

    async def _load(self, request: jsonrpc.Request) -> None:
        load = read_params(params.LoadSessionParams, request.params)
        subscription = await self._reopen(load, request.params)
        for message in subscription.replay(request, after=load.session_options.after or 0):
            self._send(message)
        self._subscriptions.schedule()

    async def _resume(self, request: jsonrpc.Request) -> None:
        resume = read_params(params.ResumeSessionParams, request.params)
        subscription = await self._reopen(resume, request.params)
        if (after := resume.session_options.after) is not None:
            subscription.cursor = after
            self._subscriptions.schedule()
        self._requests.respond(request, subscription.opened())
        for message in subscription.request_pending():
            self._send(message)

    async def _reopen(self, resume: params.LoadSessionParams, raw: Any) -> SessionSubscription:
        """The subscription to a session whose client may have had it on an earlier connection."""
        session = await self._session(resume.session_id)
        if self.client.only_session is None:  # a ticket permits no change of the options
            await change_options(self._sessions, session, resume, raw)
        await self._follow_elicitation(session)
        options = resume.session_options
        resumption.check_resumed_position(session, options.after)
        prompts, unknown = await resumption.find_prompts(session, options.prompts or {})
        # No await from here on: the end of a turn must find its request.
        subscription = self._subscribed(session)
        subscription.unknown_prompts = unknown
        if options.after is not None:
            subscription.cursor = options.after
        for turn, prompt in prompts:
            self._await_turn(subscription, prompt, turn)
        return subscription

    async def _follow_elicitation(self, session: Session) -> None:
        """Have the agent of *session* ask the questions that this client can show.

        Other clients of the session may show more of them.
        """
        announced, modes = session.options.announced_modes, set(self.client.elicitation)
        is_subscribed = self._subscriptions.get(session.id) is not None
        if session.subscribers > is_subscribed:
            modes |= set(announced)
        changed = elicitation_options(modes)
        if session.is_closed or changed.announced_modes == announced:
            return
        changes = {name: getattr(changed, name) for name in ("elicitation", "elicitation_modes")}
        try:
            await session.editor.change(options=changes)
        except Error as error:
            logger.info("%s: the setting of questions stays: %s", self._name, error.message)

    async def _list(self, request: jsonrpc.Request) -> None:
        query = read_params(params.ListSessionsParams, request.params)
        if (only_session := self.client.only_session) is not None:
            rows = [(await self._session(only_session)).row]
            rows = [row for row in rows if query.cwd in (None, row.cwd, row.client_cwd)]
        else:
            before = None if query.cursor is None else decode_cursor(query.cursor)
            rows = await self._sessions.queries.session_page(
                self._credential.app_name,
                before=before,
                limit=self.page_size + 1,
                cwd=query.cwd,
            )
        page = rows[: self.page_size]
        result: dict[str, Any] = {"sessions": [session_item(row) for row in page]}
        if len(rows) > len(page):
            result["nextCursor"] = encode_cursor(page[-1].n)
        self._requests.respond(request, result)

    async def _close(self, request: jsonrpc.Request) -> None:
        close = read_params(params.CloseSessionParams, request.params)
        session = await self._session(close.session_id)
        subscription = self._subscriptions.get(session.id)
        if subscription is not None:
            subscription.respond_at_end(request)
        # A close cannot be cancelled, so it is not one of the pending requests.
        closing = self._close_session(request, session, subscription)
        self._sessions.closing.spawn(
            self._requests.execute(request, closing), f"close-{session.id}-over-acp"
        )

    async def _close_session(
        self, request: jsonrpc.Request, session: Session, subscription: SessionSubscription | None
    ) -> None:
        await self._sessions.close(session, "client")
        if subscription is None:
            self._requests.respond(request, {})

    async def _session(self, session_id: str) -> Session:
        """A session of the app; with a ticket, only the ticket's session.

        Raises:
            Error: ``not_found``.
        """
        if self.client.only_session not in (None, session_id):
            raise not_found()
        return await self._sessions.get(session_id, self._credential.app_name)

    async def _subscription(self, session_id: str) -> SessionSubscription:
        """The connection's subscription to a session; a new one begins with the next entry."""
        return self._subscribed(await self._session(session_id))

    def _subscribed(self, session: Session) -> SessionSubscription:
        if session.is_closed:
            raise session_closed()
        subscription = self._subscriptions.get(session.id)
        return subscription or self._subscribe(session, session.log.head)

    def _subscribe(self, session: Session, cursor: int) -> SessionSubscription:
        limit = self.client.options.max_message_bytes or DEFAULT_MAX_BYTES
        return self._subscriptions.add(session, cursor, limit, self.client.elicitation)

    # Turns

    async def _prompt(self, request: jsonrpc.Request) -> None:
        prompt = read_params(params.PromptParams, request.params)
        blocks = check_content(prompt.prompt)
        subscription = await self._subscription(prompt.session_id)
        session = subscription.session
        prompted = await send_prompt(
            self._credential,
            session,
            blocks,
            request_id=self._upgrade_id,
            client_id=prompt.session_options.prompt_id,
        )
        # No await from here on: the turn's end must find its request.
        self._await_turn(subscription, request, prompted.turn)

    def _await_turn(
        self, subscription: SessionSubscription, request: jsonrpc.Request, turn: Turn
    ) -> None:
        """Respond to a prompt at the end of its turn."""
        if (response := subscription.respond_to_prompt(request, turn)) is not None:
            self._send(response)
            return
        session = subscription.session
        self._requests.allow_cancel(request, lambda: session.cancel(turn.index))

    async def _cancel(self, value: Any) -> None:
        """Cancel the client's own prompts, or the running turn if there are none."""
        cancel = read_params(params.CancelParams, value)
        if self._subscriptions.cancel_subagent(cancel.session_id):
            return
        session = await self._session(cancel.session_id)
        subscription = self._subscriptions.get(session.id)
        own_prompts = tuple(subscription.prompts) if subscription is not None else ()
        for turn_index in own_prompts:
            session.cancel(turn_index)
        if not own_prompts:
            session.cancel()
