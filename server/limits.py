"""Bounds on what one client may ask: how often, and how much at once."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from .errors import Error


class Rate:
    """So many a second, in bursts of at most so many (a token bucket).

    Args:
        per_second: how fast spent allowance comes back.
        burst: the most that can be spent at once.
    """

    __slots__ = ("_burst", "_left", "_per_second", "_then")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._then = time.monotonic()

    def allows(self) -> bool:
        """Spend one, if there is one left."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._then) * self._per_second)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def is_unspent(self) -> bool:
        """Whether all of the allowance has come back by now."""
        return self._left + (time.monotonic() - self._then) * self._per_second >= self._burst


def give_back(taken: Counter[str], key: str, count: int = 1) -> None:
    """Subtract from a key's count, and forget a key that has nothing any more."""
    taken[key] -= count
    if not taken[key]:
        del taken[key]


class Places:
    """So many at once, in all and for each key."""

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many are taken."""
        return self._taken.total()

    @contextlib.contextmanager
    def take(self, key: str) -> Iterator[None]:
        """Hold a place for the time of the block.

        Raises:
            Error: ``rate_limited``; there is none left.
        """
        if self._taken.total() >= self._total or self._taken[key] >= self._each:
            raise Error("rate_limited", "too many sockets wait for their auth", retry_after=5)
        self._taken[key] += 1
        try:
            yield
        finally:
            give_back(self._taken, key)
