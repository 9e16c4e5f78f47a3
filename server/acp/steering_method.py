"""The extension ``_session/steering``: a client's prompt for the running turn."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..agents import steering
from ..auth.credential import Credential
from ..auth.prompts import send_prompt
from ..sessions.content import check_content
from ..sessions.steering import NotSteeredError, SteerRequest
from . import jsonrpc, params
from .params import read_params
from .requests import Requests
from .subscription import SessionSubscription


class SteeringMethod:
    """The method of one connection that adds a prompt to the running turn.

    Args:
        subscription: returns the connection's subscription to a session.
        upgrade_id: the id of the upgrade request, for the server's log.
    """

    def __init__(
        self,
        requests: Requests,
        subscription: Callable[[str], Awaitable[SessionSubscription]],
        credential: Credential,
        upgrade_id: str,
    ) -> None:
        self._requests = requests
        self._subscription = subscription
        self._credential = credential
        self._upgrade_id = upgrade_id
        self.by_name: Mapping[str, Callable[[jsonrpc.Request], Awaitable[None]]] = {
            steering.METHOD: self._steer
        }

    async def _steer(self, request: jsonrpc.Request) -> None:
        steer = read_params(params.SteerParams, request.params)
        blocks = check_content(steer.prompt)
        subscription = await self._subscription(steer.session_id)
        prompt_id = steer.session_options.prompt_id or f"acp-{uuid.uuid4()}"

        async def respond() -> None:
            result = await self._add_to_turn(
                subscription, blocks, prompt_id, SteerRequest(or_queue=steer.or_queue)
            )
            self._requests.respond(request, result)

        self._requests.execute_in_background(request, respond())

    async def _add_to_turn(
        self,
        subscription: SessionSubscription,
        blocks: list[dict[str, Any]],
        prompt_id: str,
        steer: SteerRequest,
    ) -> dict[str, str]:
        """Add a prompt to the running turn, and return the result of the request."""
        subscription.own_prompt_ids.add(prompt_id)
        try:
            accepted = await send_prompt(
                self._credential,
                subscription.session,
                blocks,
                request_id=self._upgrade_id,
                client_id=prompt_id,
                steer=steer,
            )
        except NotSteeredError:
            subscription.own_prompt_ids.discard(prompt_id)
            return {"outcome": "promptRequired", "reason": "noRunningTurn"}
        return {"outcome": "injected" if accepted.is_steered else "startedNewTurn"}
