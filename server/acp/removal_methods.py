"""ACP's methods that delete a session and set its title."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from ..errors import Error, ErrorCode
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from . import jsonrpc, params
from .params import read_params
from .requests import Requests


class RemovalMethods:
    """The methods of one connection that delete a session, and set its title.

    Args:
        session: returns a session of the client's app.
        has_ticket: the client's ticket admits to one session only, and changes nothing about it.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        requests: Requests,
        session: Callable[[str], Awaitable[Session]],
        *,
        has_ticket: bool,
    ) -> None:
        self._sessions = sessions
        self._requests = requests
        self._session = session
        self._has_ticket = has_ticket
        self.by_name: Mapping[str, Callable[[jsonrpc.Request], Awaitable[None]]] = {
            "session/delete": self._delete,
            "session/set_title": self._set_title,
        }

    async def _delete(self, request: jsonrpc.Request) -> None:
        session = await self._changeable(
            read_params(params.DeleteSessionParams, request.params).session_id
        )

        async def purge() -> None:
            await self._sessions.remover.purge(session)
            self._requests.respond(request, {})

        # A deletion cannot be cancelled, so it is not one of the pending requests.
        work = self._requests.execute(request, purge())
        self._sessions.closing.spawn(work, f"delete-{session.id}-over-acp")

    async def _set_title(self, request: jsonrpc.Request) -> None:
        change = read_params(params.SetTitleParams, request.params)
        session = await self._changeable(change.session_id)
        await session.editor.change(meta={"title": change.title})
        self._requests.respond(request, {})

    async def _changeable(self, session_id: str) -> Session:
        if self._has_ticket:
            raise Error(ErrorCode.FORBIDDEN, "a ticket does not permit this")
        return await self._session(session_id)
