"""Sends push messages to the push services of browsers.

A message is stored in the commit of its log entry, and deleted once the push service has accepted
it, or when it is given up. So the next server sends what a killed one has left, and a node of a
cluster what an ended one has left. A message may be sent twice; the browser shows one notification.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable

from ..sessions.alerts import Alert, AlertKind
from ..storage import outbox as stored
from ..storage.outbox import OutboxQueries, PushMessageRow, SubscriptionRow
from ..storage.writer import DatabaseWriter
from ..tasks import Semaphores, Tasks
from .http_client import HttpResponse, OutboundClient, RequestError
from .push_crypto import ServerIdentity, encrypt
from .push_messages import push_message
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
        clock: returns unix seconds.

    Attributes:
        counts: the messages by their result: ``sent``, ``failed`` or ``gone``.
    """

    def __init__(
        self,
        subscriptions: PushSubscriptions,
        client: OutboundClient,
        identity: ServerIdentity,
        queries: OutboxQueries,
        writer: DatabaseWriter,
        *,
        may_read: Callable[[str], bool],
        ttl_secs: float,
        clock: Callable[[], float],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._queries = queries
        self._writer = writer
        self._subscriptions = subscriptions
        self._client = client
        self._identity = identity
        self._may_read = may_read
        self._ttl_secs = ttl_secs
        self._waiting: dict[str, deque[PushMessageRow]] = {}
        self._known: set[str] = set()  # ids of the messages that wait or are being sent
        self._done: set[str] | None = None  # during :meth:`send_unsent`
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
        """Store an alert for the subscriptions that want it, and send it."""
        for row in self._subscriptions.of(alert.app_name):
            if alert.kind in wanted_by(row):
                message = push_message(alert, row.id, self._ttl_secs)
                self._writer.add([stored.insert_push_message(message)])
                self._append(row, message)

    async def send_unsent(self, node: int | None = None) -> None:
        """Send what an ended server has left.

        Args:
            node: of this server in a cluster. Then only the messages of this node are sent.

        Raises:
            DatabaseError, Error: the database is out of reach.
        """
        await self._writer.commit([stored.delete_useless_push_messages(self._clock())])
        done = self._done = set()
        try:
            messages = await self._queries.push_messages(node)
        finally:
            self._done = None
        for message in messages:
            row = self._subscriptions.find_by_id(message.subscription_id)
            if row is not None and message.id not in self._known and message.id not in done:
                self._append(row, message)

    async def forget_requests(self, session_id: str) -> None:
        """Delete what a purged session's agent has asked, before it is sent."""
        for messages in self._waiting.values():
            for message in tuple(messages):
                if message.session_id == session_id and message.urgency == "high":
                    messages.remove(message)
                    self._known.discard(message.id)
        await self._writer.commit([stored.delete_pushed_requests(session_id)])

    async def stop(self) -> None:
        """Send for a moment. The next server sends the rest."""
        await self._tasks.finish(FINAL_PUSH_SECS)

    def _append(self, row: SubscriptionRow, message: PushMessageRow) -> None:
        messages = self._waiting.setdefault(row.id, deque())
        if len(messages) >= MAX_WAITING:
            self._finish(messages.popleft())
        messages.append(message)
        self._known.add(message.id)
        if row.id not in self._workers:
            self._workers[row.id] = self._tasks.spawn(self._work(row), f"push-{row.id}")

    def _finish(self, message: PushMessageRow) -> None:
        """Delete a message that was sent or is given up."""
        self._known.discard(message.id)
        if self._done is not None:
            self._done.add(message.id)
        self._writer.add([stored.delete_push_message(message.id)])

    def _forget(self, subscription_id: str) -> None:
        """Send nothing more to a subscription. The caller deletes its messages."""
        for message in self._waiting.pop(subscription_id, ()):
            self._known.discard(message.id)
        worker = self._workers.pop(subscription_id, None)
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()

    async def _work(self, row: SubscriptionRow) -> None:
        """Send the messages of one subscription in order."""
        try:
            while messages := self._waiting.get(row.id):
                message = messages.popleft()
                try:
                    current = self._subscriptions.find(row.app_name, row.id)
                    if current is not None and self._may_read(row.app_name):
                        await self._send(current, message)
                    self._finish(message)
                finally:
                    self._known.discard(message.id)
        finally:
            if self._workers.get(row.id) is asyncio.current_task():
                del self._workers[row.id]
                for message in self._waiting.pop(row.id, ()):
                    self._known.discard(message.id)

    async def _send(self, row: SubscriptionRow, message: PushMessageRow) -> None:
        for pause in (*PUSH_RETRY_SECS, None):
            if (response := await self._attempt(row, message)) is None:
                return
            if isinstance(response, HttpResponse) and self._is_final(row, response):
                return
            retry_after = response.retry_after if isinstance(response, HttpResponse) else None
            wait = max(pause or 0, min(retry_after or 0, MAX_RETRY_AFTER_SECS))
            if pause is None or self._clock() + wait >= message.expires_at:
                break
            await asyncio.sleep(wait)
        self.counts["failed"] += 1

    async def _attempt(
        self, row: SubscriptionRow, message: PushMessageRow
    ) -> HttpResponse | RequestError | None:
        """Send a message once; None if it is too late or impossible."""
        try:
            url = self._client.check_url(row.endpoint)
        except ValueError:
            self.counts["failed"] += 1
            return None  # the operator allows this host no longer
        async with self._requests_of_app.of(row.app_name), self._requests:
            left = int(message.expires_at - self._clock())
            if left <= 0 and message.urgency == "high":
                return None
            headers = {
                "Authorization": self._identity.authorization(str(url.origin()), self._clock()),
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
