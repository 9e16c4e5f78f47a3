"""The accounts of all apps: their limits, their budgets and their spending.

Spending is added at once, in memory. The database has it with the end of the turn or the
run, in one transaction, so after a restart the sums are the same. Nothing is queried for an app
without a budget. In a cluster, what the other nodes have spent is read before a prompt or a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..agents.proxied_usage import ProxiedUsage
from ..agents.usage import Cost, Usage
from ..errors import Error, ErrorCode
from .limits import NO_BUDGET, NO_LIMITS, AppLimits, Budget
from .remote_spending import RemoteSpending
from .spending import (
    BUDGET_CURRENCY,
    DAY_SECS,
    NANOS,
    Spending,
    day_number,
    day_of,
    first_of_month,
    first_of_next_month,
    tokens_in_budget,
)

logger = logging.getLogger(__name__)


class SpendingHistory(Protocol):
    """The spending of apps before the server started."""

    async def last_id(self) -> int: ...

    async def spent_by_day(
        self, app_name: str, *, since: float, last_id: int
    ) -> list[tuple[str, int, float]]: ...


class Accounts:
    """The limits, the budgets and the spending of all apps.

    Attributes:
        on_limits_changed: called with the app's name after its limits have changed.
        proxied: the tokens that the key proxy has seen and no turn or run has counted yet.
        on_exceeded: called with the app's name when it has used up its budget.
        on_alert: called with the app's name and ``resets_at``, once in the whole cluster.
        remote_spending: what other nodes have spent; None without a cluster.
    """

    def __init__(
        self, history: SpendingHistory | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.on_limits_changed: list[Callable[[str], None]] = []
        self.on_exceeded: list[Callable[[str], None]] = []
        self.on_alert: list[Callable[[str, int], None]] = []
        self.remote_spending: RemoteSpending | None = None
        self.proxied = ProxiedUsage()
        self._history = history
        self._last_id = 0
        self._clock = clock
        self._limits: dict[str, AppLimits] = {}
        self._budgets: dict[str, Budget] = {}
        self._spending: dict[str, Spending] = {}
        self._loaded: set[str] = set()

    async def start(self) -> None:
        """Note which rows an earlier server has stored. Later ones are counted in memory."""
        if self._history is not None:
            self._last_id = await self._history.last_id()

    def join(self, remote_spending: RemoteSpending) -> None:
        """Take what the other nodes of a cluster spend into account."""
        self.remote_spending = remote_spending
        remote_spending.update = self.update

    async def stop(self) -> None:
        if self.remote_spending is not None:
            await self.remote_spending.stop()

    async def load(self, app_name: str) -> None:
        """Read what an app had spent before the server started; once for each app.

        It must be called before the app gets a budget.

        Raises:
            DatabaseError: the database cannot be read.
            Error: ``internal``; likewise, in a cluster.
        """
        if self.remote_spending is not None:
            await self.remote_spending.read(app_name)
            return
        if self._history is None or app_name in self._loaded:
            return
        since = first_of_month(day_of(self._clock())) * DAY_SECS
        days = await self._history.spent_by_day(app_name, since=since, last_id=self._last_id)
        if app_name not in self._loaded:  # it was not loaded meanwhile
            self._loaded.add(app_name)
            spending = self._spending.setdefault(app_name, Spending())
            for day, tokens, usd in days:
                spending.add(day_number(day), tokens, round(usd * NANOS))

    # Limits

    def set(self, app_name: str, limits: AppLimits | None, budget: Budget | None) -> None:
        """Set the limits and the budget of an app, with immediate effect. None removes them."""
        limits_before = self.limits_of(app_name)
        was_exceeded = self.refusal(app_name) is not None
        _set_or_remove(self._limits, app_name, limits, NO_LIMITS)
        _set_or_remove(self._budgets, app_name, budget, NO_BUDGET)
        if self.limits_of(app_name) != limits_before:
            for limits_changed in self.on_limits_changed:
                limits_changed(app_name)
        if not was_exceeded:
            self._report_if_exceeded(app_name)

    def limits_of(self, app_name: str) -> AppLimits:
        """The app's own limits; without any, all fields are None."""
        return self._limits.get(app_name, NO_LIMITS)

    # Budgets

    def spend(self, app_name: str, usage: Usage, at: float) -> None:
        """Add what a turn, a run or a request to a provider has used, at unix seconds."""
        is_usd = isinstance(usage.cost, Cost) and usage.cost.currency == BUDGET_CURRENCY
        nanos = round(usage.cost.amount * NANOS) if is_usd else 0  # type: ignore[union-attr]
        spending = self._spending.get(app_name)
        if spending is None:
            spending = self._spending[app_name] = Spending()
        was_exceeded = self.refusal(app_name) is not None
        spending.add(day_of(at), tokens_in_budget(usage), nanos)
        if not was_exceeded:
            self._report_if_exceeded(app_name)
        if self.remote_spending is not None and app_name in self._budgets:
            self.remote_spending.read_soon(app_name)

    async def update(self, app_name: str) -> None:
        """Read what the other nodes of the cluster have spent, if the app has a budget.

        Raises:
            Error: ``internal``; the database is out of reach.
        """
        if self.remote_spending is None or app_name not in self._budgets:
            return
        was_exceeded = self.refusal(app_name) is not None
        await self.remote_spending.read(app_name)
        if not was_exceeded:
            self._report_if_exceeded(app_name)

    def check(self, app_name: str) -> None:
        """Check that an app may begin a prompt, a run or a request to a provider.

        Raises:
            Error: ``budget_exceeded``, with ``resets_at``.
        """
        if (refusal := self.refusal(app_name)) is not None:
            raise refusal

    def refusal(self, app_name: str) -> Error | None:
        """The error with which new prompts of an app are refused; None if they are not."""
        if app_name not in self._budgets:
            return None
        exceeded = [
            (int(part["resets_at"]), name, part["limit"])
            for name, part in self.budget_view(app_name).items()
            if not part["remaining"]
        ]
        if not exceeded:
            return None
        resets_at, name, limit = max(exceeded)
        return Error(
            ErrorCode.BUDGET_EXCEEDED,
            f"the app has used up its budget ({name}: {limit:.15g})",
            fields={"resets_at": resets_at},
        )

    def budget_view(self, app_name: str) -> dict[str, dict[str, Any]]:
        """Each limit of the app's budget, what is used of it and what remains, and its reset."""
        budget = self._budgets.get(app_name)
        if budget is None:
            return {}
        today = day_of(self._clock())
        spending = self._spending.get(app_name) or Spending()
        if self.remote_spending is not None:
            spending = spending.plus(self.remote_spending.spending_of(app_name))
        view: dict[str, dict[str, Any]] = {}
        if budget.usd_per_day is not None:
            used = spending.nanos_of([today])
            view["usd_per_day"] = _usd_view(budget.usd_per_day, used, today + 1)
        if budget.usd_per_month is not None:
            used = spending.nanos_of(range(first_of_month(today), today + 1))
            next_month = first_of_next_month(today)
            view["usd_per_month"] = _usd_view(budget.usd_per_month, used, next_month)
        if budget.tokens_per_day is not None:
            used, limit = spending.tokens_of(today), budget.tokens_per_day
            view["tokens_per_day"] = _budget_part(limit, used, max(0, limit - used), today + 1)
        return view

    def _report_if_exceeded(self, app_name: str) -> None:
        refusal = self.refusal(app_name)
        if refusal is None:
            return
        resets_at = int(refusal.fields["resets_at"])
        logger.info("the budget is used up until %d", resets_at, extra={"app": app_name})
        for exceeded in self.on_exceeded:
            exceeded(app_name)
        if self.remote_spending is None:
            self._send_alert(app_name, resets_at)
        elif self.on_alert:
            budget = f"{refusal.message} {resets_at}"
            self.remote_spending.report(
                app_name, budget, lambda: self._send_alert(app_name, resets_at)
            )

    def _send_alert(self, app_name: str, resets_at: int) -> None:
        for alert in self.on_alert:
            alert(app_name, resets_at)


def _usd_view(limit: float, used_nanos: int, reset_day: int) -> dict[str, Any]:
    left = max(0, round(limit * NANOS) - used_nanos)
    return _budget_part(limit, used_nanos / NANOS, left / NANOS, reset_day)


def _budget_part(limit: float, used: float, remaining: float, reset_day: int) -> dict[str, Any]:
    resets_at = reset_day * DAY_SECS
    return {"limit": limit, "used": used, "remaining": remaining, "resets_at": resets_at}


def _set_or_remove(values: dict[str, Any], key: str, value: Any, empty: Any) -> None:
    if value is None or value == empty:
        values.pop(key, None)
    else:
        values[key] = value
