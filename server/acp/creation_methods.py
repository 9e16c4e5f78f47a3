"""ACP's methods that create a session: a new one, or a fork of another one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import msgspec

from ..errors import Error, ErrorCode
from ..sessions.creation import SessionRequest
from ..sessions.forking import inherited_request
from ..sessions.options import SessionOptions, elicitation_options
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from . import jsonrpc, params
from .client import AcpClient
from .params import NAMESPACE, read_params
from .requests import Requests
from .session_options import (
    ignored_params,
    merged_options,
    options_in_meta,
    with_params,
)
from .subscription import SessionSubscription


class CreationMethods:
    """The methods of one connection that create a session.

    Args:
        session: returns a session of the client's app.
        subscribe: subscribes to a session after a position of its log.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        requests: Requests,
        client: AcpClient,
        *,
        session: Callable[[str], Awaitable[Session]],
        subscribe: Callable[[Session, int], SessionSubscription],
    ) -> None:
        self._sessions = sessions
        self._requests = requests
        self._client = client
        self._session = session
        self._subscribe = subscribe
        self.by_name: Mapping[str, Callable[[jsonrpc.Request], Awaitable[None]]] = {
            "session/new": self._new,
            "session/fork": self._fork,
        }

    async def _new(self, request: jsonrpc.Request) -> None:
        new = read_params(params.NewSessionParams, request.params)
        self._refuse_ticket()
        wanted = self._new_request(new, request.params)
        create = partial(self._sessions.create, self._client.credential.app_name, wanted)
        self._requests.execute_in_background(request, self._create(request, create, new))

    async def _fork(self, request: jsonrpc.Request) -> None:
        fork = read_params(params.ForkSessionParams, request.params)
        self._refuse_ticket()
        source = await self._session(fork.session_id)
        wanted = self._fork_request(source, fork, request.params)
        create = partial(self._sessions.forker.fork, source, None, wanted)
        self._requests.execute_in_background(request, self._create(request, create, fork))

    def _refuse_ticket(self) -> None:
        if self._client.only_session is not None:
            raise Error(ErrorCode.FORBIDDEN, "a ticket is valid only for its own session")

    # Requests

    def _new_request(self, new: params.NewSessionParams, raw: Any) -> SessionRequest:
        options = new.session_options.with_defaults(self._client.options)
        permission = "ask" if self._sessions.backend.can_ask else "approve-all"
        chosen = options_in_meta(raw, self._client.session_options)
        return SessionRequest(
            agent=options.agent,
            model=options.model,
            permission=options.permission or permission,
            mode=options.mode,
            config_options=options.agent_options or {},
            cwd=new.cwd if self._has_roots else None,
            client_cwd=new.cwd,
            options=self._complete_options(new, chosen),
        )

    def _fork_request(
        self, source: Session, fork: params.ForkSessionParams, raw: Any
    ) -> SessionRequest:
        """The request for a fork, which has the values of *source* by default."""
        chosen = fork.session_options
        inherited = inherited_request(source, chosen.agent)
        options = merged_options(inherited.options, options_in_meta(raw))
        is_elsewhere = fork.cwd not in (source.row.cwd, source.row.client_cwd)
        return msgspec.structs.replace(
            inherited,
            model=chosen.model or inherited.model,
            permission=chosen.permission or inherited.permission,
            mode=chosen.mode or inherited.mode,
            config_options=chosen.agent_options or inherited.config_options,
            cwd=fork.cwd if self._has_roots and is_elsewhere else inherited.cwd,
            client_cwd=fork.cwd,
            options=self._complete_options(fork, options),
        )

    @property
    def _has_roots(self) -> bool:
        """Whether clients can choose folders; else every session has one of its own."""
        return bool(self._sessions.settings.workspace_roots)

    def _complete_options(
        self, wanted: params.NewSessionParams | params.ForkSessionParams, chosen: SessionOptions
    ) -> SessionOptions:
        """Return *chosen* with the request's own parameters, and with what the client can show."""
        options = with_params(chosen, wanted, self._sessions)
        shown = elicitation_options(self._client.elicitation)
        if self._client.capabilities:
            announced = list(self._client.capabilities)
            shown = msgspec.structs.replace(shown, client_capabilities=announced)
        return merged_options(shown, options)

    # Creation

    async def _create(
        self,
        request: jsonrpc.Request,
        create: Callable[[], Coroutine[Any, Any, Session]],
        wanted: params.NewSessionParams | params.ForkSessionParams,
    ) -> None:
        creating = asyncio.create_task(create(), name=request.method)
        try:
            session = await asyncio.shield(creating)  # a cancelled call may have stored it
            await session.agent.wait_started()
        except BaseException:
            abandon = self._sessions.closing.spawn(self._abandon(creating), "abandoned session")
            await asyncio.shield(abandon)
            raise
        if self._client.is_disconnected:
            await self._abandon(creating)
            return
        subscription = self._subscribe(session, session.log.head if session.row.forked_from else 0)
        row = session.row
        extension = {
            "agent": row.agent,
            "model": row.model,
            "permission": row.permission,
            "cwd": row.cwd,
            "ignored": ignored_params(wanted, self._sessions),
        }
        opened = subscription.opened()
        extension |= opened.pop("_meta", {}).get(NAMESPACE, {})
        result = {"sessionId": session.id, **opened}
        self._requests.respond(request, {**result, "_meta": {NAMESPACE: extension}})

    async def _abandon(self, creating: asyncio.Task[Session]) -> None:
        """Close a new session whose id no client has got, if it could be created."""
        await asyncio.wait({creating})
        failed = creating.cancelled() or creating.exception() is not None
        if not failed and not self._sessions.is_draining:
            await self._sessions.close(creating.result(), "client")
