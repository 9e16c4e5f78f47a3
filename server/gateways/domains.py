"""The domains that sandboxed programs may reach."""

from __future__ import annotations

from collections.abc import Sequence

from ..hosts import is_public
from ..origins import address_of

DOMAIN_PORTS = (80, 443)


class AllowedDomains:
    """The operator's list: ``crates.io``, ``*.github.com``, ``registry.internal:8443``.

    An entry without a port allows the ports 80 and 443. Addresses that are not public are refused,
    whatever a name resolves to, except for an entry that names one host and one port.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._named: set[tuple[str, int]] = set()
        self._suffixes: set[tuple[str, int]] = set()
        self._private: set[tuple[str, int]] = set()
        for entry in entries:
            name, _, port = entry.partition(":")
            ports = (int(port),) if port else DOMAIN_PORTS
            is_wild = name.startswith("*.")
            target = self._suffixes if is_wild else self._named
            target.update((name.removeprefix("*"), port) for port in ports)
            if port and not is_wild:
                self._private.add((name, int(port)))

    def allows(self, host: str, port: int) -> bool:
        """Whether a program may connect to that host, by its name."""
        host = host.lower().rstrip(".")
        if (host, port) in self._named:
            return True
        labels = host.split(".")
        parents = (".".join(["", *labels[n:]]) for n in range(1, len(labels)))
        return any((parent, port) in self._suffixes for parent in parents)

    def allows_address(self, host: str, port: int, address: str) -> bool:
        """Whether a program may connect to that address of an allowed host."""
        if (host.lower().rstrip("."), port) in self._private:
            return True
        parsed = address_of(address)
        return parsed is not None and is_public(parsed)
