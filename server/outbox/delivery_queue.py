"""The deliveries of one app in memory: only their numbers and times, not their content.

The first delivery of a session is attempted, and the others of this session follow once it is done,
so that the receiver gets them in order. Sessions do not wait for each other.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from yarl import URL

from ..codec import loads
from ..sessions.alerts import AlertKind
from ..storage.outbox import WebhookRow
from ..tasks import Tasks

_order = itertools.count()


class SessionDeliveries:
    """The deliveries of one session, which are attempted in their order.

    Attributes:
        session_id: empty for deliveries that are about no session.
        length, size: the number of deliveries, and the bytes of their fields.
        next_at: unix seconds of the next attempt.
        is_stored: the first delivery can be read from the database.
        is_busy: an attempt is being made.
    """

    __slots__ = ("is_busy", "is_stored", "length", "next_at", "session_id", "size")

    def __init__(
        self, session_id: str, length: int = 0, size: int = 0, next_at: float = 0.0
    ) -> None:
        self.session_id = session_id
        self.length = length
        self.size = size
        self.next_at = next_at
        self.is_stored = False
        self.is_busy = False


class DeliveryQueue:
    """The webhook of an app and its deliveries.

    Attributes:
        length, size: the number of deliveries, and the bytes of their fields.
        requests: the number of running attempts.
        has_no_connection: the last attempt got no response. Then one attempt is made at a time, so
            that a receiver that never responds does not occupy the server.
        failed_since: unix seconds of the first failure since the last success; None without one.
        last_success_at: unix seconds; None if there was none since the start.
        dropped: events that were not stored since the start, because the queue was full.
        tasks: its running attempts.
    """

    def __init__(self, webhook: WebhookRow) -> None:
        self.webhook = webhook
        self.events: Sequence[AlertKind] = loads(webhook.events)
        self.length = 0
        self.size = 0
        self.requests = 0
        self.has_no_connection = False
        self.failed_since: float | None = None
        self.last_success_at: float | None = None
        self.dropped = 0
        self.dropped_at = 0.0
        self.tasks = Tasks()
        self._by_session: dict[str, SessionDeliveries] = {}
        self._due: list[tuple[float, int, SessionDeliveries]] = []

    @property
    def app_name(self) -> str:
        return self.webhook.app_name

    @property
    def shown_url(self) -> str:
        """The URL without its query, which may be secret."""
        return str(URL(self.webhook.url).with_query(None))

    def replace(self, webhook: WebhookRow) -> None:
        """Use another webhook from now on, and attempt all deliveries at once."""
        self.webhook = webhook
        self.events = loads(webhook.events)
        self.has_no_connection = False
        self.failed_since = None
        self.retry_now(0.0)

    def load(self, deliveries: SessionDeliveries) -> None:
        """Add deliveries that are stored."""
        self.length += deliveries.length
        self.size += deliveries.size
        self._by_session[deliveries.session_id] = deliveries
        deliveries.is_stored = True
        self.schedule(deliveries, deliveries.next_at)

    def append(self, session_id: str, size: int) -> SessionDeliveries:
        """Count one more delivery of a session, which is about to be stored."""
        deliveries = self._by_session.get(session_id)
        if deliveries is None:
            deliveries = self._by_session[session_id] = SessionDeliveries(session_id)
        deliveries.length += 1
        deliveries.size += size
        self.length += 1
        self.size += size
        return deliveries

    def remove(self, deliveries: SessionDeliveries, count: int, size: int) -> None:
        """Stop counting deliveries. Those of a node that was taken over were never counted."""
        count, size = min(count, deliveries.length), min(size, deliveries.size)
        deliveries.length -= count
        deliveries.size -= size
        self.length -= count
        self.size -= size
        if deliveries.length <= 0:
            self._by_session.pop(deliveries.session_id, None)

    def resize(self, deliveries: SessionDeliveries, length: int, size: int) -> None:
        """Correct the counts after deliveries were deleted.

        Args:
            length, size: of the deliveries that are left.
        """
        self.remove(deliveries, deliveries.length - length, deliveries.size - size)

    def of_session(self, session_id: str) -> SessionDeliveries | None:
        return self._by_session.get(session_id)

    def schedule(self, deliveries: SessionDeliveries, next_at: float) -> None:
        """Set the time of the next attempt."""
        deliveries.next_at = next_at
        heapq.heappush(self._due, (next_at, next(_order), deliveries))

    def retry_now(self, now: float) -> None:
        """Attempt the deliveries that wait for a later time."""
        for deliveries in self._by_session.values():
            if deliveries.next_at > now and not deliveries.is_busy and deliveries.is_stored:
                self.schedule(deliveries, now)

    @property
    def next_at(self) -> float | None:
        """The time of the next attempt; None without one."""
        while self._due and not self._is_valid(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def take(self, now: float) -> SessionDeliveries | None:
        """Return deliveries whose next attempt is due, and mark them as busy."""
        next_at = self.next_at
        if next_at is None or next_at > now:
            return None
        deliveries = heapq.heappop(self._due)[2]
        deliveries.is_busy = True
        return deliveries

    def _is_valid(self, next_at: float, order: int, deliveries: SessionDeliveries) -> bool:
        is_current = self._by_session.get(deliveries.session_id) is deliveries
        return is_current and deliveries.next_at == next_at and not deliveries.is_busy
