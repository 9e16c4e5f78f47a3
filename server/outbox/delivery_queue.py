"""The deliveries of one app in memory: only their numbers and times, not their content.

The deliveries of one session form a line. The first one of a line is attempted, the others follow
once it is done, so that the receiver gets them in order. Lines do not wait for each other.
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


class DeliveryLine:
    """The deliveries of one session.

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
        self._lines: dict[str, DeliveryLine] = {}
        self._due: list[tuple[float, int, DeliveryLine]] = []

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

    def load(self, line: DeliveryLine) -> None:
        """Add a line that is stored."""
        self.length += line.length
        self.size += line.size
        self._lines[line.session_id] = line
        line.is_stored = True
        self.schedule(line, line.next_at)

    def append(self, session_id: str, size: int) -> DeliveryLine:
        """Count one more delivery of a session, which is about to be stored."""
        line = self._lines.get(session_id)
        if line is None:
            line = self._lines[session_id] = DeliveryLine(session_id)
        line.length += 1
        line.size += size
        self.length += 1
        self.size += size
        return line

    def remove(self, line: DeliveryLine, count: int, size: int) -> None:
        """Stop counting deliveries. Those of a node that was taken over were never counted."""
        count, size = min(count, line.length), min(size, line.size)
        line.length -= count
        line.size -= size
        self.length -= count
        self.size -= size
        if line.length <= 0:
            self._lines.pop(line.session_id, None)

    def resize(self, line: DeliveryLine, length: int, size: int) -> None:
        """Correct a line after deliveries were deleted.

        Args:
            size: bytes of its fields that are left.
        """
        self.remove(line, line.length - length, line.size - size)

    def line_of(self, session_id: str) -> DeliveryLine | None:
        return self._lines.get(session_id)

    def schedule(self, line: DeliveryLine, next_at: float) -> None:
        """Set the time of the next attempt of a line."""
        line.next_at = next_at
        heapq.heappush(self._due, (next_at, next(_order), line))

    def retry_now(self, now: float) -> None:
        """Attempt all lines that wait for a later time."""
        for line in self._lines.values():
            if line.next_at > now and not line.is_busy and line.is_stored:
                self.schedule(line, now)

    @property
    def next_at(self) -> float | None:
        """The time of the next attempt; None without one."""
        while self._due and not self._is_valid(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def take(self, now: float) -> DeliveryLine | None:
        """Return a line whose next attempt is due, and mark it as busy."""
        next_at = self.next_at
        if next_at is None or next_at > now:
            return None
        line = heapq.heappop(self._due)[2]
        line.is_busy = True
        return line

    def _is_valid(self, next_at: float, order: int, line: DeliveryLine) -> bool:
        is_current = self._lines.get(line.session_id) is line
        return is_current and line.next_at == next_at and not line.is_busy
