"""The MCP servers of a session, in ACP's shapes. Values of variables and headers are secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from .validation import form, in_words

MAX_ENTRIES = 256
_WITHOUT_NUL = form(r"^[^\x00]*$", "text without the character NUL")
_HEADER_NAME = form(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", "the name of an HTTP header")
_FIELD_VALUE = form(r"^[^\x00\r\n]*$(?!\n)", "one line of text without the character NUL")
_VARIABLE_NAME = form(r"^[^=\x00]+$", "the name of a variable, without '=' and the character NUL")

PlainText = Annotated[str, msgspec.Meta(pattern=_WITHOUT_NUL, max_length=32 << 10)]
ServerName = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_FIELD_VALUE)]


class EnvVariable(msgspec.Struct, frozen=True):
    """A variable of an MCP server's environment, in ACP's format."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=_VARIABLE_NAME)]
    value: PlainText

    __repr__ = object.__repr__


class HttpHeader(msgspec.Struct, frozen=True):
    """A header of the requests to an MCP server, in ACP's format."""

    name: Annotated[str, msgspec.Meta(max_length=256, pattern=_HEADER_NAME)]
    value: Annotated[str, msgspec.Meta(max_length=32 << 10, pattern=_FIELD_VALUE)]

    __repr__ = object.__repr__


class McpServer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of ACP's McpServer objects. `stdio` has a `command`, `http` and `sse` have a `url`."""

    name: ServerName
    type: Literal["stdio", "http", "sse"] = "stdio"
    command: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=_WITHOUT_NUL)] | None
    ) = None
    args: Annotated[list[PlainText], msgspec.Meta(max_length=MAX_ENTRIES)] | None = None
    env: Annotated[list[EnvVariable], msgspec.Meta(max_length=MAX_ENTRIES)] | None = None
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)] | None = None
    headers: Annotated[list[HttpHeader], msgspec.Meta(max_length=MAX_ENTRIES)] | None = None
    meta: dict[str, Any] | None = msgspec.field(name="_meta", default=None)

    __repr__ = object.__repr__

    def for_agent(self) -> dict[str, Any]:
        """Return the object that the agent receives, with every field that ACP requires."""
        meta = {} if self.meta is None else {"_meta": self.meta}
        if self.type == "stdio":
            return {
                "name": self.name,
                "command": self.command,
                "args": self.args or [],
                "env": msgspec.to_builtins(self.env or []),
                **meta,
            }
        headers = msgspec.to_builtins(self.headers or [])
        return {"type": self.type, "name": self.name, "url": self.url, "headers": headers, **meta}

    def secrets(self) -> Iterator[str]:
        """The values that nobody must see."""
        for entry in (*(self.env or ()), *(self.headers or ())):
            yield entry.value

    def view(self) -> dict[str, Any]:
        """The server as clients see it: without a value, an argument or a URL."""
        shown: dict[str, Any] = {"name": self.name, "type": self.type}
        if self.type == "stdio":
            return {**shown, "env": [entry.name for entry in self.env or ()]}
        return {**shown, "headers": [entry.name for entry in self.headers or ()]}


Presets = Mapping[str, McpServer]
"""The operator's MCP servers by name, which clients may use by that name."""


def check_mcp_server(server: McpServer) -> None:
    """Check that a server has the fields of its type, and no others.

    Raises:
        ValueError: it has not; the message names the field, and no value.
    """
    if server.type == "stdio":
        if server.command is None:
            raise ValueError("command: the field is missing")
        unused = [name for name in ("url", "headers") if getattr(server, name) is not None]
    else:
        if server.url is None:
            raise ValueError("url: the field is missing")
        _check_url(server.url)
        unused = [name for name in ("command", "args", "env") if getattr(server, name) is not None]
    if unused:
        raise ValueError(f"{unused[0]}: not a field of the type {server.type!r}")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("url: must be an http:// or https:// address")


def presets(value: str) -> Presets:
    """Read the setting ``CLAWDFORGE_MCP_SERVERS``.

    Raises:
        ValueError: it is not JSON of names and servers.
    """
    shape = 'must be a JSON object such as {"files": {"command": "mcp-files", "args": []}}'
    try:
        raw = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(shape) from None
    if not isinstance(raw, dict) or not all(isinstance(entry, dict) for entry in raw.values()):
        raise ValueError(shape)
    return MappingProxyType({name: _preset(name, server) for name, server in raw.items()})


def _preset(name: str, raw: Mapping[str, Any]) -> McpServer:
    if raw.get("name", name) != name:
        raise ValueError(f"server {name!r}: its name is that of the preset")
    try:
        server = msgspec.convert({**raw, "name": name}, McpServer)
        check_mcp_server(server)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"server {name!r}: {in_words(error)}") from None
    return server
