"""The tokens that the key proxy has seen and that no turn or run has counted yet."""

from __future__ import annotations

from .usage import Usage


class ProxiedUsage:
    """The tokens of responses, by the key of a session or a run."""

    def __init__(self) -> None:
        self._uncounted: dict[str, Usage] = {}

    def add(self, key: str, usage: Usage) -> None:
        known = self._uncounted.get(key)
        self._uncounted[key] = usage if known is None else known.plus(usage)

    def take(self, key: str) -> Usage | None:
        """The tokens since the last call; None if there are none."""
        return self._uncounted.pop(key, None)
