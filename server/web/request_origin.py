"""Reads where a request comes from: client address, bearer token, Origin and Host headers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from ..config import Settings
from ..errors import Error, ErrorCode
from ..origins import (
    DEFAULT_PORTS,
    Address,
    Network,
    address_of,
    address_of_hop,
    is_host_of,
    is_in_networks,
    is_loopback,
    origin_of,
    without_port,
)

MAX_HOPS = 32
"""Addresses of one proxy header that are read. If all of them are trusted proxies, the client's
address is unknown."""

_FORWARDED_ELEMENT = re.compile(r'(?:[^,"]|"[^"]*")+')
_FORWARDED_FOR = re.compile(r"""(?:^|[;,])\s*for\s*=\s*("[^"]*"|[^;,"]*)""", re.IGNORECASE)


def client_address(request: web.Request, trusted: Sequence[Network]) -> str | None:
    """Return the address of the client that sent *request*, possibly through *trusted* proxies.

    Each proxy appends the address of its own client to X-Forwarded-For or Forwarded. The last
    address that no trusted proxy has is the client's: the client may have written everything
    before it.

    Returns:
        The address, or "" if the headers do not identify one client.
    """
    remote = address_of(request.remote or "")
    if not is_in_networks(remote, trusted):
        return request.remote
    clients = {
        _last_untrusted(hops, remote, trusted)
        for hops in (_x_forwarded_for(request), _forwarded(request))
        if hops is not None
    }
    # A proxy that writes only one of the two headers passes on the other as the client sent it.
    if not clients:
        return request.remote
    return clients.pop() if len(clients) == 1 else ""


def _last_untrusted(hops: list[str], address: Address | None, trusted: Sequence[Network]) -> str:
    left = MAX_HOPS
    while hops and is_in_networks(address, trusted):
        left -= 1
        address = address_of_hop(hops.pop()) if left else None
    return "" if address is None else str(address)


def _x_forwarded_for(request: web.Request) -> list[str] | None:
    lines = request.headers.getall("X-Forwarded-For", None)
    return None if lines is None else [hop for line in lines for hop in line.split(",")]


def _forwarded(request: web.Request) -> list[str] | None:
    """Return the ``for`` addresses of the ``Forwarded`` headers (RFC 7239), in their order."""
    lines = request.headers.getall("Forwarded", None)
    if lines is None:
        return None
    elements = [element for line in lines for element in _FORWARDED_ELEMENT.findall(line)]
    matches = [_FORWARDED_FOR.search(element) for element in elements]
    return [match[1] if match else "" for match in matches]


def bearer(request: web.Request) -> str | None:
    """Return the token of the Authorization header, or None."""
    lines = request.headers.getall("Authorization", [])
    # With two headers, a proxy may have checked the one that the server would not use.
    scheme, _, token = lines[0].partition(" ") if len(lines) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        return None
    return token.strip() or None


def check_origin(request: web.Request, settings: Settings) -> None:
    """Refuse a request of a web page whose origin is not allowed.

    Raises:
        Error: ``forbidden``.
    """
    lines = request.headers.getall("Origin", [])
    if not lines:
        return
    try:
        [line] = lines
        origin = origin_of(line)
        scheme = origin.partition("://")[0]
        if origin in settings.allowed_origins:
            return
        if scheme in DEFAULT_PORTS and origin == origin_of(f"{scheme}://{request.host}"):
            return
    except ValueError:
        pass  # several or malformed origins: no browser sends them
    raise Error(ErrorCode.FORBIDDEN, "this origin is not allowed; see CLAWDFORGE_ALLOWED_ORIGINS")


def check_host(request: web.Request, settings: Settings) -> None:
    """Refuse a request whose Host header names another server.

    This prevents DNS rebinding: a page can make its own host name resolve to this server. The
    server knows its own names only if it listens on a loopback address, or if the operator has
    listed them.

    Raises:
        Error: ``forbidden``.
    """
    if not settings.allowed_hosts and not is_loopback(settings.host):
        return
    host = request.host.lower()
    name = without_port(host)
    if name.endswith("."):  # a fully qualified name
        host = host.replace(name, name[:-1], 1)
        name = name[:-1]
    # DNS rebinding needs a name; these cannot be pointed at another machine.
    address = address_of(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    if name == "localhost" or (address is not None and address.is_loopback):
        return
    if {host, name} & set(settings.allowed_hosts):
        return
    if not any(is_host_of(host, origin) for origin in settings.allowed_origins):
        raise Error(
            ErrorCode.FORBIDDEN, "this host name is not allowed; see CLAWDFORGE_ALLOWED_HOSTS"
        )
