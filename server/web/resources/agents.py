"""The agents that sessions can use."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from ..context import context_of
from ..endpoint import Endpoint, Tag


class AgentEntry(msgspec.Struct, kw_only=True):
    """An agent that a session can name."""

    name: str
    installed: bool
    default: bool
    install: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The command that installs it, if it is not installed."),
    ] = msgspec.UNSET


class AgentList(msgspec.Struct, kw_only=True):
    """All agents."""

    agents: list[AgentEntry]


@Endpoint(
    "GET",
    "/agents",
    tag=Tag.SESSIONS,
    summary="List the agents",
    example={"ok": True, "agents": [{"name": "demo", "installed": True, "default": True}]},
)
async def list_agents(request: web.Request) -> AgentList:
    agents = [
        AgentEntry(
            name=info.name,
            installed=info.installed,
            default=is_default,
            install=msgspec.UNSET if info.installed else info.install or msgspec.UNSET,
        )
        for info, is_default in await context_of(request).sessions.agents.all()
    ]
    return AgentList(agents=agents)
