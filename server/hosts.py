"""The hosts to which the server may send requests, as the operator names them.

An app chooses the address of its webhook, and a browser that of its push service. So a request goes
only to a host that the operator has named, and to a private address only if the operator has named
that as well: otherwise an app could reach services that trust the server's network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from .origins import Address, Network, address_of, host_of, is_loopback, network_of, without_port

_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""NAT64: an IPv4 address, perhaps a private one, in an IPv6 address that looks public."""


_OF_MACHINE = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))
"""Addresses of services of a cloud (Oracle, Azure) that Python may take for public ones."""


class HostRule(msgspec.Struct, frozen=True):
    """A host that the operator has named.

    Attributes:
        name: of the host, or its address; IPv6 addresses in brackets.
        port: the only allowed port; None for all.
        has_subdomains: the rule names the hosts below *name* instead.
        network: the rule names the addresses of a network instead.
    """

    name: str
    port: int | None = None
    has_subdomains: bool = False
    network: Network | None = None

    def __str__(self) -> str:
        name = f"*.{self.name}" if self.has_subdomains else self.name
        return name if self.port is None else f"{name}:{self.port}"

    def names(self, host: str, port: int) -> bool:
        """Whether the rule names *host*, in lower case, with that port."""
        if self.port not in (None, port):
            return False
        if self.has_subdomains:
            return host.endswith(f".{self.name}")
        return host == self.name or self.names_address(_literal(host), port)

    def names_address(self, address: Address | None, port: int) -> bool:
        """Whether the rule names an address itself, or its network."""
        if address is None or self.port not in (None, port):
            return False
        return address in self.network if self.network is not None else address == self.address

    @property
    def address(self) -> Address | None:
        """The address, if the rule names one."""
        return _literal(self.name)


def host_rule(text: str) -> HostRule:
    """Parse a rule: ``host``, ``host:port``, ``*.domain`` or a network such as ``10.0.0.0/8``.

    Raises:
        ValueError: *text* is none of them; the message says why.
    """
    if "/" in text:
        try:
            return HostRule(text, network=network_of(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is neither a host nor a network: {error}") from None
    has_subdomains = text.startswith("*.")
    host = host_of(text.removeprefix("*."))
    name = without_port(host)
    port = int(host[len(name) + 1 :]) if host != name else None
    return HostRule(name, port, has_subdomains=has_subdomains)


class AllowedHosts:
    """The hosts and addresses to which requests may go."""

    def __init__(self, rules: Sequence[HostRule]) -> None:
        self._rules = tuple(rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def names(self, host: str, port: int) -> bool:
        """Whether the operator has named a host, in lower case; IPv6 addresses in brackets."""
        return any(rule.names(host, port) for rule in self._rules)

    def allows(self, host: str, address: Address, port: int) -> bool:
        """Whether a request to *host*, which has been named, may go to one of its addresses."""
        return is_public(address) or self._names_private(host, address, port)

    def _names_private(self, host: str, address: Address, port: int) -> bool:
        if address.is_loopback and is_loopback(host):
            return True  # `localhost` always has this address
        return any(rule.names_address(address, port) for rule in self._rules)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and contains no other address."""
    if isinstance(address, ipaddress.IPv6Address):
        embeds = address.sixtofour is not None or address.teredo is not None
        if embeds or address.is_site_local or any(address in network for network in _TRANSLATED):
            return False
    if any(address in network for network in _OF_MACHINE):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _literal(host: str) -> Address | None:
    return address_of(host.removeprefix("[").removesuffix("]"))
