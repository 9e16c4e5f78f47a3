"""The spending of one app, by days of UTC."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

from ..agents.usage import Usage

DAY_SECS = 86400
NANOS = 1_000_000_000
"""Costs are added in units of 1e-9 USD, so that sums of decimal amounts are exact."""
BUDGET_CURRENCY = "USD"


class Spending:
    """The tokens and the costs of an app on each day of the current month."""

    __slots__ = ("_days",)

    def __init__(self) -> None:
        self._days: dict[int, tuple[int, int]] = {}  # tokens and nano-USD

    def add(self, day: int, tokens: int, nanos: int) -> None:
        """Add to a day, which counts from 1970-01-01. Earlier months are forgotten."""
        if day not in self._days:
            first = first_of_month(day)
            for old in [day for day in self._days if day < first]:
                del self._days[old]
        before = self._days.get(day, (0, 0))
        self._days[day] = (before[0] + tokens, before[1] + nanos)

    def plus(self, other: Spending) -> Spending:
        """The sum of two spendings."""
        total = Spending()
        for spending in (self, other):
            for day, (tokens, nanos) in spending._days.items():
                total.add(day, tokens, nanos)
        return total

    def replaced(self, first: int, days: Mapping[int, tuple[int, int]]) -> Spending:
        """The spending with other values for the days from *first*."""
        changed = Spending()
        changed._days = {day: sums for day, sums in self._days.items() if day < first} | dict(days)
        return changed

    def tokens_of(self, day: int) -> int:
        return self._days.get(day, (0, 0))[0]

    def nanos_of(self, days: Iterable[int]) -> int:
        return sum(self._days[day][1] for day in days if day in self._days)


def day_of(at: float) -> int:
    """The number of the day of UTC in which unix seconds lie."""
    return int(at // DAY_SECS)


def day_number(text: str) -> int:
    """The number of a day such as 2026-11-30."""
    return datetime.date.fromisoformat(text).toordinal() - _EPOCH


def first_of_month(day: int) -> int:
    date = datetime.date.fromordinal(day + _EPOCH)
    return date.replace(day=1).toordinal() - _EPOCH


def first_of_next_month(day: int) -> int:
    date = datetime.date.fromordinal(first_of_month(day) + 31 + _EPOCH)
    return date.replace(day=1).toordinal() - _EPOCH


def tokens_in_budget(usage: Usage) -> int:
    """The tokens that a budget counts: each token of the input and of the output."""
    counts = (
        usage.input_tokens,
        usage.cached_read_tokens,
        usage.cached_write_tokens,
        usage.output_tokens,
    )
    return sum(count for count in counts if isinstance(count, int))


_EPOCH = datetime.date(1970, 1, 1).toordinal()
