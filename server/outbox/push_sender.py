"""Sends push messages to the push services of browsers.

Push is not durable: a message that was not sent when the server stops is lost. The same is
in the log, and in webhooks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable

from ..sessions.alerts import Alert, AlertKind
from ..storage.outbox import SubscriptionRow
from ..tasks import Semaphores, Tasks
from .http_client import HttpResponse, OutboundClient, RequestError
from .push_crypto import ServerIdentity, encrypt
from .push_messages import PushMessage, push_message
from .subscriptions import PushSubscriptions, wanted_by

logger = logging.getLogger(__name__)

MAX_WAITING = 16
"""Messages that wait for one subscription. The oldest is dropped for a newer one."""
MAX_REQUESTS = 32
MAX_REQUESTS_PER_APP = 4
PUSH_RETRY_SECS = (2.0, 15.0, 60.0, 300.0)
"""Pauses before the retries of a message, if the push service does not respond or is busy."""
MAX_RETRY_AFTER_SECS = 3600.0
FINAL_PUSH_SECS = 1.0
"""The time in which messages are still sent when the server stops."""


class PushSender:
    """Sends the alerts that subscriptions want. An :class:`AlertReceiver`.

    Args:
        may_read: whether the token of an app allows it to see its sessions.
        ttl_secs: the time for which a push service keeps a message.

    Attributes:
        counts: the messages by their result: ``sent``, ``failed`` or ``gone``.
    """

    def __init__(
        self,
        subscriptions: PushSubscriptions,
        client: OutboundClient,
        identity: ServerIdentity,
        *,
        may_read: Callable[[str], bool],
        ttl_secs: float,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._subscriptions = subscriptions
        self._client = client
        self._identity = identity
        self._may_read = may_read
        self._ttl_secs = ttl_secs
        self._waiting: dict[str, deque[PushMessage]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._requests = asyncio.Semaphore(MAX_REQUESTS)
        self._requests_of_app = Semaphores(MAX_REQUESTS_PER_APP)
        self._tasks = Tasks()
        subscriptions.on_remove = self._forget

    def wants(self, app_name: str, kind: AlertKind) -> bool:
        """Whether a subscription of the app wants such alerts."""
        rows = self._subscriptions.of(app_name)
        return any(kind in wanted_by(row) for row in rows) and self._may_read(app_name)

    def receive(self, alert: Alert) -> None:
        """Send an alert to the subscriptions that want it."""
        message = push_message(alert, self._ttl_secs)
        for row in self._subscriptions.of(alert.app_name):
            if alert.kind not in wanted_by(row):
                continue
            self._waiting.setdefault(row.id, deque(maxlen=MAX_WAITING)).append(message)
            if row.id not in self._workers:
                self._workers[row.id] = self._tasks.spawn(self._work(row), f"push-{row.id}")

    async def stop(self) -> None:
        await self._tasks.finish(FINAL_PUSH_SECS)

    def _forget(self, subscription_id: str) -> None:
        """Send nothing more to a subscription."""
        self._waiting.pop(subscription_id, None)
        worker = self._workers.pop(subscription_id, None)
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()

    async def _work(self, row: SubscriptionRow) -> None:
        """Send the messages of one subscription in order."""
        try:
            while messages := self._waiting.get(row.id):
                message = messages.popleft()
                current = self._subscriptions.find(row.app_name, row.id)
                if current is not None and self._may_read(row.app_name):
                    await self._send(current, message)
        finally:
            if self._workers.get(row.id) is asyncio.current_task():
                del self._workers[row.id]
                self._waiting.pop(row.id, None)

    async def _send(self, row: SubscriptionRow, message: PushMessage) -> None:
        for pause in (*PUSH_RETRY_SECS, None):
            if (response := await self._attempt(row, message)) is None:
                return
            if isinstance(response, HttpResponse) and self._is_final(row, response):
                return
            retry_after = response.retry_after if isinstance(response, HttpResponse) else None
            wait = max(pause or 0, min(retry_after or 0, MAX_RETRY_AFTER_SECS))
            if pause is None or time.time() + wait >= message.expires_at:
                break
            await asyncio.sleep(wait)
        self.counts["failed"] += 1

    async def _attempt(
        self, row: SubscriptionRow, message: PushMessage
    ) -> HttpResponse | RequestError | None:
        """Send a message once; None if it is too late or impossible."""
        try:
            url = self._client.check_url(row.endpoint)
        except ValueError:
            self.counts["failed"] += 1
            return None  # the operator allows this host no longer
        async with self._requests_of_app.of(row.app_name), self._requests:
            left = int(message.expires_at - time.time())
            if left <= 0 and message.urgency == "high":
                return None
            headers = {
                "Authorization": self._identity.authorization(str(url.origin())),
                "Content-Encoding": "aes128gcm",
                "Content-Type": "application/octet-stream",
                "TTL": str(max(left, 0)),
                "Topic": message.topic,
                "Urgency": message.urgency,
            }
            body = encrypt(message.body, row.p256dh, row.auth)
            try:
                return await self._client.post(url, headers, body)
            except RequestError as error:
                logger.warning("push: %s", error, extra={"app": row.app_name})
                return error

    def _is_final(self, row: SubscriptionRow, response: HttpResponse) -> bool:
        """Whether no retry would help; counts the message then."""
        if response.status < 300:
            self.counts["sent"] += 1
        elif response.status in (404, 410):
            self.counts["gone"] += 1
            self._subscriptions.remove_dead(row)
        elif response.status == 429 or response.status >= 500:
            return False
        else:
            self.counts["failed"] += 1
            logger.warning(
                "the push service refused a message: status %d",
                response.status,
                extra={"app": row.app_name},
            )
        return True
