"""The tokens and the costs of an app, and of all apps."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from ...errors import bad_request
from ...storage.usage import Grouping
from ..context import app_name_of, context_of
from ..endpoint import Endpoint, Tag
from ..field_types import UnixSeconds, doc

DEFAULT_SECS = 30 * 86400
Moment = Annotated[
    str | None,
    doc("A day in UTC, such as 2026-11-30, or unix seconds. By default the last 30 days."),
]
USAGE_EXAMPLE = {
    "ok": True,
    "rows": [{"day": "2026-11-30", "input_tokens": 1200, "output_tokens": 340}],
}

BUDGET_EXAMPLE = {
    "tokens_per_day": {"limit": 5000, "used": 1540, "remaining": 3460, "resets_at": 1796083200}
}


class UsagePeriod(msgspec.Struct, frozen=True, rename={"since": "from", "until": "to"}):
    """A period, and the groups of its sums. The day of `to` is included."""

    since: Moment = None
    until: Moment = None
    by: Literal["day", "session", "agent", "model"] = "day"


class AllUsagePeriod(msgspec.Struct, frozen=True, rename={"since": "from", "until": "to"}):
    """A period, and the groups of its sums. The day of `to` is included."""

    since: Moment = None
    until: Moment = None
    by: Literal["app", "day", "session", "agent", "model"] = "app"


class UsageSums(msgspec.Struct, kw_only=True):
    """The sums of each group."""

    rows: Annotated[
        list[dict[str, Any]],
        doc("The group, and the fields of `usage` in `turn_end`, as far as agents reported them."),
    ]


class BudgetPart(msgspec.Struct, kw_only=True):
    """One limit of the app's budget."""

    limit: float
    used: float
    remaining: float
    resets_at: UnixSeconds


class AppUsage(UsageSums, kw_only=True):
    """The sums of each group, and the app's budget."""

    budget: Annotated[
        dict[str, BudgetPart] | msgspec.UnsetType,
        doc("The state of each limit now, whatever the period; missing without a budget."),
    ] = msgspec.UNSET


@Endpoint(
    "GET",
    "/usage",
    tag=Tag.SESSIONS,
    scope="read",
    summary="Sum the app's usage",
    example={**USAGE_EXAMPLE, "budget": BUDGET_EXAMPLE},
)
async def sum_usage(request: web.Request, query: UsagePeriod) -> AppUsage:
    app_name = app_name_of(request)
    accounts = context_of(request).sessions.accounts
    rows = await _rows(request, query, query.by, app_name)
    await accounts.update(app_name)
    view = accounts.budget_view(app_name)
    budget = {name: BudgetPart(**part) for name, part in view.items()}
    return AppUsage(rows=rows, budget=budget or msgspec.UNSET)


@Endpoint(
    "GET",
    "/admin/usage",
    tag=Tag.OPERATOR,
    summary="Sum the usage of all apps",
    auth="admin",
    example={"ok": True, "rows": [{"app": "my-bot", "input_tokens": 1200, "output_tokens": 340}]},
)
async def sum_all_usage(request: web.Request, query: AllUsagePeriod) -> UsageSums:
    return UsageSums(rows=await _rows(request, query, query.by, None))


async def _rows(
    request: web.Request,
    query: UsagePeriod | AllUsagePeriod,
    by: Grouping,
    app_name: str | None,
) -> list[dict[str, Any]]:
    now = context_of(request).sessions.clock()
    until = now + 1 if query.until is None else _moment("to", query.until, is_end=True)
    since = until - DEFAULT_SECS if query.since is None else _moment("from", query.since)
    return await context_of(request).usage.sums(since=since, until=until, by=by, app_name=app_name)


def _moment(name: str, text: str, *, is_end: bool = False) -> float:
    """Read a day or unix seconds.

    Raises:
        Error: ``bad_request``.
    """
    if re.fullmatch(r"\d{1,12}", text):
        return float(text)
    try:
        day = datetime.date.fromisoformat(text)
        start = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
    except ValueError:
        raise bad_request(f"{name}: must be a day such as 2026-11-30, or unix seconds") from None
    return start.timestamp() + (86400 if is_end else 0)
