"""Stricter sandboxes for the agents of single apps, as the operator demands them with a token."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from ..config import SettingError
from ..errors import Error, ErrorCode, bad_request
from .levels import Level, Mechanism, find_mechanism
from .network_access import NetworkAccess
from .policy import NetworkPolicy

if TYPE_CHECKING:
    from .sandbox import Sandbox

LEVELS: tuple[Level, ...] = ("off", "landlock", "bwrap")
"""The levels, the strictest last."""
NETWORKS: tuple[NetworkPolicy, ...] = ("all", "web", "proxy", "none")
"""The policies for the network, the strictest last."""


class SandboxDemand(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A sandbox that is stricter than the server's, for the agents and the runs of one app.

    The server's own sandbox applies to the extent to which it is stricter.
    """

    level: Annotated[
        Literal["landlock", "bwrap"] | None,
        msgspec.Meta(description="At least this level; the server's otherwise."),
    ] = None
    network: Annotated[
        Literal["web", "none"] | None,
        msgspec.Meta(
            description="TCP connections to the ports 80 and 443 only, or none; the server's policy"
            " otherwise."
        ),
    ] = None


class StricterSandboxes:
    """The sandboxes of the apps that have one of their own.

    Args:
        base: the sandbox of the server.
        environ: its PATH is searched for bubblewrap.

    Attributes:
        environ: the same.
        demand_of: returns the demand for an app; None if there is none.
    """

    def __init__(
        self,
        base: Sandbox,
        environ: Mapping[str, str],
    ) -> None:
        self.demand_of: Callable[[str], SandboxDemand | None] = lambda _: None
        self._base = base
        self.environ = environ
        self._made: dict[SandboxDemand, Sandbox] = {}
        self._lock = threading.Lock()

    def of(self, app_name: str) -> Sandbox:
        """The sandbox of an app."""
        demand = self.demand_of(app_name)
        return self._base if demand is None else self._made[demand]

    def prepare(self, demand: SandboxDemand) -> None:
        """Make the sandbox of a demand. Blocking: it tries whether the level works.

        Raises:
            Error: ``bad_request``, it is less strict than the server's; ``not_supported``, this
                machine cannot enforce it.
        """
        with self._lock:
            made = self._made.get(demand)
            if made is None or made.failure is not None:
                self._made[demand] = self._sandbox(demand)

    def prepare_stored(self, demand: SandboxDemand) -> None:
        """Make the sandbox of a demand that an earlier server, or another node, has accepted.

        If this machine cannot enforce it, it lets no agent start. Blocking.
        """
        try:
            self.prepare(self._at_least_base(demand))
        except Error as error:
            mechanism = Mechanism(demand.level or self._base.level, is_chosen=True, abi=0)
            refusing = _variant(self._base, mechanism, self._base.policy.network)
            refusing.failure = f"the sandbox of the app's token: {error.message}"
            self._made[demand] = refusing
        else:
            self._made[demand] = self._made[self._at_least_base(demand)]

    def _at_least_base(self, demand: SandboxDemand) -> SandboxDemand:
        """The demand without the parts that are less strict than the server's present sandbox."""
        level, network = demand.level, demand.network
        if level is not None and _rank(LEVELS, level) < _rank(LEVELS, self._base.level):
            level = None
        if network is not None and _rank(NETWORKS, network) < _rank(
            NETWORKS, self._base.policy.network
        ):
            network = None
        return SandboxDemand(level, network)

    def _sandbox(self, demand: SandboxDemand) -> Sandbox:
        level, network = (
            demand.level or self._base.level,
            demand.network or self._base.policy.network,
        )
        if self._at_least_base(demand) != demand:
            raise bad_request(
                "sandbox: it is less strict than the server's"
                f" ({self._base.level}, network {self._base.policy.network})"
            )
        mechanism = self._base.mechanism
        if level != mechanism.level:
            try:
                mechanism = find_mechanism(level, self.environ)
            except SettingError as error:
                raise Error(ErrorCode.NOT_SUPPORTED, f"sandbox: {error}") from None
        if level == "off" and network != "all":
            raise bad_request("sandbox.network: it needs a level, as the server has no sandbox")
        if level == "landlock" and network != "all" and not mechanism.limits_tcp:
            raise Error(ErrorCode.NOT_SUPPORTED, "sandbox.network: the kernel cannot limit it")
        made = _variant(self._base, mechanism, network)
        made.prepare()
        return made


def _variant(base: Sandbox, mechanism: Mechanism, network: NetworkPolicy) -> Sandbox:
    """A copy of the sandbox with another mechanism and another policy for the network."""
    made = copy.copy(base)
    made.policy = msgspec.structs.replace(base.policy, network=network)
    made.use_mechanism(mechanism)
    made.network = NetworkAccess(network, mechanism.level, base.network.gateways)
    return made


def _rank(order: tuple[Any, ...], value: Any) -> int:
    return order.index(value)
