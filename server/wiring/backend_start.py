"""The start of the agent backend, beside that of the other parts."""

from __future__ import annotations

import asyncio
import contextlib

from ..backends import AgentBackend
from ..errors import StartError


def begin_start(
    stack: contextlib.AsyncExitStack, backend: AgentBackend, default_agent: str | None
) -> asyncio.Task[None]:
    """Start the backend in a task; *stack* stops it.

    Its process takes longer to start than everything else that the server still has to start.

    The task raises :class:`AcpxError`, or :class:`StartError` if the backend does not know
    *default_agent*.
    """

    async def start() -> None:
        await backend.start()
        known = [info.name for info in await backend.agents()]
        if default_agent not in (None, *known):
            raise StartError(f"CLAWDFORGE_DEFAULT_AGENT: must be one of {', '.join(known)}")

    starting = asyncio.create_task(start(), name="backend-start")

    async def stop() -> None:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await backend.stop()

    stack.push_async_callback(stop)
    return starting
