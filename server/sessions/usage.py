"""The tokens and the cost of one session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..agents.usage import Cost, Usage, cost_of, tokens_in, usage_of_acp
from ..codec import dumps
from ..storage import statements
from ..storage.rows import UsageRow
from ..storage.schema import Statement
from .core import SessionCore


class ContextWindow(msgspec.Struct, frozen=True):
    """The tokens in the agent's context window, and its size."""

    used: int
    size: int


class _Stored(msgspec.Struct):
    """The JSON of a session's row.

    Attributes:
        total: of all turns.
        agent_cost: the cost that the agent had reported at the end of the last turn. It is that of
            its whole conversation.
    """

    total: Usage = Usage()
    context: ContextWindow | None = None
    agent_cost: Cost | None = None


class CarriedUsage(msgspec.Struct, kw_only=True):
    """The usage that a turn has reported so far, for the next version of the server."""

    context: ContextWindow | None
    agent_cost: Cost | None
    cost: Cost | None


class SessionUsage:
    """Adds up what the agent reports: tokens of each turn, and the cost of its conversation."""

    def __init__(self, core: SessionCore) -> None:
        self._core = core
        stored = core.row.usage
        self._stored = msgspec.json.decode(stored, type=_Stored) if stored else _Stored()
        self._cost: Cost | None = None  # reported since the last turn ended

    def view(self) -> dict[str, Any]:
        """The sum of all turns and the context window, as far as they are known."""
        view: dict[str, Any] = msgspec.to_builtins(self._stored.total)
        if self._stored.context is not None:
            view["context"] = msgspec.to_builtins(self._stored.context)
        return view

    def note_update(self, update: Mapping[str, Any], *, replayed: bool) -> None:
        """Note a ``usage_update`` of the agent.

        Args:
            replayed: it is one of an earlier turn, whose cost is counted already.
        """
        used, size = tokens_in(update, "used"), tokens_in(update, "size")
        if isinstance(used, int) and isinstance(size, int):
            self._stored.context = ContextWindow(used, size)
        cost = cost_of(update.get("cost"))
        if isinstance(cost, Cost):
            if not replayed:
                self._cost = cost
            elif _is_of_other_conversation(cost, self._stored.agent_cost):
                self._stored.agent_cost = cost
            # Otherwise the difference belongs to a turn that a kill of the server has ended.

    def continue_from(self, source: SessionUsage) -> str:
        """Count from what the agent of *source* has reported: it has forked its conversation.

        Returns:
            The value of the column ``usage``.
        """
        self._stored.agent_cost = source._stored.agent_cost
        self._core.row.usage = dumps(msgspec.to_builtins(self._stored)).decode()
        return self._core.row.usage

    def pack(self) -> CarriedUsage:
        stored = self._stored
        return CarriedUsage(context=stored.context, agent_cost=stored.agent_cost, cost=self._cost)

    def restore(self, carried: CarriedUsage) -> None:
        """Continue with the reports that an earlier version of the server has received."""
        self._stored.context, self._stored.agent_cost = carried.context, carried.agent_cost
        self._cost = carried.cost

    def end_turn(self, turn_index: int, response: Any, at: float) -> tuple[Usage, list[Statement]]:
        """Count a turn that has ended.

        Args:
            response: the ``usage`` of the agent's response to the prompt.
            at: unix seconds.

        Returns:
            The usage of the turn, and the statements that store it.
        """
        usage = usage_of_acp(response)
        proxied = self._core.context.accounts.proxied.take(self._core.id)
        if proxied is not None:  # the agent may report less than it has used, or nothing
            usage = usage.at_least(proxied)
        cost, self._cost = self._cost, None
        if cost is not None:
            difference = _difference(cost, self._stored.agent_cost)
            usage = msgspec.structs.replace(usage, cost=difference)
            self._stored.agent_cost = cost
        if usage == Usage():
            return usage, []
        return usage, self._count(usage, turn_index, at)

    def count_between_turns(self, usage: Usage) -> None:
        """Count and store tokens that the agent used while no turn was running."""
        context = self._core.context
        context.writer.add(self._count(usage, None, context.clock()))

    def _count(self, usage: Usage, turn_index: int | None, at: float) -> list[Statement]:
        """Add to the sum of the session. Return the statements that store it."""
        self._stored.total = self._stored.total.plus(usage)
        row = self._core.row
        self._core.context.accounts.spend(row.app_name, usage, at)
        row.usage = dumps(msgspec.to_builtins(self._stored)).decode()
        counted = UsageRow.of(
            msgspec.to_builtins(usage),
            at=at,
            app_name=row.app_name,
            session_id=row.id,
            turn_index=turn_index,
            agent=row.agent,
            model=row.model,
        )
        return [
            statements.change_session(row.n, usage=row.usage),
            statements.insert_usage(counted),
        ]


def _is_of_other_conversation(cost: Cost, before: Cost | None) -> bool:
    """Whether the cost belongs to another conversation than the one that has cost *before*."""
    return before is None or before.currency != cost.currency or before.amount > cost.amount


def _difference(cost: Cost, before: Cost | None) -> Cost:
    """The cost since *before*. A cost below *before* belongs to a new conversation."""
    if before is None or _is_of_other_conversation(cost, before):
        return cost
    return Cost(cost.amount - before.amount, cost.currency)
