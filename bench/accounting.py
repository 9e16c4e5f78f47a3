"""Measures what usage, budgets, audit and scopes cost a turn: the CPU time and the rows."""

from __future__ import annotations

import sqlite3
import time

import msgspec
from report import Report

from server.accounts.accounts import Accounts
from server.accounts.limits import AppLimits, Budget
from server.agents.usage import usage_of_acp
from server.auth.scopes import check_scope
from server.codec import dumps
from server.storage import statements
from server.storage.rows import UsageRow
from server.storage.schema import MIGRATIONS, Statement

TURNS_AT_ONCE = 100
"""Turns whose rows share a commit. The commit itself is that of the turns' log entries."""
GOAL_MS = 0.1


def measure_accounting(report: Report, *, quick: bool) -> None:
    """Measure it, and compare it with the goal."""
    accounts = Accounts()
    budget = Budget(usd_per_day=1e6, usd_per_month=1e6, tokens_per_day=1 << 50)
    accounts.set("app", AppLimits(sessions=9), budget)
    database = sqlite3.connect(":memory:", isolation_level=None)
    for migration in MIGRATIONS:
        database.executescript(migration)
    rounds = 20 if quick else 200
    began = time.process_time()
    for _ in range(rounds):
        rows = [row for turn in range(TURNS_AT_ONCE) for row in _count_turn(accounts, turn)]
        database.execute("BEGIN")
        for sql, values in rows:
            database.execute(sql, values)
        database.execute("COMMIT")
    spent_ms = (time.process_time() - began) / (rounds * TURNS_AT_ONCE) * 1000
    database.close()
    report.at_most("usage, budgets, audit and scopes of a turn", spent_ms, GOAL_MS, "ms")


def _count_turn(accounts: Accounts, turn: int) -> list[Statement]:
    """The checks at the acceptance, the start and the admission of a turn, and its end."""
    check_scope(("read", "prompt"), "prompt")
    for _ in range(3):
        accounts.check("app")
    now = time.time()
    usage = usage_of_acp(
        {"inputTokens": 1200, "outputTokens": 340}, {"amount": 0.01, "currency": "USD"}
    )
    accounts.spend("app", usage, now)
    fields = msgspec.to_builtins(usage)
    row = UsageRow.of(
        fields,
        at=now,
        app_name="app",
        session_id="s",
        turn_index=turn,
        agent="demo",
        model=None,
    )
    detail = {"turn_index": turn, "stop_reason": "end_turn", "duration_ms": 1, "error": None}
    audit = statements.insert_audit_event("s", "app", "turn", now, dumps(detail).decode())
    return [statements.insert_usage(row), audit]
