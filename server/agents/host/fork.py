"""Forks and deletes an agent's conversation, with ACP's ``session/fork`` and ``session/delete``."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ...codec import dumps
from ...errors import Error
from ..agent_settings import has_session_capability
from ..agent_state import AgentState
from .acpx_session import AcpxSession
from .agent_process import AgentProcess
from .calls import CallError, HostGoneError
from .own_requests import OwnRequests

logger = logging.getLogger(__name__)

FORK_SECS = 10.0


async def fork_conversation(
    process: AgentProcess, session: AcpxSession, key: str, cwd: str
) -> bool:
    """Fork the conversation of a running process; see :meth:`base.Backend.fork`."""
    proxy = process.proxy
    if proxy is None or process.state is not AgentState.READY:
        return False
    try:
        async with asyncio.timeout(FORK_SECS):
            params = {"cwd": cwd, "mcpServers": []}
            response = await proxy.own_requests.request("session/fork", params)
            result = response.get("result")
            forked = result.get("sessionId") if isinstance(result, dict) else None
            if not isinstance(forked, str) or not forked:
                logger.info("session %s: the agent does not fork its conversation", key)
                return False
            await session.call("adopt", to=key, cwd=cwd, conversation=forked)
    except (TimeoutError, ConnectionError, HostGoneError, CallError, Error) as error:
        logger.info("session %s: the conversation is not forked: %r", key, error)
        return False
    return True


def delete_conversation(requests: OwnRequests, capabilities: Any, key: str) -> None:
    """Ask the agent to delete its conversation, if it offers that. The response is only logged."""

    def note(response: dict[str, Any] | None) -> None:
        failed = response is None or "error" in response
        what = "was not deleted" if failed else "was deleted"
        logger.info("session %s: the conversation of the agent %s", key, what)

    if has_session_capability(capabilities, "delete") and requests.session_id is not None:
        requests.send("session/delete", dumps({"sessionId": requests.session_id}), note)
