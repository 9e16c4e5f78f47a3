"""The limits on the agents of single apps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ..errors import Error, ErrorCode

AGENT_RETRY_SECS = 5


class OwnLimits:
    """The limits of the apps that have one of their own, and the limit of the others.

    Args:
        default: the limit of an app without one.
        own_limit: returns the limit of an app that has its own; None for the others.
        app_of: returns the app of a holder of a slot.

    Attributes:
        changed: apps that may have more agents than their limit.
    """

    def __init__(
        self,
        default: int,
        own_limit: Callable[[str], int | None],
        app_of: Callable[[Any], str],
    ) -> None:
        self.changed: set[str] = set()
        self._default = default
        self._own_limit = own_limit
        self._app_of = app_of

    def of(self, app_name: str) -> int:
        own = self._own_limit(app_name)
        return self._default if own is None else own

    def check(self, holder: Any, holders: Iterable[Any], waiting: Iterable[Any]) -> None:
        """Check that the app's own limit lets *holder* have an agent, now or soon.

        Args:
            holders: those that have a slot. One that is not in use will free its slot.
            waiting: those of the app that wait for a slot.

        Raises:
            Error: ``pool_full``.
        """
        app_name = self._app_of(holder)
        limit = self._own_limit(app_name)
        if limit is None:
            return
        used = {other for other in holders if self._app_of(other) == app_name and other.is_in_use}
        if len(used.union(waiting) - {holder}) >= limit:
            message = f"the app may run {limit} agents at once, and all of them are working"
            raise Error(ErrorCode.POOL_FULL, message, retry_after=AGENT_RETRY_SECS)

    def excess(self, app_name: str, staying: Iterable[Any]) -> int:
        """The number of agents of the app above its limit; 0 if its limit has not changed."""
        if app_name not in self.changed:
            return 0
        return max(0, Counter(map(self._app_of, staying))[app_name] - self.of(app_name))

    def choose_evictions(self, staying: Collection[Any], idle: Iterable[Any]) -> list[Any]:
        """The idle holders of all apps that must free their slots because of a changed limit."""
        chosen: list[Any] = []
        for app_name in tuple(self.changed):
            excess = self.excess(app_name, staying)
            if not excess:
                self.changed.discard(app_name)
            own = [holder for holder in idle if self._app_of(holder) == app_name]
            chosen += sorted(own, key=lambda holder: float(holder.last_used))[:excess]
        return chosen
