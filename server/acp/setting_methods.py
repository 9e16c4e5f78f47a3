"""ACP's methods that change the agent's mode, model and options."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from ..sessions.settings import SetConfigOption, SetMode, SetModel, Setting
from . import jsonrpc, params
from .params import read_params
from .requests import Requests
from .subscription import SessionSubscription


class SettingMethods:
    """The setting methods of one connection.

    Args:
        subscription: returns the connection's subscription to a session.
    """

    def __init__(
        self,
        requests: Requests,
        subscription: Callable[[str], Awaitable[SessionSubscription]],
    ) -> None:
        self._requests = requests
        self._subscription = subscription
        self.by_name: Mapping[str, Callable[[jsonrpc.Request], Awaitable[None]]] = {
            "session/set_mode": self._set_mode,
            "session/set_model": self._set_model,
            "session/set_config_option": self._set_config_option,
        }

    async def _set_mode(self, request: jsonrpc.Request) -> None:
        change = read_params(params.SetModeParams, request.params)
        await self._set(request, change.session_id, SetMode(change.mode_id))

    async def _set_model(self, request: jsonrpc.Request) -> None:
        change = read_params(params.SetModelParams, request.params)
        await self._set(request, change.session_id, SetModel(change.model_id))

    async def _set_config_option(self, request: jsonrpc.Request) -> None:
        change = read_params(params.SetConfigOptionParams, request.params)
        await self._set(request, change.session_id, SetConfigOption(change.config_id, change.value))

    async def _set(self, request: jsonrpc.Request, session_id: str, setting: Setting) -> None:
        subscription = await self._subscription(session_id)
        self._requests.check_limit()
        # Requested at once, so that the client's next prompt waits for it.
        change = subscription.session.request_change(setting)

        async def respond() -> None:
            self._requests.respond(request, await change.wait())

        self._requests.execute_in_background(request, respond())
