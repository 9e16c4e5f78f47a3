"""The limit on incomplete messages, which the server must keep in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

UNCOUNTED_BYTES = 256 << 10
"""Incomplete messages up to this size are not counted."""


class IncompleteMessages:
    """Counts the bytes of the incomplete messages of each app's agents.

    Args:
        limit: bytes of one app.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sizes: dict[Hashable, tuple[str, int]] = {}
        self._totals: Counter[str] = Counter()

    def update(self, agent: Hashable, owner: str, size: int) -> None:
        """Set the size of *agent*'s incomplete message; *owner* is its app.

        Raises:
            OverflowError: the app's limit is reached.
        """
        former_owner, former_size = self._sizes.pop(agent, (owner, 0))
        self._totals[former_owner] -= former_size
        if size > UNCOUNTED_BYTES:
            if self._totals[owner] + size > self._limit:
                raise OverflowError("too many bytes of the app's messages at once")
            self._totals[owner] += size
            self._sizes[agent] = owner, size
        if not self._totals[former_owner]:
            del self._totals[former_owner]
