"""Forks an agent's conversation for another session, with ACP's ``session/fork``."""

from __future__ import annotations

import asyncio
import logging

from ...errors import Error
from ..base import AgentState
from .acpx_session import AcpxSession
from .agent_process import AgentProcess
from .calls import CallError, HostGoneError

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
