"""ACP's methods for logins, which clients may only check: all apps share them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..agents.logins import TERMINAL, AgentLogins
from . import jsonrpc, params
from .params import read_params
from .requests import Requests


class LoginMethods:
    """The login methods of one connection.

    Args:
        app_name: the client's app.
        agent: returns the agent of new sessions; raises an :class:`Error` if it cannot be started.
    """

    def __init__(
        self,
        requests: Requests,
        logins: AgentLogins,
        app_name: str,
        agent: Callable[[], Awaitable[str]],
    ) -> None:
        self._requests = requests
        self._logins = logins
        self._app_name = app_name
        self._agent = agent
        self.by_name: Mapping[str, Callable[[jsonrpc.Request], Awaitable[None]]] = {
            "authenticate": self._authenticate
        }

    def offered(self, agent: str) -> list[Any]:
        """The agent's methods if it is known to require a login; otherwise no client needs them.

        A method of type ``terminal`` is omitted: it would start the agent's program at the client.
        """
        states = self._logins.states
        if not states.is_required(agent, self._app_name):
            return []
        methods = [method for method in states.methods(agent) or [] if isinstance(method, dict)]
        return [method for method in methods if method.get("type") != TERMINAL]

    async def _authenticate(self, request: jsonrpc.Request) -> None:
        """Check the agent's login. Only the operator changes it."""
        authenticate = read_params(params.AuthenticateParams, request.params)
        agent = await self._agent()

        async def respond() -> None:
            await self._logins.check(agent, self._app_name, authenticate.method_id)
            self._requests.respond(request, {})

        self._requests.execute_in_background(request, respond())
