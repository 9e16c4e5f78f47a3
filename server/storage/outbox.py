"""The tables of webhooks and push: their rows, reads and writes.

A delivery is stored in the commit that stores the log entry that it is about, and deleted once the
receiver has accepted it. ``n`` orders the deliveries that exist.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import NamedTuple

from .database import Database
from .schema import Statement, columns

KEPT_FAILURES = 20
"""The newest failed attempts of each app that are kept."""


@dataclasses.dataclass(slots=True)
class SubscriptionRow:
    """A push subscription of a browser.

    Attributes:
        p256dh: the browser's public key, an uncompressed point of P-256.
        auth: its secret.
        events: JSON of the kinds of alerts that it wants.
    """

    id: str
    app_name: str
    endpoint: str
    p256dh: bytes
    auth: bytes = dataclasses.field(repr=False)
    events: str
    created_at: float


@dataclasses.dataclass(slots=True)
class PushMessageRow:
    """A message for a subscription that its push service has not accepted.

    Attributes:
        session_id: empty if it is about no session.
        topic: a newer message with the same topic replaces an older one that was not delivered.
        urgency: ``normal``, or ``high`` if a person is needed.
        created_at, expires_at: unix seconds.
    """

    id: str
    subscription_id: str
    session_id: str
    topic: str
    urgency: str
    body: bytes
    created_at: float
    expires_at: float


@dataclasses.dataclass(slots=True)
class WebhookRow:
    """The webhook of an app.

    Attributes:
        events: JSON of the kinds of alerts that it wants.
        secret: the key of the signatures.
    """

    app_name: str
    url: str
    events: str
    secret: bytes = dataclasses.field(repr=False)
    created_at: float


@dataclasses.dataclass(slots=True)
class DeliveryRow:
    """A delivery that the receiver has not accepted.

    Attributes:
        n: orders the deliveries; 0 before it is stored.
        id: ``webhook-id``.
        session_id: empty if it is about no session.
        seq: the position of the log entry.
        at: unix seconds of the alert.
        fields: JSON of the other fields, without braces.
        attempts: the number of failed ones.
        next_at: unix seconds of the next attempt.
    """

    n: int
    id: str
    app_name: str
    session_id: str
    event: str
    seq: int | None
    at: float
    fields: bytes
    attempts: int = 0
    next_at: float = 0.0


@dataclasses.dataclass(slots=True)
class DeliveryFailureRow:
    """A failed attempt, or deliveries that were dropped.

    Attributes:
        is_last: there will be no other attempt.
    """

    app_name: str
    at: float
    delivery_id: str | None
    session_id: str | None
    event: str | None
    seq: int | None
    attempt: int | None
    status: int | None
    error: str
    is_last: int


class DeliveryCount(NamedTuple):
    """The stored deliveries of one session.

    Attributes:
        length: their number.
        size: bytes of their fields.
        next_at: unix seconds of the next attempt of the first.
    """

    app_name: str
    session_id: str
    length: int
    size: int
    next_at: float


def _insert_row(table: str, row: object) -> Statement:
    values = {field: getattr(row, field) for field in columns(type(row)).split(", ")}
    if values.get("n") == 0:
        del values["n"]
    marks = ", ".join("?" * len(values))
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values())


def insert_subscription(row: SubscriptionRow) -> Statement:
    return _insert_row("push_subscriptions", row)


def replace_subscription(row: SubscriptionRow) -> list[Statement]:
    """Replace the subscription with the id of *row*, if there is one."""
    return [_delete_subscription(row.id), insert_subscription(row)]


def _delete_subscription(subscription_id: str) -> Statement:
    return "DELETE FROM push_subscriptions WHERE id = ?", (subscription_id,)


def delete_subscription(subscription_id: str) -> list[Statement]:
    """Delete a subscription with its messages."""
    messages = ("DELETE FROM push_messages WHERE subscription_id = ?", (subscription_id,))
    return [_delete_subscription(subscription_id), messages]


def insert_push_message(row: PushMessageRow) -> Statement:
    return _insert_row("push_messages", row)


def delete_push_message(message_id: str) -> Statement:
    return "DELETE FROM push_messages WHERE id = ?", (message_id,)


def delete_pushed_requests(session_id: str) -> Statement:
    """Delete the messages that show what the agent of a purged session has asked."""
    return (
        "DELETE FROM push_messages WHERE session_id = ? AND urgency = 'high'",
        (session_id,),
    )


def delete_useless_push_messages(now: float) -> Statement:
    """Delete the messages that are too late, and those without a subscription."""
    return (
        "DELETE FROM push_messages WHERE expires_at <= ? OR subscription_id NOT IN"
        " (SELECT id FROM push_subscriptions)",
        (now,),
    )


def replace_webhook(row: WebhookRow) -> list[Statement]:
    """Set the webhook of an app."""
    return [
        ("DELETE FROM webhooks WHERE app_name = ?", (row.app_name,)),
        _insert_row("webhooks", row),
    ]


def delete_webhook(app_name: str) -> list[Statement]:
    """Delete an app's webhook with its deliveries."""
    return [
        ("DELETE FROM webhooks WHERE app_name = ?", (app_name,)),
        ("DELETE FROM webhook_deliveries WHERE app_name = ?", (app_name,)),
        ("DELETE FROM webhook_failures WHERE app_name = ?", (app_name,)),
    ]


