"""The tokens and the cost that an agent reports, in one form for all agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

MAX_COUNT = 1 << 53
"""A larger number is not a count of tokens."""


class Cost(msgspec.Struct, frozen=True):
    """An amount of money in a currency of ISO 4217."""

    amount: float
    currency: str


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tokens and the cost of a turn or a run, as far as the agent has reported them.

    Attributes:
        thought_tokens: part of the output.
    """

    input_tokens: int | msgspec.UnsetType = msgspec.UNSET
    output_tokens: int | msgspec.UnsetType = msgspec.UNSET
    cached_read_tokens: int | msgspec.UnsetType = msgspec.UNSET
    cached_write_tokens: int | msgspec.UnsetType = msgspec.UNSET
    thought_tokens: int | msgspec.UnsetType = msgspec.UNSET
    cost: Cost | msgspec.UnsetType = msgspec.UNSET

    def plus(self, other: Usage) -> Usage:
        """The sum of both. Costs in different currencies are not added: *other*'s is kept."""
        counts = {
            name: _sum(getattr(self, name), getattr(other, name))
            for name in self.__struct_fields__
            if name != "cost"
        }
        cost = other.cost if isinstance(other.cost, Cost) else self.cost
        if (
            isinstance(self.cost, Cost)
            and isinstance(other.cost, Cost)
            and self.cost.currency == other.cost.currency
        ):
            cost = Cost(self.cost.amount + other.cost.amount, self.cost.currency)
        return Usage(**counts, cost=cost)

    def minus(self, other: Usage) -> Usage:
        """The counts of tokens without those of *other*; none is negative."""
        counts: dict[str, Any] = {
            name: max(0, count - (before if isinstance(before, int) else 0))
            for name in self.__struct_fields__
            if isinstance(count := getattr(self, name), int)
            and (before := getattr(other, name)) is not None
        }
        return Usage(**counts)

    def at_least(self, other: Usage) -> Usage:
        """This usage, with the counts of *other* that are larger."""
        counts = {
            name: max(own, seen) if isinstance(own, int) and isinstance(seen, int) else seen
            for name in self.__struct_fields__
            if name != "cost"
            and isinstance(seen := getattr(other, name), int)
            and (own := getattr(self, name)) is not None
        }
        return msgspec.structs.replace(self, **counts)


def usage_of_acp(usage: Any, cost: Any = None) -> Usage:
    """The usage in ACP's forms.

    Args:
        usage: ``usage`` of the response to a prompt.
        cost: ``cost`` of a ``usage_update``.
    """
    counts = usage if isinstance(usage, dict) else {}
    return Usage(
        input_tokens=tokens_in(counts, "inputTokens"),
        output_tokens=tokens_in(counts, "outputTokens"),
        cached_read_tokens=tokens_in(counts, "cachedReadTokens"),
        cached_write_tokens=tokens_in(counts, "cachedWriteTokens"),
        thought_tokens=tokens_in(counts, "thoughtTokens"),
        cost=cost_of(cost),
    )


def usage_of_claude(message: Mapping[str, Any]) -> Usage:
    """The usage in the result that ``claude -p`` prints."""
    usage = message.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Usage(
        input_tokens=tokens_in(counts, "input_tokens"),
        output_tokens=tokens_in(counts, "output_tokens"),
        cached_read_tokens=tokens_in(counts, "cache_read_input_tokens"),
        cached_write_tokens=tokens_in(counts, "cache_creation_input_tokens"),
        cost=cost_of({"amount": message.get("total_cost_usd"), "currency": "USD"}),
    )


def tokens_in(values: Mapping[str, Any], name: str) -> int | msgspec.UnsetType:
    """A count of tokens that an agent reports; UNSET if the value is not a count."""
    value = values.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT:
        return value
    return msgspec.UNSET


def cost_of(value: Any) -> Cost | msgspec.UnsetType:
    """A cost in ACP's form; UNSET if the value is not a cost."""
    try:
        amount, currency = float(value["amount"]), value["currency"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return msgspec.UNSET
    is_amount = 0 <= amount < MAX_COUNT and isinstance(currency, str) and len(currency) <= 16
    return Cost(amount, currency) if is_amount else msgspec.UNSET


def _sum(count: Any, other: Any) -> Any:
    if count is msgspec.UNSET:
        return other
    return count if other is msgspec.UNSET else count + other
