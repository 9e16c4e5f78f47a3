"""Web Push: the server's key, and the subscriptions of browsers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from ...outbox.subscriptions import wanted_by
from ...sessions.alerts import AlertKind
from ...storage.outbox import SubscriptionRow
from ..context import CREDENTIAL, app_name_of, context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, UnixSeconds, doc

DEFAULT_EVENTS: tuple[AlertKind, ...] = (
    "turn_ended",
    "permission_requested",
    "elicitation_requested",
    "budget_exceeded",
)
SUBSCRIPTION_ID = "5f0cf3d6-30d2-4a4b-a6f9-6c4b34f3a3f7"
ENDPOINT = "https://updates.push.services.mozilla.com/wpush/v2/gAAAAAB"
KEYS = {
    "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcx"
    "aOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
    "auth": "BTBZMqHH6r4Tts7J_aSIgg",
}
AlertKinds = Annotated[
    Annotated[list[AlertKind], msgspec.Meta(min_length=1, max_length=16)],
    doc("The events to report. `session_closed` is left out by default."),
]


class PushKeys(msgspec.Struct, frozen=True):
    """The keys of a browser's subscription, as its `toJSON()` returns them."""

    p256dh: Annotated[
        Annotated[str, msgspec.Meta(max_length=256)],
        doc("The public key: an uncompressed point of P-256 in base64url."),
    ]
    auth: Annotated[
        Annotated[str, msgspec.Meta(max_length=256)], doc("The secret: 16 bytes in base64url.")
    ]


class Subscribe(msgspec.Struct, frozen=True):
    """A browser's subscription: `PushSubscription.toJSON()`, perhaps with `events`."""

    endpoint: Annotated[
        Annotated[str, msgspec.Meta(max_length=2048)],
        doc(
            "The address at the browser's push service, whose host `CLAWDFORGE_PUSH_HOSTS` allows."
        ),
    ]
    keys: PushKeys
    events: AlertKinds = msgspec.field(default_factory=lambda: list(DEFAULT_EVENTS))


class PushKey(msgspec.Struct, kw_only=True):
    """The server's public key."""

    key: Annotated[str, doc("For `applicationServerKey`: base64url. It never changes.")]


class Subscribed(msgspec.Struct, kw_only=True):
    """The subscription. The same endpoint keeps its id."""

    id: str


class SubscriptionInfo(msgspec.Struct, kw_only=True):
    """A subscription, without its keys."""

    id: str
    service: Annotated[str, doc("The host of the push service.")]
    events: AlertKinds
    created_at: UnixSeconds


class SubscriptionList(msgspec.Struct, kw_only=True):
    """The push subscriptions of the app, the oldest first."""

    count: Count
    subscriptions: list[SubscriptionInfo]


@Endpoint(
    "GET",
    "/push/key",
    tag=Tag.NOTIFICATIONS,
    scope="prompt",
    summary="The server's public key for push",
    example={"ok": True, "key": KEYS["p256dh"]},
)
async def get_push_key(request: web.Request) -> PushKey:
    return PushKey(key=context_of(request).outbox.identity.public_key)


@Endpoint(
    "POST",
    "/push/subscriptions",
    tag=Tag.NOTIFICATIONS,
    scope="prompt",
    summary="Notify a browser",
    description="Events of the app's sessions are pushed to the browser until the subscription is"
    " deleted, its push service has ended it (404 or 410), or the token is revoked. A subscription"
    " with the same endpoint is replaced.",
    waits=("body",),
    request_example={"endpoint": ENDPOINT, "keys": KEYS},
    example={"ok": True, "id": SUBSCRIPTION_ID},
    failures=("rate_limited",),
)
async def subscribe(request: web.Request, body: Subscribe) -> Subscribed:
    row = await context_of(request).outbox.subscriptions.add(
        request[CREDENTIAL], body.endpoint, body.keys.p256dh, body.keys.auth, body.events
    )
    return Subscribed(id=row.id)


@Endpoint(
    "GET",
    "/push/subscriptions",
    tag=Tag.NOTIFICATIONS,
    scope="prompt",
    summary="List the push subscriptions",
    example={
        "ok": True,
        "count": 1,
        "subscriptions": [
            {
                "id": SUBSCRIPTION_ID,
                "service": "updates.push.services.mozilla.com",
                "events": list(DEFAULT_EVENTS),
                "created_at": 1795479703,
            }
        ],
    },
)
async def list_subscriptions(request: web.Request) -> SubscriptionList:
    rows = context_of(request).outbox.subscriptions.of(app_name_of(request))
    return SubscriptionList(
        count=len(rows), subscriptions=[_subscription_info(row) for row in rows]
    )


@Endpoint(
    "DELETE",
    "/push/subscriptions/{subscription_id}",
    tag=Tag.NOTIFICATIONS,
    scope="prompt",
    summary="Notify a browser no longer",
    example={"ok": True, "id": SUBSCRIPTION_ID},
)
async def unsubscribe(request: web.Request) -> Subscribed:
    subscription_id = request.match_info["subscription_id"]
    await context_of(request).outbox.subscriptions.delete(app_name_of(request), subscription_id)
    return Subscribed(id=subscription_id)


def _subscription_info(row: SubscriptionRow) -> SubscriptionInfo:
    return SubscriptionInfo(
        id=row.id,
        service=row.endpoint.split("/")[2],
        events=list(wanted_by(row)),
        created_at=int(row.created_at),
    )
