"""The agent that a session was created for, as the backend needs it."""

from __future__ import annotations

from ..agents.base import AgentSpec
from ..agents.traits import AgentTraits
from .announcement import Announcement
from .core import SessionCore
from .options import agent_parameters


def agent_traits(core: SessionCore) -> AgentTraits:
    return core.context.backend.traits(core.row.agent)


def system_delivery(core: SessionCore) -> str | None:
    """The way in which the agent gets the system prompt; None without one.

    Returns:
        ``agent`` if it takes the system prompt at its start, ``prompt`` if the server puts it in
        front of the first prompt.
    """
    if core.row.system is None:
        return None
    return "agent" if agent_traits(core).takes_system else "prompt"


def agent_spec(core: SessionCore) -> AgentSpec:
    row, options = core.row, core.options
    git, announced = options.git, Announcement.of(options)
    return AgentSpec(
        key=row.id,
        agent=row.agent,
        cwd=row.cwd,
        model=row.model,
        system=row.system,
        permission=row.permission,
        preface=row.system if system_delivery(core) == "prompt" else None,
        owner=row.app_name,
        parameters=agent_parameters(options, core.context.settings.mcp_servers),
        elicitation=announced.elicitation,
        repository=git.repository if git is not None and git.worktree else None,
        client_capabilities=announced.client_capabilities,
    )
