"""The logins of agents, which all apps share."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from ...errors import not_found
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import doc


class Authenticate(msgspec.Struct, frozen=True):
    """The method with which an agent logs in."""

    method_id: Annotated[
        str, msgspec.Meta(min_length=1, max_length=200), doc("One of the agent's `auth_methods`.")
    ]


class LoggedIn(msgspec.Struct, kw_only=True):
    """The agent works with its login."""

    agent: str
    method_id: str


class LoggedOut(msgspec.Struct, kw_only=True):
    """The agent has logged out."""

    agent: str
    login_required: Annotated[
        bool, doc("Whether the agent needs a login now; it may still have a key.")
    ]


@Endpoint(
    "POST",
    "/admin/agents/{name}/authenticate",
    tag=Tag.OPERATOR,
    summary="Log an agent in",
    description="Calls ACP's `authenticate` on a new process of the agent. The login is that of the"
    " server's user: all apps share it. A method that needs a person at the server cannot succeed.",
    auth="admin",
    request_example={"method_id": "api-key"},
    example={"ok": True, "agent": "codex", "method_id": "api-key"},
    failures=(
        *("not_found", "not_supported", "login_required"),
        *("agent_unavailable", "agent_failed", "agent_timeout"),
    ),
)
async def log_agent_in(request: web.Request, body: Authenticate) -> LoggedIn:
    agent = await _agent_of(request)
    await context_of(request).logins.authenticate(agent, body.method_id)
    return LoggedIn(agent=agent, method_id=body.method_id)


@Endpoint(
    "POST",
    "/admin/agents/{name}/logout",
    tag=Tag.OPERATOR,
    summary="Log an agent out",
    description="Calls ACP's `logout` on a new process of the agent. Running agents may keep their"
    " login until they hibernate.",
    auth="admin",
    example={"ok": True, "agent": "codex", "login_required": True},
    failures=("not_found", "not_supported", "agent_unavailable", "agent_failed", "agent_timeout"),
)
async def log_agent_out(request: web.Request) -> LoggedOut:
    agent = await _agent_of(request)
    is_required = await context_of(request).logins.log_out(agent)
    return LoggedOut(agent=agent, login_required=is_required)


async def _agent_of(request: web.Request) -> str:
    """The agent that the path names.

    Raises:
        Error: ``not_found``, or ``agent_unavailable`` if it is not installed.
    """
    agents = context_of(request).sessions.agents
    name = request.match_info["name"]
    if name not in [info.name for info, _ in await agents.all()]:
        raise not_found("agent")
    return await agents.choose(name)
