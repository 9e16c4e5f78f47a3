"""The checks of a session's options that their types cannot express."""

from __future__ import annotations

from typing import Any

from ..agents.agent_settings import can_load
from ..agents.base import Backend
from ..config import Settings
from ..errors import Error, ErrorCode, bad_request, not_supported
from ..mcp_servers import McpServer, Presets, check_mcp_server
from ..validation import check_environ
from .options import SessionOptions


def check_options(options: SessionOptions, settings: Settings) -> None:
    """Check what the types of the options cannot express.

    Raises:
        Error: ``bad_request`` or ``payload_too_large``.
    """
    servers = options.mcp_servers or []
    if len(servers) > settings.max_mcp_servers:
        raise bad_request(f"mcp_servers: at most {settings.max_mcp_servers}")
    names = set()
    for server in servers:
        _check_server(server, settings.mcp_servers)
        name = server.name if isinstance(server, McpServer) else server
        if name in names:
            raise bad_request(f"mcp_servers: two of them have the name {name!r}")
        names.add(name)
    check_environ(options.env or {})
    limit = settings.max_options_bytes
    if len(options.encode() or "") > limit:
        raise Error(ErrorCode.PAYLOAD_TOO_LARGE, f"the options have at most {limit} bytes of JSON")


def _check_server(server: McpServer | str, presets: Presets) -> None:
    if isinstance(server, McpServer):
        try:
            check_mcp_server(server)
        except ValueError as error:
            raise bad_request(f"mcp_servers: {server.name!r}: {error}") from None
    elif server not in presets:
        known = ", ".join(sorted(presets)) or "none"
        raise bad_request(f"mcp_servers: there is no preset {server!r}; known presets: {known}")


def check_for_agent(options: SessionOptions, backend: Backend, agent: str) -> None:
    """Check that the agent takes the options, as far as this is known before it starts.

    Raises:
        Error: ``not_supported``.
    """
    for name in options.agent_options:
        if name in backend.unsupported_options:
            raise not_supported(f"{name}: not supported by the cli backend")
        takes = backend.traits(agent).takes_claude_options
        if name in ("allowed_tools", "max_turns") and not takes:
            raise not_supported(f"{name}: the agent {agent!r} does not support it")


def check_elicitation(options: SessionOptions, backend: Backend) -> None:
    """Check that the questions of agents can come to sessions.

    Raises:
        Error: ``not_supported``.
    """
    if options.announced_modes and not backend.can_ask:
        raise not_supported('elicitation: "ask" is not supported by the cli backend')


def check_can_reload(capabilities: Any) -> None:
    """Check that an agent can be started again with its conversation, to learn of new options.

    Args:
        capabilities: the ``agentCapabilities`` that it reported.

    Raises:
        Error: ``not_supported``.
    """
    if isinstance(capabilities, dict) and not can_load(capabilities):
        raise not_supported(
            "elicitation: the agent must be started again for that, and it cannot load its"
            " conversation: open a new session"
        )
