"""The options of a session in ACP's messages: in the parameters, and in ``_meta.clawdforge``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..mcp_servers import McpServer
from ..sessions.option_checks import check_for_agent, check_options
from ..sessions.options import NO_OPTIONS, SessionOptions
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from ..validation import in_words
from .jsonrpc import INVALID_PARAMS, JsonRpcError
from .params import NAMESPACE, LoadSessionParams, NewSessionParams


def options_in_meta(params: Any, defaults: SessionOptions = NO_OPTIONS) -> SessionOptions:
    """Return the options in the ``_meta.clawdforge`` of a message.

    The names are those of REST, or the same in camel case.

    Args:
        params: of a request, in which the types of other fields have been checked.
        defaults: for the options that are missing.

    Raises:
        JsonRpcError: -32602.
    """
    meta = params.get("_meta") if isinstance(params, dict) else None
    given = meta.get(NAMESPACE) if isinstance(meta, dict) else None
    if not isinstance(given, dict):
        return defaults
    fields = {_snake_case(name): value for name, value in given.items()}
    try:
        options = msgspec.convert(fields, SessionOptions)
    except (msgspec.ValidationError, RecursionError) as error:
        raise JsonRpcError(INVALID_PARAMS, f"_meta.{NAMESPACE}.{in_words(error)}") from None
    return merged_options(defaults, options)


def merged_options(before: SessionOptions, chosen: SessionOptions) -> SessionOptions:
    """Return *before* with the options that *chosen* has."""
    values = {name: getattr(chosen, name) for name in SessionOptions.__struct_fields__}
    changed = {name: value for name, value in values.items() if value != getattr(NO_OPTIONS, name)}
    return msgspec.structs.replace(before, **changed)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def supports_directories(sessions: SessionRegistry) -> bool:
    """Whether clients can choose additional directories: only in workspace roots."""
    unsupported = "additional_directories" in sessions.backend.unsupported_options
    return bool(sessions.settings.workspace_roots) and not unsupported


def agent_capabilities(
    sessions: SessionRegistry, capabilities: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``agentCapabilities`` of the server, for an agent with these *capabilities*."""
    known = capabilities.get("mcpCapabilities")
    mcp = known if isinstance(known, dict) else {}
    session_capabilities = capabilities.get("sessionCapabilities")
    has_directories = (
        supports_directories(sessions)
        and isinstance(session_capabilities, dict)
        and session_capabilities.get("additionalDirectories") is not None
    )
    directories: dict[str, Any] = {"additionalDirectories": {}} if has_directories else {}
    return {
        "loadSession": True,
        "promptCapabilities": capabilities.get("promptCapabilities") or {},
        "mcpCapabilities": {kind: mcp.get(kind) is True for kind in ("http", "sse")},
        "sessionCapabilities": {
            **{name: {} for name in ("list", "resume", "close", "delete", "fork", "title")},
            **directories,
        },
    }


def ignored_params(
    params: NewSessionParams | LoadSessionParams, sessions: SessionRegistry
) -> list[str]:
    """The parameters that the client has sent and the server does not support."""
    if params.additional_directories and not supports_directories(sessions):
        return ["additionalDirectories"]
    return []


def with_params(
    options: SessionOptions, params: NewSessionParams | LoadSessionParams, sessions: SessionRegistry
) -> SessionOptions:
    """Return *options* with the MCP servers and directories in a request's own parameters."""
    servers, directories = params.mcp_servers, params.additional_directories
    if servers:
        options = msgspec.structs.replace(
            options, mcp_servers=_merged_servers(servers, options.mcp_servers or ())
        )
    if directories and supports_directories(sessions):
        options = msgspec.structs.replace(options, additional_directories=directories)
    return options


def _merged_servers(
    servers: Sequence[McpServer], others: Sequence[McpServer | str]
) -> list[McpServer | str]:
    """The *servers* of the request, and those of *others* that have other names."""
    names = {server.name for server in servers}
    return [
        *servers,
        *(
            server
            for server in others
            if (server if isinstance(server, str) else server.name) not in names
        ),
    ]


async def change_options(
    sessions: SessionRegistry, session: Session, load: LoadSessionParams, params: Any
) -> None:
    """Change the options of a session to those with which a client loads it.

    A client that sends none leaves the session as it is. A change applies to the agent's next
    start.

    Raises:
        JsonRpcError: -32602.
        Error: an option is invalid.
    """
    before = SessionOptions.decode(session.row.options)
    options = merged_options(before, with_params(options_in_meta(params), load, sessions))
    if options == before or session.is_closed:
        return
    check_options(options, sessions.settings)
    check_for_agent(options, sessions.backend, session.row.agent)
    options = await sessions.workspaces.check_directories(options)
    names = SessionOptions.__struct_fields__
    await session.editor.change(options={name: getattr(options, name) for name in names})
