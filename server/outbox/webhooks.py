"""The webhooks of the apps: set, shown and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ..auth.credential import Credential
from ..codec import dumps
from ..errors import Error, bad_request, not_found
from ..sessions.alerts import AlertKind
from ..storage import outbox as stored
from ..storage.outbox import DeliveryFailureRow, DeliveryRow, OutboxQueries, WebhookRow
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion
from .delivery_queue import DeliveryQueue
from .http_client import OutboundClient
from .signatures import new_secret, parse_secret, shown_secret
from .webhook_sender import WebhookSender

SHOWN_DELIVERIES = 20


class Webhooks:
    """The webhooks of all apps, one of each.

    Args:
        client: knows to which hosts requests may go.
    """

    def __init__(
        self,
        queries: OutboxQueries,
        writer: DatabaseWriter,
        client: OutboundClient,
        sender: WebhookSender,
        clock: Callable[[], float],
    ) -> None:
        self._queries = queries
        self._writer = writer
        self._client = client
        self._sender = sender
        self._clock = clock
        self._changing = asyncio.Lock()

    async def refresh(self) -> None:
        """Take over the webhooks that other nodes of the cluster have set and deleted."""
        async with self._changing:
            rows = {row.app_name: row for row in await self._queries.webhooks()}
            for app_name in self._sender.queues.keys() - rows.keys():
                self._sender.drop_app(app_name)
            for row in rows.values():
                queue = self._sender.queues.get(row.app_name)
                if queue is None or queue.webhook != row:
                    self._sender.set_webhook(row)

    async def set(
        self, credential: Credential, url: str, events: Sequence[AlertKind], secret: str | None
    ) -> tuple[DeliveryQueue, str | None]:
        """Set the webhook of an app, in place of an earlier one.

        Args:
            secret: the key of the signatures; None for a new one.

        Returns:
            The webhook, and the new secret if it was created.

        Raises:
            Error: ``bad_request``; or ``unauthorized``, the token was revoked meanwhile.
        """
        try:
            await self._client.check_addresses(self._client.check_url(url))
        except ValueError as error:
            raise bad_request(f"url: {error}") from None
        try:
            key = parse_secret(secret) if secret is not None else new_secret()
        except ValueError as error:
            raise bad_request(f"secret: {error}") from None
        names = dumps(list(dict.fromkeys(events))).decode()
        async with self._changing:
            credential.check()
            before = self._sender.queues.get(credential.app_name)
            earlier = before.webhook if before is not None else None
            row = WebhookRow(credential.app_name, url, names, key, self._clock())
            queue = self._sender.set_webhook(row)
            try:
                await to_completion(self._writer.commit(stored.replace_webhook(row)))
            except Error:
                if earlier is not None:
                    self._sender.set_webhook(earlier)
                else:
                    self._sender.drop_app(credential.app_name)
                raise
        return queue, shown_secret(key) if secret is None else None

    def get(self, app_name: str) -> DeliveryQueue:
        """Return the webhook of an app.

        Raises:
            Error: ``not_found``.
        """
        queue = self._sender.queues.get(app_name)
        if queue is None:
            raise not_found("webhook")
        return queue

    def all(self) -> list[DeliveryQueue]:
        """The webhooks of all apps, by the apps' names."""
        return [queue for _, queue in sorted(self._sender.queues.items())]

    async def deliveries(self, app_name: str) -> list[DeliveryRow]:
        """The oldest deliveries that wait for the receiver of an app."""
        return await self._queries.first_deliveries(app_name, SHOWN_DELIVERIES)

    async def failures(self, app_name: str) -> list[DeliveryFailureRow]:
        """The newest failures of an app, the newest first."""
        await self._writer.commit(())  # the last one may not be stored yet
        return await self._queries.failures(app_name)

    async def delete(self, app_name: str) -> None:
        """Delete the webhook of an app with what waits for it.

        Raises:
            Error: ``not_found``.
        """
        async with self._changing:
            self.get(app_name)
            self._sender.drop_app(app_name)
            await to_completion(self._writer.commit(stored.delete_webhook(app_name)))
