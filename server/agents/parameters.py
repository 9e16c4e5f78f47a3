"""The parameters of an agent: what it gets at each start, and each time it opens its conversation.

acpx passes some of them with ``session/new`` only, and stores variables in plain text. So the
server adds them itself: it sets the variables when it starts the agent, and adds the others to the
requests that open a conversation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..errors import bad_request, not_supported
from ..mcp_servers import McpServer

CLAUDE_SETTING_SOURCES = ("project", "local")
"""The settings that acpx lets claude read, by default: not those of the server's user."""
USER_SETTINGS = "ACPX_CLAUDE_INCLUDE_USER_SETTINGS"
"""acpx's own variable that adds the settings of the server's user."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentParameters:
    """The parameters of one session's agent.

    Attributes:
        environ: variables, which precede those of the app and of the server.
        mcp_servers: the servers, and the names of presets that do not exist any more.
        additional_directories: resolved paths.
        allowed_tools: the tools that the agent may use without asking; None for its own choice.
        max_turns: the limit of the agent's requests to its model in a turn.
    """

    environ: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    mcp_servers: tuple[McpServer | str, ...] = dataclasses.field(default=(), repr=False)
    additional_directories: tuple[str, ...] = ()
    allowed_tools: tuple[str, ...] | None = None
    max_turns: int | None = None

    def secrets(self) -> Iterator[str]:
        """The values that must not appear in an error or in the log."""
        yield from self.environ.values()
        for server in self.mcp_servers:
            if isinstance(server, McpServer):
                yield from server.secrets()
                if server.url and urlsplit(server.url).query:
                    yield server.url

    def options_for_acpx(self) -> dict[str, Any]:
        """The ``sessionOptions`` that acpx passes on when it creates the session."""
        options: dict[str, Any] = {}
        if self.allowed_tools is not None:
            options["allowedTools"] = self.allowed_tools
        if self.max_turns is not None:
            options["maxTurns"] = self.max_turns
        return options

    def request_fields(self, capabilities: Any, agent: str) -> dict[str, Any]:
        """The fields to add to a request that opens the conversation.

        Args:
            capabilities: the ``agentCapabilities`` that the agent reported.
            agent: its name, for errors.

        Raises:
            Error: ``not_supported``, or ``bad_request`` if a preset does not exist any more.
        """
        known = capabilities if isinstance(capabilities, dict) else {}
        fields: dict[str, Any] = {}
        if self.mcp_servers:
            supported = known.get("mcpCapabilities")
            kinds = supported if isinstance(supported, dict) else {}
            fields["mcpServers"] = [_for_agent(server, kinds, agent) for server in self.mcp_servers]
        if self.additional_directories:
            session = known.get("sessionCapabilities")
            if not isinstance(session, dict) or session.get("additionalDirectories") is None:
                raise not_supported(
                    f"additional_directories: the agent {agent!r} does not support them"
                )
            fields["additionalDirectories"] = list(self.additional_directories)
        return fields


NO_PARAMETERS = AgentParameters()


def _for_agent(server: McpServer | str, kinds: Mapping[str, Any], agent: str) -> dict[str, Any]:
    if not isinstance(server, McpServer):
        raise bad_request(f"mcp_servers: the server has no preset {server!r} any more")
    if server.type != "stdio" and not kinds.get(server.type):
        raise not_supported(
            f"mcp_servers: {server.name!r}: the agent {agent!r} does not support the type"
            f" {server.type!r}"
        )
    return server.for_agent()


def claude_meta(
    parameters: AgentParameters, system: Any, environ: Mapping[str, str]
) -> dict[str, Any]:
    """The ``_meta`` that acpx sends to claude with ``session/new``, and that a load needs again.

    Args:
        system: the system prompt, or None.
        environ: the variables of the acpx host.
    """
    with_user = environ.get(USER_SETTINGS, "").strip() == "1"
    sources = (*(("user",) if with_user else ()), *CLAUDE_SETTING_SOURCES)
    options = {"settingSources": sources, **parameters.options_for_acpx()}
    meta: dict[str, Any] = {"claudeCode": {"options": options}}
    if system:
        meta["systemPrompt"] = system
    return meta