def delete_outbox_of(app_name: str) -> list[Statement]:
    """Delete the webhook and the push subscriptions of an app whose token is revoked."""
    messages = (
        "DELETE FROM push_messages WHERE subscription_id IN"
        " (SELECT id FROM push_subscriptions WHERE app_name = ?)",
        (app_name,),
    )
    subscriptions = ("DELETE FROM push_subscriptions WHERE app_name = ?", (app_name,))
    return [*delete_webhook(app_name), messages, subscriptions]


_DELIVERY_COLUMNS = tuple(columns(DeliveryRow).split(", "))[1:]
_INSERT_DELIVERY = (
    f"INSERT INTO webhook_deliveries ({', '.join(_DELIVERY_COLUMNS)})"
    f" VALUES ({', '.join('?' * len(_DELIVERY_COLUMNS))})"
)
_values_of_delivery = operator.attrgetter(*_DELIVERY_COLUMNS)


def insert_delivery(row: DeliveryRow) -> Statement:
    """Store a new delivery. There may be a thousand a second."""
    return _INSERT_DELIVERY, _values_of_delivery(row)


def delete_delivery(n: int) -> Statement:
    return "DELETE FROM webhook_deliveries WHERE n = ?", (n,)


def delete_requests_of(app_name: str, session_id: str) -> Statement:
    """Delete the deliveries that show what the agent of a purged session has asked."""
    return (
        "DELETE FROM webhook_deliveries WHERE app_name = ? AND session_id = ?"
        " AND event IN ('permission_requested', 'elicitation_requested')",
        (app_name, session_id),
    )


def postpone_delivery(n: int, attempts: int, next_at: float) -> Statement:
    return (
        "UPDATE webhook_deliveries SET attempts = ?, next_at = ? WHERE n = ?",
        (attempts, next_at, n),
    )


def insert_failure(row: DeliveryFailureRow) -> list[Statement]:
    """Store a failure, and delete the oldest ones of the app."""
    return [
        _insert_row("webhook_failures", row),
        (
            "DELETE FROM webhook_failures WHERE app_name = ?1 AND n <="
            " (SELECT n FROM webhook_failures WHERE app_name = ?1 ORDER BY n DESC LIMIT 1"
            " OFFSET ?2)",
            (row.app_name, KEPT_FAILURES),
        ),
    ]


def _adopt(table: str) -> str:
    return (
        "WITH f AS MATERIALIZED (SELECT n FROM nodes WHERE n = ?1 AND state = 'up' FOR SHARE)"
        f" UPDATE {table} SET node = f.n FROM f WHERE node IS NULL"
        " OR node NOT IN (SELECT nodes.n FROM nodes WHERE state <> 'gone')"
    )


