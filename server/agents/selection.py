"""The choice of an agent by name, and the default agent."""

from __future__ import annotations

from ..errors import Error, ErrorCode, bad_request
from .base import AgentInfo, Backend

FALLBACK_AGENT = "demo"
PREFERRED_AGENT = "claude"


class AgentSelection:
    """Chooses agents for clients.

    Args:
        default: the configured default agent; None for Claude Code if it is installed, otherwise
            the demo agent.
    """

    def __init__(self, backend: Backend, default: str | None) -> None:
        self._backend = backend
        self._default = default

    async def all(self) -> list[tuple[AgentInfo, bool]]:
        """Every known agent, and whether it is the default."""
        infos = await self._backend.agents()
        default = await self._default_name()
        return [(info, info.name == default) for info in infos]

    async def choose(self, name: str | None) -> str:
        """Check that the agent can be started, and return its name.

        Args:
            name: of the agent; None for the default agent.

        Raises:
            Error: ``bad_request`` if the agent is not known; ``agent_unavailable`` if it is not
                installed.
        """
        chosen = await self._default_name() if name is None else name
        for info in await self._backend.agents(chosen):
            if info.installed:
                return info.name
            raise Error(
                ErrorCode.AGENT_UNAVAILABLE,
                f"the agent {chosen!r} is not installed: {info.install}",
            )
        known = ", ".join(info.name for info in await self._backend.agents())
        raise bad_request(f"agent: {chosen!r} is not known; these are: {known}")

    async def _default_name(self) -> str:
        if self._default is not None:
            return self._default
        infos = await self._backend.agents(PREFERRED_AGENT)
        return PREFERRED_AGENT if any(info.installed for info in infos) else FALLBACK_AGENT
