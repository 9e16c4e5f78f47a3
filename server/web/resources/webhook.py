"""The webhook of an app, and the operator's list of all."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...outbox.delivery_queue import DeliveryQueue
from ...sessions.alerts import ALERT_KINDS, AlertKind
from ...storage.outbox import DeliveryFailureRow, DeliveryRow
from ..context import CREDENTIAL, app_name_of, context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, UnixSeconds, doc

WebhookSecret = Annotated[
    str,
    msgspec.Meta(max_length=512),
]
EVENTS_EXAMPLE = ["turn_ended", "permission_requested"]
DELIVERY_EXAMPLE = {
    "id": "msg_3f0e7d0a1f1f4f0db1b0a5b6c7d8e9f0",
    "event": "turn_ended",
    "session_id": "939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17",
    "seq": 41,
}


class SetWebhook(msgspec.Struct, frozen=True):
    """The new webhook."""

    url: Annotated[
        Annotated[str, msgspec.Meta(max_length=2048)],
        doc(
            "`https://`, at a host that `CLAWDFORGE_WEBHOOK_HOSTS` allows; `http://` only at a"
            " private address."
        ),
    ]
    events: Annotated[
        Annotated[list[AlertKind], msgspec.Meta(min_length=1, max_length=16)],
        doc("The events to report; by default all."),
    ] = msgspec.field(default_factory=lambda: list(ALERT_KINDS))
    secret: Annotated[
        WebhookSecret | None,
        doc("`whsec_` and 16 to 256 bytes in base64; by default a new one is created."),
    ] = None


class WebhookSet(msgspec.Struct, kw_only=True):
    """The webhook."""

    url: str
    events: list[AlertKind]
    created_at: UnixSeconds
    secret: Annotated[
        str | msgspec.UnsetType, doc("Only if it was created now: it is not shown again.")
    ] = msgspec.UNSET


class DeliveryInfo(msgspec.Struct, kw_only=True):
    """A delivery that the receiver has not accepted yet."""

    id: Annotated[str, doc("`webhook-id`.")]
    event: AlertKind
    session_id: str | None
    seq: int | None
    created_at: UnixSeconds
    attempts: Annotated[Count, doc("The failed ones.")]
    next_attempt_at: Annotated[
        int | None, doc("Unix seconds; null if it is attempted as soon as possible.")
    ]


class DeliveryFailure(msgspec.Struct, kw_only=True):
    """A failed attempt, or an event that was dropped."""

    id: Annotated[str | None, doc("`webhook-id`.")]
    event: AlertKind | None
    session_id: str | None
    seq: int | None
    at: UnixSeconds
    attempt: Annotated[int | None, doc("The number of the attempt; null if none was made.")]
    status: Annotated[int | None, doc("Of the receiver's response; null if there was none.")]
    error: str
    gave_up: Annotated[bool, doc("There will be no other attempt.")]


class WebhookInfo(msgspec.Struct, kw_only=True):
    """The webhook, what waits for it, and what has failed."""

    url: str
    events: list[AlertKind]
    created_at: UnixSeconds
    pending: Annotated[Count, doc("The number of deliveries that wait.")]
    pending_bytes: Count
    dropped: Annotated[Count, doc("Events that were dropped since the server's start.")]
    last_success_at: Annotated[int | None, doc("Unix seconds, since the server's start.")]
    failing_since: Annotated[
        int | None, doc("The first failure since the last success, in unix seconds.")
    ]
    deliveries: Annotated[list[DeliveryInfo], doc("The 20 oldest that wait.")]
    failures: Annotated[list[DeliveryFailure], doc("The 20 newest, the newest first.")]


class WebhookDeleted(msgspec.Struct, kw_only=True):
    """The webhook is deleted, with the deliveries that waited."""

    url: str


class WebhookOfApp(msgspec.Struct, kw_only=True):
    """The webhook of an app, for the operator."""

    app: str
    url: Annotated[str, doc("Without its query.")]
    events: list[AlertKind]
    pending: Count
    pending_bytes: Count
    dropped: Count
    last_success_at: int | None
    failing_since: int | None


class WebhookList(msgspec.Struct, kw_only=True):
    """The webhooks of all apps, by name."""

    count: Count
    webhooks: list[WebhookOfApp]


@Endpoint(
    "PUT",
    "/webhook",
    tag=Tag.NOTIFICATIONS,
    scope="manage",
    summary="Set the app's webhook",
    description="There is one per app; another one replaces it, and gets what still waits. Each"
    " delivery is signed as in Standard Webhooks. It is repeated for a day until the receiver"
    " answers 2xx, in order for each session.",
    waits=("body",),
    request_example={"url": "https://hooks.example.org/clawdforge", "events": EVENTS_EXAMPLE},
    example={
        "ok": True,
        "url": "https://hooks.example.org/clawdforge",
        "events": EVENTS_EXAMPLE,
        "created_at": 1795479703,
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    },
)
async def set_webhook(request: web.Request, body: SetWebhook) -> WebhookSet:
    webhooks = context_of(request).outbox.webhooks
    queue, secret = await webhooks.set(request[CREDENTIAL], body.url, body.events, body.secret)
    return WebhookSet(
        url=queue.webhook.url,
        events=list(queue.events),
        created_at=int(queue.webhook.created_at),
        secret=msgspec.UNSET if secret is None else secret,
    )


@Endpoint(
    "GET",
    "/webhook",
    tag=Tag.NOTIFICATIONS,
    scope="manage",
    summary="Show the app's webhook",
    failures=("not_found",),
    example={
        "ok": True,
        "url": "https://hooks.example.org/clawdforge",
        "events": EVENTS_EXAMPLE,
        "created_at": 1795479703,
        "pending": 1,
        "pending_bytes": 96,
        "dropped": 0,
        "last_success_at": None,
        "failing_since": 1795479711,
        "deliveries": [
            {
                **DELIVERY_EXAMPLE,
                "created_at": 1795479710,
                "attempts": 1,
                "next_attempt_at": 1795479716,
            }
        ],
        "failures": [
            {
                **DELIVERY_EXAMPLE,
                "at": 1795479711,
                "attempt": 1,
                "status": 503,
                "error": "the receiver answered 503",
                "gave_up": False,
            }
        ],
    },
)
async def get_webhook(request: web.Request) -> WebhookInfo:
    webhooks, app_name = context_of(request).outbox.webhooks, app_name_of(request)
    queue = webhooks.get(app_name)
    deliveries = await webhooks.deliveries(app_name)
    failures = await webhooks.failures(app_name)
    return WebhookInfo(
        url=queue.webhook.url,
        created_at=int(queue.webhook.created_at),
        deliveries=[_delivery_info(row) for row in deliveries],
        failures=[_failure_info(row) for row in failures],
        **_queue_info(queue),
    )


@Endpoint(
    "DELETE",
    "/webhook",
    tag=Tag.NOTIFICATIONS,
    scope="manage",
    summary="Delete the app's webhook",
    failures=("not_found",),
    example={"ok": True, "url": "https://hooks.example.org/clawdforge"},
)
async def remove_webhook(request: web.Request) -> WebhookDeleted:
    webhooks, app_name = context_of(request).outbox.webhooks, app_name_of(request)
    url = webhooks.get(app_name).webhook.url
    await webhooks.delete(app_name)
    return WebhookDeleted(url=url)


@Endpoint(
    "GET",
    "/admin/webhooks",
    tag=Tag.OPERATOR,
    summary="List the webhooks of all apps",
    auth="admin",
    example={
        "ok": True,
        "count": 1,
        "webhooks": [
            {
                "app": "my-bot",
                "url": "https://hooks.example.org/clawdforge",
                "events": EVENTS_EXAMPLE,
                "pending": 0,
                "pending_bytes": 0,
                "dropped": 0,
                "last_success_at": 1795479703,
                "failing_since": None,
            }
        ],
    },
)
async def list_webhooks(request: web.Request) -> WebhookList:
    queues = context_of(request).outbox.webhooks.all()
    rows = [
        WebhookOfApp(app=queue.app_name, url=queue.shown_url, **_queue_info(queue))
        for queue in queues
    ]
    return WebhookList(count=len(rows), webhooks=rows)


def _queue_info(queue: DeliveryQueue) -> dict[str, Any]:
    return {
        "events": list(queue.events),
        "pending": queue.length,
        "pending_bytes": queue.size,
        "dropped": queue.dropped,
        "last_success_at": _whole_seconds(queue.last_success_at),
        "failing_since": _whole_seconds(queue.failed_since),
    }


def _delivery_info(row: DeliveryRow) -> DeliveryInfo:
    return DeliveryInfo(
        id=row.id,
        event=row.event,  # type: ignore[arg-type]
        session_id=row.session_id or None,
        seq=row.seq,
        created_at=int(row.at),
        attempts=row.attempts,
        next_attempt_at=int(row.next_at) if row.next_at else None,
    )


def _failure_info(row: DeliveryFailureRow) -> DeliveryFailure:
    return DeliveryFailure(
        id=row.delivery_id,
        event=row.event,  # type: ignore[arg-type]
        session_id=row.session_id,
        seq=row.seq,
        at=int(row.at),
        attempt=row.attempt,
        status=row.status,
        error=row.error,
        gave_up=bool(row.is_last),
    )


def _whole_seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
