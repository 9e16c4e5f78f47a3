"""The options in a session's state, without their secrets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ..config import Settings
from ..mcp_servers import McpServer, Presets
from .options import ELICITATION_MODES, SessionOptions, WorkspaceChoice, ask_timeout


class McpServerInfo(msgspec.Struct, kw_only=True):
    """An MCP server of a session, without its secrets."""

    name: str
    type: str
    env: Annotated[list[str], msgspec.Meta(description="The names of its variables.")] | (
        msgspec.UnsetType
    ) = msgspec.UNSET
    headers: Annotated[list[str], msgspec.Meta(description="The names of its headers.")] | (
        msgspec.UnsetType
    ) = msgspec.UNSET


class GitWorkspaceInfo(msgspec.Struct, kw_only=True):
    """The repository that a session works in."""

    repository: str
    branch: str | None
    worktree: bool


class WorkspaceInfo(msgspec.Struct, kw_only=True):
    """The choice of a session's folder."""

    git: GitWorkspaceInfo | None


class OptionsInfo(msgspec.Struct, kw_only=True):
    """The options in a session's state."""

    ask_timeout_secs: Annotated[
        float, msgspec.Meta(description="Seconds for which a request waits for a client.")
    ]
    elicitation: Literal["off", "ask"]
    elicitation_modes: list[Literal["form", "url"]]
    client_capabilities: list[Literal["plan", "subagents"]]
    mcp_servers: list[McpServerInfo]
    allowed_tools: list[str] | None
    max_turns: int | None
    env: Annotated[list[str], msgspec.Meta(description="The names of the agent's variables.")]
    additional_directories: list[str]
    workspace: WorkspaceInfo | None


INFO_EXAMPLE = {
    "ask_timeout_secs": 300,
    "elicitation": "off",
    "elicitation_modes": ["form", "url"],
    "client_capabilities": [],
    "mcp_servers": [],
    "allowed_tools": None,
    "max_turns": None,
    "env": [],
    "additional_directories": [],
    "workspace": None,
}


def options_view(options: SessionOptions, settings: Settings) -> dict[str, Any]:
    """The fields of :class:`OptionsInfo`."""
    servers = options.mcp_servers or ()
    return {
        "ask_timeout_secs": ask_timeout(options, settings),
        "elicitation": options.elicitation or "off",
        "elicitation_modes": options.elicitation_modes or list(ELICITATION_MODES),
        "client_capabilities": options.client_capabilities or [],
        "mcp_servers": [_server_view(server, settings.mcp_servers) for server in servers],
        "allowed_tools": options.allowed_tools,
        "max_turns": options.max_turns,
        "env": sorted(options.env or ()),
        "additional_directories": options.additional_directories or [],
        "workspace": _workspace_view(options.workspace),
    }


def _workspace_view(choice: WorkspaceChoice | None) -> dict[str, Any] | None:
    if choice is None or choice.git is None:
        return None
    git = choice.git
    return {"git": {"repository": git.repository, "branch": git.branch, "worktree": git.worktree}}


def _server_view(server: McpServer | str, presets: Presets) -> dict[str, Any]:
    if isinstance(server, McpServer):
        return server.view()
    preset = presets.get(server)  # its variables are the operator's
    return {"name": server, "type": "preset" if preset is None else preset.type}
