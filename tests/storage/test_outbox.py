"""The rows of webhooks and push, in each engine."""

from __future__ import annotations

from server.storage import outbox as stored
from server.storage.database import Database
from server.storage.outbox import (
    DeliveryCount,
    DeliveryFailureRow,
    DeliveryRow,
    OutboxQueries,
    SubscriptionRow,
    WebhookRow,
)


def delivery(
    name: str, session_id: str, app_name: str = "app", next_at: float = 0.0
) -> DeliveryRow:
    return DeliveryRow(0, name, app_name, session_id, "turn_ended", 1, 2.5, b'"a":1', 0, next_at)


def failure(attempt: int) -> DeliveryFailureRow:
    return DeliveryFailureRow("app", 1.5, "d", "s", "turn_ended", 1, attempt, None, "x", 0)


async def test_deliveries_are_read_by_session_in_order(database: Database) -> None:
    queries = OutboxQueries(database)
    rows = [
        delivery("1", "a", next_at=7.5),
        delivery("2", "b"),
        delivery("3", "a"),
        delivery("4", "", "other"),
    ]
    await database.write([stored.insert_delivery(row) for row in rows])
    assert await queries.count_deliveries() == [
        DeliveryCount("app", "a", 2, 10, 7.5),
        DeliveryCount("app", "b", 1, 5, 0.0),
        DeliveryCount("other", "", 1, 5, 0.0),
    ]
    assert len(await queries.count_deliveries("other")) == 1
    first, second = await queries.deliveries("app", "a", 10)
    assert (first.id, second.id, first.fields) == ("1", "3", b'"a":1')
    assert [row.id for row in await queries.first_deliveries("app", 2)] == ["1", "2"]
    changes = [stored.postpone_delivery(first.n, 3, 9.5), stored.delete_delivery(second.n)]
    await database.write(changes)
    (kept,) = await queries.deliveries("app", "a", 10)
    assert (kept.attempts, kept.next_at) == (3, 9.5)
    await database.write(stored.delete_outbox_of("app"))
    assert [row.app_name for row in await queries.count_deliveries()] == ["other"]


async def test_newest_failures_are_kept(database: Database) -> None:
    queries = OutboxQueries(database)
    for attempt in range(1, 31):
        await database.write(stored.insert_failure(failure(attempt)))
    kept = await queries.failures("app")
    assert [row.attempt for row in kept] == list(range(30, 10, -1))


async def test_webhook_and_subscription_are_replaced(database: Database) -> None:
    queries = OutboxQueries(database)
    hooks = [WebhookRow("app", url, "[]", b"secret", 1.5) for url in ("https://a/", "https://b/")]
    rows = [
        SubscriptionRow("id", "app", "https://push/", b"p", auth, "[]", 1.5)
        for auth in (b"1", b"2")
    ]
    for hook, row in zip(hooks, rows, strict=True):
        await database.write(stored.replace_webhook(hook))
        await database.write(stored.replace_subscription(row))
    assert await queries.webhooks() == hooks[1:]
    assert await queries.subscriptions() == rows[1:]
