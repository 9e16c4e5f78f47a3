"""The network of sandboxed programs: the ports, the filter and the way to the gateways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .levels import Level
from .policy import NetworkPolicy, OpenTunnel, SandboxSpec

WEB_PORTS = (80, 443)


class GatewayAddresses(msgspec.Struct):
    """The gateways of the server, once they listen on loopback.

    Attributes:
        key_port, domain_port: their ports; 0 if they are off.
        open_tunnel: see :data:`OpenTunnel`.
    """

    key_port: int = 0
    domain_port: int = 0
    open_tunnel: OpenTunnel | None = None


class NetworkAccess:
    """The targets that sandboxed programs may connect to.

    Attributes:
        is_closed: they reach nothing but the gateways of the server.
        is_own: each sandbox has a network namespace.
        gateways: the gateways of the server.
    """

    def __init__(self, policy: NetworkPolicy, level: Level, gateways: GatewayAddresses) -> None:
        self.gateways = gateways
        self._policy = policy
        self.is_closed = level != "off" and policy in ("proxy", "none")
        self.is_own = level == "bwrap" and self.is_closed

    @property
    def gateway_ports(self) -> list[int]:
        """The ports of the gateways that programs may use."""
        domain_port = self.gateways.domain_port if self._policy == "proxy" else 0
        return [port for port in (self.gateways.key_port, domain_port) if port]

    @property
    def tcp_ports(self) -> tuple[int, ...] | None:
        """The only TCP ports that programs may connect to; None for all."""
        if self._policy == "all" or self.is_own:
            return None
        return (*(WEB_PORTS if self._policy == "web" else ()), *self.gateway_ports)

    @property
    def filter_options(self) -> dict[str, bool]:
        """The options of the filter of system calls."""
        is_restricted = self._policy != "all" and not self.is_own
        is_open = self.is_own or not self.is_closed
        return {"tcp_only": is_restricted, "datagrams": is_open, "servers": is_open}

    def tunnel(self, spec: SandboxSpec) -> Mapping[str, Any] | None:
        """The part ``tunnel`` of a plan: how a program in a namespace reaches the gateways."""
        if not self.is_own or self.gateways.open_tunnel is None:
            return None
        tunnel = self.gateways.open_tunnel(spec)
        ports = ",".join(map(str, self.gateway_ports))
        return {"socket": tunnel.socket, "secret": tunnel.secret, "ports": ports}
