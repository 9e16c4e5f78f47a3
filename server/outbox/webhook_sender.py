"""Sends webhooks: each delivery until the receiver accepts it or it has become too old.

The alert is stored in the commit of its log entry, and deleted after the receiver has accepted it.
So a delivery is repeated after a kill of the server, and none is lost. Nothing waits for a
receiver: the sender is a task of its own, with its own limits of requests at once and per second.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

from ..codec import dumps
from ..errors import DatabaseError, Error
from ..sessions.alerts import Alert, AlertKind
from ..storage import outbox as stored
from ..storage.outbox import DeliveryFailureRow, DeliveryRow, OutboxQueries, WebhookRow
from ..storage.writer import DatabaseWriter
from .delivery_queue import DeliveryQueue, SessionDeliveries
from .http_client import HttpResponse, OutboundClient, RequestError
from .signatures import signed_headers
from .webhook_delivery import (
    FIRST_RETRY_SECS,
    RequestPace,
    WebhookLimits,
    delivery_body,
    retry_pause,
)

logger = logging.getLogger(__name__)

BATCH = 10
"""Deliveries of a session that are sent before the other sessions of the app get their turn."""
POLL_SECS = 1.0
"""The longest time after which a due delivery is noticed, even if the clock was changed."""
RECOVERY_SECS = 60.0
"""After a success that follows failures for this long, everything that waits is sent at once."""
FULL_SECS = 60.0
"""The shortest time between two records of dropped events."""


class WebhookSender:
    """Sends the alerts that webhooks want. An :class:`AlertReceiver`.

    Args:
        may_read: whether the token of an app allows it to see its sessions.

    Attributes:
        head_of: returns the head of a session's log; None if the session is deleted.
        queues: of the apps that have a webhook. The first is served next.
        counts: the attempts by their result (``accepted``, ``failed``), and the deliveries that
            were ``dropped``.
    """

    def __init__(
        self,
        queries: OutboxQueries,
        writer: DatabaseWriter,
        client: OutboundClient,
        limits: WebhookLimits,
        *,
        may_read: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self.head_of: Callable[[str], Awaitable[int | None]]
        self.queues: OrderedDict[str, DeliveryQueue] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self._queries = queries
        self._writer = writer
        self._client = client
        self._limits = limits
        self._may_read = may_read
        self._clock = clock
        self._requests = 0
        self._pace = RequestPace(limits.requests_per_sec)
        self._new: list[tuple[DeliveryQueue, SessionDeliveries]] = []
        self._work = asyncio.Event()

    # Alerts

    def wants(self, app_name: str, kind: AlertKind) -> bool:
        """Whether the app has a webhook for such alerts."""
        queue = self.queues.get(app_name)
        return queue is not None and kind in queue.events and self._may_read(app_name)

    def receive(self, alert: Alert) -> None:
        """Store an alert with its log entry, and send it afterwards."""
        queue = self.queues[alert.app_name]
        fields = dict(alert.fields)
        if alert.session is not None:
            fields = {"turn_index": alert.turn_index, **fields}
        row = DeliveryRow(
            n=0,
            id=f"msg_{os.urandom(16).hex()}",
            app_name=alert.app_name,
            session_id=alert.session.id if alert.session is not None else "",
            event=alert.kind,
            seq=alert.seq,
            at=alert.at,
            fields=dumps(fields)[1:-1],
        )
        size = len(row.fields)
        is_full = queue.length >= self._limits.max_deliveries
        if is_full or queue.size + size > self._limits.max_bytes:
            self._drop(queue, row)
            return
        self._writer.add([stored.insert_delivery(row)])
        deliveries = queue.append(row.session_id, size)
        if not deliveries.is_stored:
            self._new.append((queue, deliveries))
            self._work.set()

    def _drop(self, queue: DeliveryQueue, row: DeliveryRow) -> None:
        queue.dropped += 1
        self.counts["dropped"] += 1
        now = self._clock()
        if now - queue.dropped_at >= FULL_SECS:
            queue.dropped_at = now
            self._record(
                queue, row, None, "too much waits for the receiver; events are dropped", None
            )
            logger.warning("a webhook's queue is full", extra={"app": queue.app_name})

    # The queues

    async def load(self, *, is_shared: bool) -> None:
        """Load the queues of an earlier server.

        Args:
            is_shared: the database is that of a cluster. Then :meth:`adopt` loads the deliveries.
        """
        for webhook in await self._queries.webhooks():
            self.queues[webhook.app_name] = DeliveryQueue(webhook)
        if is_shared:
            return
        for row in await self._queries.count_deliveries():
            if (queue := self.queues.get(row.app_name)) is not None:
                queue.load(SessionDeliveries(*row[1:]))

    async def adopt(self, number: int) -> None:
        """Send also what this node of a cluster has adopted from others.

        Args:
            number: of this node.
        """
        await self._writer.commit(())  # what is done here already is deleted
        for row in await self._queries.count_deliveries_of_node(number):
            queue = self.queues.get(row.app_name)
            if queue is not None and queue.of_session(row.session_id) is None:
                queue.load(SessionDeliveries(*row[1:]))
                self._work.set()

    def set_webhook(self, webhook: WebhookRow) -> DeliveryQueue:
        """Set the webhook of an app. Waiting deliveries are sent to the new address."""
        queue = self.queues.get(webhook.app_name)
        if queue is None:
            queue = self.queues[webhook.app_name] = DeliveryQueue(webhook)
        else:
            queue.replace(webhook)
        self._work.set()
        return queue

    def drop_app(self, app_name: str) -> None:
        """Drop the webhook of an app, and end its running requests."""
        queue = self.queues.pop(app_name, None)
        if queue is not None:
            queue.tasks.cancel()

    async def forget_requests(self, app_name: str, session_id: str) -> None:
        """Delete what a purged session's agent has asked, before it is sent."""
        await self._writer.commit([stored.delete_requests_of(app_name, session_id)])
        queue = self.queues.get(app_name)
        deliveries = queue.of_session(session_id) if queue is not None else None
        if queue is None or deliveries is None:
            return
        rows = [
            row
            for row in await self._queries.count_deliveries(app_name)
            if row.session_id == session_id
        ]
        length, size = (rows[0].length, rows[0].size) if rows else (0, 0)
        queue.resize(deliveries, length, size)

    def stop(self) -> None:
        """End the running requests. They are repeated by the next server."""
        for queue in self.queues.values():
            queue.tasks.cancel()

    # Sending

    async def run(self) -> None:
        """Send forever."""
        while True:
            await self._wait()
            if self._new:
                await self._reach_new()
            self._start_due()

    async def _wait(self) -> None:
        """Wait until a delivery may be due."""
        times = [
            next_at
            for queue in self.queues.values()
            if self._has_capacity(queue) and (next_at := queue.next_at) is not None
        ]
        if times and self._requests < self._limits.requests:
            try:
                async with asyncio.timeout(max(0.0, min(min(times) - self._clock(), POLL_SECS))):
                    await self._work.wait()
            except TimeoutError:
                pass
        else:
            await self._work.wait()
        self._work.clear()

    async def _reach_new(self) -> None:
        """Schedule the sessions whose first delivery was added, once it is stored."""
        new, self._new = self._new, []
        try:
            await self._writer.commit(())
        except Error:
            self._new = [*new, *self._new]
            self._work.set()
            await asyncio.sleep(POLL_SECS)
            return
        for queue, deliveries in new:
            if not deliveries.is_stored and queue.of_session(deliveries.session_id) is deliveries:
                deliveries.is_stored = True
                queue.schedule(deliveries, self._clock())

    def _has_capacity(self, queue: DeliveryQueue) -> bool:
        return queue.requests < (1 if queue.has_no_connection else self._limits.requests_per_app)

    def _start_due(self) -> None:
        """Start the attempts that are due: of one session of each app, then of the next ones."""
        now = self._clock()
        has_started = True
        while has_started:
            has_started = False
            for app_name, queue in tuple(self.queues.items()):
                if self._requests >= self._limits.requests:
                    return
                if self._has_capacity(queue) and (deliveries := queue.take(now)) is not None:
                    self._requests += 1
                    queue.requests += 1
                    queue.tasks.spawn(self._send_first(queue, deliveries), "webhook")
                    self.queues.move_to_end(app_name)
                    has_started = True

    async def _send_first(self, queue: DeliveryQueue, deliveries: SessionDeliveries) -> None:
        """Send the first deliveries of a session, until one fails."""
        next_at = self._clock()
        try:
            for row in await self._first_rows(queue, deliveries):
                if (postponed := await self._attempt(queue, deliveries, row)) is not None:
                    next_at = postponed
                    break
            await self._writer.commit(())  # so that these rows are not read again
        except (DatabaseError, Error):
            next_at = self._clock() + FIRST_RETRY_SECS
        finally:
            self._requests -= 1
            queue.requests -= 1
            deliveries.is_busy = False
            if queue.of_session(deliveries.session_id) is deliveries:
                queue.schedule(deliveries, next_at)
            self._work.set()

    async def _first_rows(
        self, queue: DeliveryQueue, deliveries: SessionDeliveries
    ) -> list[DeliveryRow]:
        """Read the first deliveries of a session."""
        read = self._queries.deliveries
        if rows := await read(queue.app_name, deliveries.session_id, BATCH):
            return rows
        length, size = deliveries.length, deliveries.size
        await self._writer.commit(())  # they may have been added just now
        rows = await read(queue.app_name, deliveries.session_id, BATCH)
        if not rows:
            queue.remove(deliveries, length, size)
        return rows

    async def _attempt(
        self, queue: DeliveryQueue, deliveries: SessionDeliveries, row: DeliveryRow
    ) -> float | None:
        """Send a delivery.

        Returns:
            The time of the next attempt; None if the delivery is done.
        """
        if self._clock() - row.at >= self._limits.max_age_secs:
            self._record(queue, row, None, "too old", row.attempts or None)
            self._finish(queue, deliveries, row)
            return None
        await self._pace.wait()
        status, error, retry_after = None, "", None
        try:
            response = await self._post(queue.webhook, row)
            status, retry_after = response.status, response.retry_after
            queue.has_no_connection = False
        except RequestError as failure:
            error = str(failure)
            queue.has_no_connection = True
        now = self._clock()
        if status is not None and 200 <= status < 300:
            self.counts["accepted"] += 1
            self._note_success(queue, now)
            self._finish(queue, deliveries, row)
            return None
        self.counts["failed"] += 1
        if queue.failed_since is None:
            queue.failed_since = now
        attempts = row.attempts + 1
        is_last = attempts >= self._limits.max_attempts
        error = error or f"the receiver answered {status}"
        self._record(queue, row, status, error, attempts, is_last=is_last)
        if is_last:
            self._finish(queue, deliveries, row)
            return None
        next_at = min(now + retry_pause(attempts, retry_after), row.at + self._limits.max_age_secs)
        self._writer.add([stored.postpone_delivery(row.n, attempts, next_at)])
        return next_at

    async def _post(self, webhook: WebhookRow, row: DeliveryRow) -> HttpResponse:
        try:
            url = self._client.check_url(webhook.url)
        except ValueError as error:
            raise RequestError(str(error)) from None
        head = await self.head_of(row.session_id) if row.session_id else None
        body = delivery_body(row, head)
        headers = signed_headers(webhook.secret, row.id, int(self._clock()), body)
        return await self._client.post(url, {"Content-Type": "application/json", **headers}, body)

    def _finish(
        self, queue: DeliveryQueue, deliveries: SessionDeliveries, row: DeliveryRow
    ) -> None:
        """Delete a delivery that was accepted or has failed finally."""
        if self.queues.get(queue.app_name) is queue:
            self._writer.add([stored.delete_delivery(row.n)])
            queue.remove(deliveries, 1, len(row.fields))

    def _note_success(self, queue: DeliveryQueue, now: float) -> None:
        failed_since, queue.failed_since = queue.failed_since, None
        last_success, queue.last_success_at = queue.last_success_at, now
        if failed_since is not None and now - (last_success or 0) >= RECOVERY_SECS:
            queue.retry_now(now)

    def _record(
        self,
        queue: DeliveryQueue,
        row: DeliveryRow,
        status: int | None,
        error: str,
        attempt: int | None,
        *,
        is_last: bool = True,
    ) -> None:
        """Store a failure, which the app can read."""
        failure = DeliveryFailureRow(
            app_name=queue.app_name,
            at=self._clock(),
            delivery_id=row.id,
            session_id=row.session_id or None,
            event=row.event,
            seq=row.seq,
            attempt=attempt,
            status=status,
            error=error,
            is_last=int(is_last),
        )
        if self.queues.get(queue.app_name) is queue:
            self._writer.add(stored.insert_failure(failure))
