"""The push subscriptions of all apps: the browsers that want notifications."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence

from ..auth.credential import Credential
from ..codec import dumps, loads
from ..errors import Error, ErrorCode, bad_request, not_found
from ..sessions.alerts import AlertKind
from ..storage import outbox as stored
from ..storage.outbox import OutboxQueries, SubscriptionRow
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion
from .http_client import OutboundClient
from .push_crypto import AUTH_BYTES, check_public_key, from_base64url

logger = logging.getLogger(__name__)


class PushSubscriptions:
    """The push subscriptions, in memory as in the database.

    Args:
        client: knows to which push services messages may go.

    Attributes:
        on_remove: called with the id of a subscription that exists no longer.
    """

    def __init__(
        self,
        queries: OutboxQueries,
        writer: DatabaseWriter,
        client: OutboundClient,
        *,
        max_per_app: int,
        clock: Callable[[], float],
    ) -> None:
        self.on_remove: Callable[[str], None] = lambda subscription_id: None
        self._queries = queries
        self._writer = writer
        self._client = client
        self._max_per_app = max_per_app
        self._clock = clock
        self._by_app: dict[str, dict[str, SubscriptionRow]] = {}
        self._changing = asyncio.Lock()

    def __len__(self) -> int:
        return sum(map(len, self._by_app.values()))

    async def load(self) -> None:
        await self.refresh()

    async def refresh(self) -> None:
        """Take over what other nodes of the cluster have added, changed and deleted."""
        async with self._changing:
            rows = {row.id: row for row in await self._queries.subscriptions()}
            for known in [row for app_name in self._by_app for row in self.of(app_name)]:
                if known.id not in rows:
                    self._drop(known)
            for row in rows.values():
                if self.find(row.app_name, row.id) != row:
                    self._add(row)

    def of(self, app_name: str) -> Sequence[SubscriptionRow]:
        """The subscriptions of an app, the oldest first."""
        return tuple(self._by_app.get(app_name, {}).values())

    def find_by_id(self, subscription_id: str) -> SubscriptionRow | None:
        return next(
            (rows[subscription_id] for rows in self._by_app.values() if subscription_id in rows),
            None,
        )

    def find(self, app_name: str, subscription_id: str) -> SubscriptionRow | None:
        return self._by_app.get(app_name, {}).get(subscription_id)

    async def add(
        self,
        credential: Credential,
        endpoint: str,
        p256dh: str,
        auth: str,
        events: Sequence[AlertKind],
    ) -> SubscriptionRow:
        """Add a subscription, or change the one that has the same endpoint.

        Args:
            endpoint: the address at the browser's push service.
            p256dh, auth: the browser's public key and secret, in base64url.

        Raises:
            Error: ``bad_request``; ``rate_limited`` if the app has too many subscriptions;
                ``unauthorized`` if the token was revoked meanwhile.
        """
        app_name = credential.app_name
        try:
            url = self._client.check_url(endpoint)
            await self._client.check_addresses(url)
        except ValueError as error:
            raise bad_request(f"endpoint: {error}") from None
        point, secret = _decoded("p256dh", p256dh), _decoded("auth", auth)
        try:
            check_public_key(point)
        except ValueError:
            raise bad_request("keys.p256dh: not a public key of P-256") from None
        if len(secret) != AUTH_BYTES:
            raise bad_request(f"keys.auth: must have {AUTH_BYTES} bytes")
        async with self._changing:
            credential.check()
            known = self._find_endpoint(app_name, endpoint)
            if known is None and len(self._by_app.get(app_name, {})) >= self._max_per_app:
                message = f"an app has at most {self._max_per_app} push subscriptions: delete one"
                raise Error(ErrorCode.RATE_LIMITED, message)
            row = SubscriptionRow(
                id=known.id if known is not None else str(uuid.uuid4()),
                app_name=app_name,
                endpoint=endpoint,
                p256dh=point,
                auth=secret,
                events=dumps(list(dict.fromkeys(events))).decode(),
                created_at=known.created_at if known is not None else self._clock(),
            )
            self._add(row)
            try:
                await to_completion(self._writer.commit(stored.replace_subscription(row)))
            except Error:
                if known is None:
                    self._drop(row)
                else:
                    self._add(known)
                raise
            return row

    async def delete(self, app_name: str, subscription_id: str) -> None:
        """Delete a subscription of an app.

        Raises:
            Error: ``not_found``.
        """
        async with self._changing:
            row = self.find(app_name, subscription_id)
            if row is None:
                raise not_found("push subscription")
            self._drop(row)
            await to_completion(self._writer.commit(stored.delete_subscription(row.id)))

    def remove_dead(self, row: SubscriptionRow) -> None:
        """Remove a subscription that its push service does not know any more."""
        if self.find(row.app_name, row.id) is row:
            self._drop(row)
            self._writer.add(stored.delete_subscription(row.id))
            logger.info("a push subscription has ended", extra={"app": row.app_name})

    def drop_app(self, app_name: str) -> None:
        """Drop the subscriptions of an app whose token is revoked. The caller deletes their
        rows."""
        for row in self.of(app_name):
            self._drop(row)

    def _find_endpoint(self, app_name: str, endpoint: str) -> SubscriptionRow | None:
        return next((row for row in self.of(app_name) if row.endpoint == endpoint), None)

    def _add(self, row: SubscriptionRow) -> None:
        self._by_app.setdefault(row.app_name, {})[row.id] = row

    def _drop(self, row: SubscriptionRow) -> None:
        rows = self._by_app.get(row.app_name, {})
        rows.pop(row.id, None)
        if not rows:
            self._by_app.pop(row.app_name, None)
        self.on_remove(row.id)


def wanted_by(row: SubscriptionRow) -> Sequence[AlertKind]:
    """The kinds of alerts that a subscription wants."""
    wanted: Sequence[AlertKind] = loads(row.events)
    return wanted


def _decoded(name: str, text: str) -> bytes:
    try:
        return from_base64url(text)
    except ValueError:
        raise bad_request(f"keys.{name}: not base64url") from None
