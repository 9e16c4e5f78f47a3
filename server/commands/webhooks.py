"""The command ``webhooks``: the webhooks of all apps, what waits for them, and what has failed."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from yarl import URL

from ..config import Settings
from ..storage.outbox import DeliveryFailureRow, OutboxQueries, WebhookRow
from . import admin


def add_webhook_command(commands: Any) -> None:
    """Add the command of this module to the parser."""
    text = "list the webhooks of all apps, the deliveries that wait for them, and the last failures"
    command = commands.add_parser("webhooks", help=text, description=admin.sentence(text))
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    command.set_defaults(execute=functools.partial(admin.execute_command, print_webhooks))


async def print_webhooks(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_for_reading(settings) as queries:
        outbox = queries.outbox
        webhooks = [await _webhook_dict(outbox, row) for row in await outbox.webhooks()]
    webhooks.sort(key=lambda webhook: str(webhook["app"]))
    if arguments.json:
        for webhook in webhooks:
            print(json.dumps(webhook))
        return
    cells = [("APP", "URL", "WAITING", "OLDEST", "LAST FAILURE")]
    for webhook in webhooks:
        failure = webhook["last_failure"]
        shown = "-" if failure is None else f"{_minute(failure['at'])} {failure['error']}"
        oldest = "-" if webhook["oldest_at"] is None else _minute(webhook["oldest_at"])
        cells.append((webhook["app"], webhook["url"], str(webhook["pending"]), oldest, shown))
    admin.print_escaped(admin.format_table(cells))


async def _webhook_dict(outbox: OutboxQueries, row: WebhookRow) -> dict[str, Any]:
    """A webhook without its secrets: the key, and the query of the URL."""
    waiting = await outbox.count_deliveries(row.app_name)
    oldest = await outbox.first_deliveries(row.app_name, 1)
    failures = await outbox.failures(row.app_name)
    return {
        "app": row.app_name,
        "url": str(URL(row.url).with_query(None)),
        "events": json.loads(row.events),
        "pending": sum(count.length for count in waiting),
        "pending_bytes": sum(count.size for count in waiting),
        "oldest_at": oldest[0].at if oldest else None,
        "last_failure": _failure_dict(failures[0]) if failures else None,
    }


def _failure_dict(row: DeliveryFailureRow) -> dict[str, Any]:
    return {
        "at": row.at,
        "session_id": row.session_id,
        "event": row.event,
        "attempt": row.attempt,
        "status": row.status,
        "error": row.error,
        "gave_up": bool(row.is_last),
    }


def _minute(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
