"""The agents that sessions can use."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from ..context import app_name_of, context_of
from ..endpoint import Endpoint, Tag
from ..field_types import doc

KnownValue = TypeVar("KnownValue")


class AgentEntry(msgspec.Struct, kw_only=True):
    """An agent that a session can name."""

    name: str
    installed: bool
    default: bool
    install: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The command that installs it, if it is not installed."),
    ] = msgspec.UNSET
    auth_methods: Annotated[
        list[Any] | msgspec.UnsetType,
        doc("The agent's own list of logins, in ACP's format, once it has been started."),
    ] = msgspec.UNSET
    login_required: Annotated[
        bool | msgspec.UnsetType,
        doc("Whether the agent requires a login from this app, once it has been used."),
    ] = msgspec.UNSET


class AgentList(msgspec.Struct, kw_only=True):
    """All agents."""

    agents: list[AgentEntry]


@Endpoint(
    "GET",
    "/agents",
    tag=Tag.SESSIONS,
    scope="read",
    summary="List the agents",
    example={"ok": True, "agents": [{"name": "demo", "installed": True, "default": True}]},
)
async def list_agents(request: web.Request) -> AgentList:
    context, app_name = context_of(request), app_name_of(request)
    logins = context.logins.states
    agents = [
        AgentEntry(
            name=info.name,
            installed=info.installed,
            default=is_default,
            install=msgspec.UNSET if info.installed else info.install or msgspec.UNSET,
            auth_methods=_unset_if_none(logins.methods(info.name)),
            login_required=_unset_if_none(logins.is_required(info.name, app_name)),
        )
        for info, is_default in await context.sessions.agents.all()
    ]
    return AgentList(agents=agents)


def _unset_if_none(value: KnownValue | None) -> KnownValue | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value
