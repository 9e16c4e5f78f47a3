"""Origins, hosts and addresses as browsers and proxies write them, checked, in one spelling."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}
NEVER_SENT = frozenset({"about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"})
"""Schemes that no browser sends as a page's origin: it sends ``null``, or the page's own scheme."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f#/:<>?@\[\\\]^`{|}\"%]")
"""Characters that a host in a browser's address never contains."""
_NUMBER = re.compile(r"(\d+|0x[0-9a-f]*)\Z")


def origin_of(text: str) -> str:
    """Return an origin in the spelling in which browsers send it.

    Raises:
        ValueError: *text* is not an origin that browsers send; the message says why.
    """
    if text == "null":
        raise ValueError("'null' is the origin of many different pages")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.match(scheme):
        raise ValueError(f"{text!r} is not an origin such as https://chat.example.org")
    if scheme in NEVER_SENT:
        raise ValueError(f"{text!r}: no page has an origin with {scheme}://")
    if any(mark in rest for mark in "/?#\\"):
        raise ValueError(f"{text!r} has a path, which origins do not have")
    if "@" in rest:
        raise ValueError(f"{text!r} has a user name, which origins do not have")
    host, port = _host_and_port(text, rest, is_web=scheme in DEFAULT_PORTS)
    return f"{scheme}://{host}{'' if port in (None, DEFAULT_PORTS.get(scheme)) else f':{port}'}"


def host_of(text: str) -> str:
    """Return a host, with its port if it has one, in the spelling of the ``Host`` header.

    Raises:
        ValueError: *text* is not a host; the message says why.
    """
    if any(mark in text for mark in "/?#\\@"):
        raise ValueError(f"{text!r} is not a host such as chat.example.org")
    host, port = _host_and_port(text, text, is_web=True)
    return host if port is None else f"{host}:{port}"


def is_host_of(host: str, origin: str) -> bool:
    """Whether *origin* has the host *host*, which comes from a ``Host`` header."""
    scheme, _, known = origin.partition("://")
    return host == known or host == f"{known}:{DEFAULT_PORTS.get(scheme)}"


def without_port(host: str) -> str:
    """*host* of a ``Host`` header, without its port."""
    return re.sub(r":\d*\Z", "", host)


def _host_and_port(text: str, rest: str, *, is_web: bool) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d*))?", rest)
    if match is None:
        raise ValueError(f"{text!r}: the port must be a number from 1 to 65535")
    host, port = match[1], int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{text!r}: the port must be a number from 1 to 65535")
    if not host:
        raise ValueError(f"{text!r} names no host")
    if "*" in host:
        raise ValueError(f"{text!r}: wildcards are not supported; name each host")
    if host.startswith("["):
        return _ipv6(text, host), port
    if _FORBIDDEN.search(host):
        raise ValueError(f"{text!r}: {host!r} is not the name of a host")
    return (_name(text, host) if is_web else host.lower()), port


def _ipv6(text: str, host: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
    except ValueError:
        raise ValueError(f"{text!r}: {host!r} is not an IPv6 address") from None


def _name(text: str, host: str) -> str:
    """A host's name or IPv4 address as browsers write it: in punycode, and in lower case."""
    try:
        name = host.lower() if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise ValueError(f"{text!r}: {host!r} is not the name of a host") from None
    labels = name.removesuffix(".").split(".")
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{text!r}: {host!r} is not the name of a host")
    if _NUMBER.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is not an IPv4 address") from None
    return name


def is_loopback(host: str) -> bool:
    """Whether a host, without brackets, names this machine alone."""
    address = address_of(host)
    if address is not None:
        return address.is_loopback
    name = host.lower().removesuffix(".")
    return name in ("localhost", "localhost.localdomain") or name.endswith(".localhost")


def address_of(text: str) -> Address | None:
    """Parse an IP address without its zone; IPv4-mapped ones become IPv4. None if it is invalid."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def address_of_hop(text: str) -> Address | None:
    """The address in one element of ``X-Forwarded-For``, or after ``for=`` of ``Forwarded``.

    Proxies write it with and without a port, IPv6 with and without brackets. Returns None for any
    other text, such as ``unknown``.
    """
    text = text.strip().strip('"').strip()
    match = re.fullmatch(r"\[([^\]]*)\](?::\d{1,5})?", text) or re.fullmatch(
        r"(\d+\.\d+\.\d+\.\d+)(?::\d{1,5})?", text
    )
    return address_of(match[1] if match else text)


def network_of(text: str) -> Network:
    """Parse a network; an IPv4-mapped one becomes IPv4.

    Raises:
        ValueError: *text* is not a network; the message says why.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def is_in_networks(address: Address | None, networks: Iterable[Network]) -> bool:
    """Whether *address* is known and belongs to one of *networks*."""
    return address is not None and any(address in network for network in networks)
