"""The content, the times and the limits of webhook deliveries."""

from __future__ import annotations

import asyncio
import random
import time

import msgspec

from ..codec import dumps
from ..config import Settings
from ..storage.outbox import DeliveryRow
from .push_messages import utc_time

FIRST_RETRY_SECS = 5.0
MAX_RETRY_SECS = 3600.0
BURST = 10
"""Requests that are sent without a pause after a quiet time."""
_jitter = random.SystemRandom()


class WebhookLimits(msgspec.Struct, frozen=True):
    """The limits of webhooks: see the settings.

    Attributes:
        max_age_secs, max_attempts: of one delivery.
        max_deliveries, max_bytes: that wait for one receiver.
        requests, requests_per_app: at once.
        requests_per_sec: of all apps.
    """

    max_age_secs: float
    max_attempts: int
    max_deliveries: int
    max_bytes: int
    requests: int
    requests_per_app: int
    requests_per_sec: int

    @classmethod
    def of(cls, settings: Settings) -> WebhookLimits:
        return cls(
            settings.webhook_max_age_secs,
            settings.max_webhook_attempts,
            settings.max_webhook_deliveries_per_app,
            settings.max_webhook_bytes_per_app,
            settings.max_webhook_requests,
            settings.max_webhook_requests_per_app,
            settings.max_webhook_requests_per_sec,
        )


class RequestPace:
    """Spreads requests over the time, so that they leave the processor to the turns."""

    def __init__(self, per_second: int) -> None:
        self._interval = 1 / per_second
        self._next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        self._next = max(self._next, now - BURST * self._interval) + self._interval
        if self._next > now:
            await asyncio.sleep(self._next - now)


def retry_pause(attempts: int, retry_after: float | None) -> float:
    """Seconds until the next attempt, with a random part so that not all come at once.

    Args:
        attempts: the number of failed ones.
        retry_after: seconds that the receiver has asked for.
    """
    backoff = min(FIRST_RETRY_SECS * 2.0 ** min(attempts - 1, 20), MAX_RETRY_SECS)
    return max(backoff * _jitter.uniform(0.8, 1.0), min(retry_after or 0.0, MAX_RETRY_SECS))


def delivery_body(row: DeliveryRow, head: int | None) -> bytes:
    """The JSON of a delivery.

    Args:
        head: of the session's log now; None if the session is deleted.
    """
    newest = row.seq if head is None else head
    about = dumps({"session_id": row.session_id or None, "seq": row.seq, "head": newest})[:-1]
    data = b",".join(filter(None, (about, row.fields)))
    return b'{"type":%b,"timestamp":%b,"data":%b}}' % (
        dumps(row.event),
        dumps(utc_time(row.at)),
        data,
    )