ADOPT_DELIVERIES, ADOPT_PUSH_MESSAGES = _adopt("webhook_deliveries"), _adopt("push_messages")
"""Let a node of a cluster send what nodes have left that have ended."""


class OutboxQueries:
    """Reads the tables of webhooks and push.

    Every method raises :class:`DatabaseError` if the database cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def subscriptions(self) -> list[SubscriptionRow]:
        rows = await self._database.fetch(
            f"SELECT {columns(SubscriptionRow)} FROM push_subscriptions ORDER BY created_at"
        )
        return [SubscriptionRow(*row) for row in rows]

    async def push_messages(self, node: int | None = None) -> list[PushMessageRow]:
        """The messages that are not sent, the oldest first.

        Args:
            node: only those that this node of a cluster has to send.
        """
        condition = "" if node is None else " WHERE node = ?"
        rows = await self._database.fetch(
            f"SELECT {columns(PushMessageRow)} FROM push_messages{condition}"
            " ORDER BY created_at, id",
            *(() if node is None else (node,)),
        )
        return [PushMessageRow(*row) for row in rows]

    async def webhooks(self) -> list[WebhookRow]:
        rows = await self._database.fetch(f"SELECT {columns(WebhookRow)} FROM webhooks")
        return [WebhookRow(*row) for row in rows]

    async def count_deliveries(self, app_name: str | None = None) -> list[DeliveryCount]:
        """The sessions with deliveries, in the order of the deliveries."""
        rows = await self._database.fetch(
            "SELECT first.app_name, first.session_id, line.count, line.size, first.next_at"
            " FROM webhook_deliveries AS first JOIN"
            "  (SELECT min(n) AS n, count(*) AS count, CAST(sum(length(fields)) AS BIGINT) AS size"
            "   FROM webhook_deliveries WHERE CAST(?1 AS TEXT) IS NULL OR app_name = ?1"
            "   GROUP BY app_name, session_id) AS line ON first.n = line.n ORDER BY first.n",
            app_name,
        )
        return [DeliveryCount(*row) for row in rows]

    async def count_deliveries_of_node(self, number: int) -> list[DeliveryCount]:
        """The sessions with deliveries that a node of a cluster has to send."""
        rows = await self._database.fetch(
            "SELECT first.app_name, first.session_id, line.count, line.size, first.next_at"
            " FROM webhook_deliveries AS first JOIN"
            "  (SELECT min(n) AS n, count(*) AS count, CAST(sum(length(fields)) AS BIGINT) AS size"
            "   FROM webhook_deliveries GROUP BY app_name, session_id"
            "   HAVING bool_or(node = ?)) AS line ON first.n = line.n ORDER BY first.n",
            number,
        )
        return [DeliveryCount(*row) for row in rows]

    async def deliveries(self, app_name: str, session_id: str, limit: int) -> list[DeliveryRow]:
        """The first deliveries of a session."""
        rows = await self._database.fetch(
            f"SELECT {columns(DeliveryRow)} FROM webhook_deliveries"
            " WHERE app_name = ? AND session_id = ? ORDER BY n LIMIT ?",
            app_name,
            session_id,
            limit,
        )
        return [DeliveryRow(*row) for row in rows]

    async def first_deliveries(self, app_name: str, limit: int) -> list[DeliveryRow]:
        """The oldest deliveries of an app."""
        rows = await self._database.fetch(
            f"SELECT {columns(DeliveryRow)} FROM webhook_deliveries"
            " WHERE app_name = ? ORDER BY n LIMIT ?",
            app_name,
            limit,
        )
        return [DeliveryRow(*row) for row in rows]

    async def failures(self, app_name: str) -> list[DeliveryFailureRow]:
        """The newest failures of an app, the newest first."""
        rows = await self._database.fetch(
            f"SELECT {columns(DeliveryFailureRow)} FROM webhook_failures WHERE app_name = ?"
            " ORDER BY n DESC",
            app_name,
        )
        return [DeliveryFailureRow(*row) for row in rows]
