"""Limits on what one client or app may use: rates, numbers, bytes and free disk space."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from .errors import Error, ErrorCode, not_stored

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
DISK_SECS = 1.0
"""The longest time for which a measurement of the free disk space is used."""


class TokenBucket:
    """A token bucket: a sustained rate plus a burst.

    Args:
        per_second: the rate at which spent tokens return.
        burst: the number of tokens in a full bucket.
    """

    __slots__ = ("_burst", "_per_second", "_tokens", "_updated_at")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._updated_at = time.monotonic()

    def try_acquire(self) -> bool:
        """Spend one token; False if there is none."""
        if not self.has_token():
            return False
        self._tokens -= 1
        return True

    def has_token(self) -> bool:
        """Whether there is a token to spend."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._updated_at) * self._per_second)
        self._updated_at = now
        return self._tokens >= 1

    def change(self, per_second: float, burst: float) -> None:
        """Change the rate and the burst. Spent tokens stay spent."""
        self._tokens = max(0.0, self._tokens + burst - self._burst)
        self._per_second, self._burst = per_second, burst

    def is_full(self) -> bool:
        """Whether all spent tokens have returned."""
        returned = (time.monotonic() - self._updated_at) * self._per_second
        return self._tokens + returned >= self._burst


class RefusalPace:
    """Delays the refusals of an address that causes many of them.

    Refusing takes about a millisecond of the event loop. A client that floods the server without a
    valid credential waits for each response, so a delay slows only the flood.

    Args:
        per_second: refusals of one address that are not delayed, after one second's worth at once.
    """

    MAX_DELAY_SECS = 0.5
    MAX_ADDRESSES = 4096

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._times: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """The number of addresses that are remembered."""
        return len(self._times)

    def delay(self, address: str) -> float:
        """Count a refusal, and return the seconds by which it is delayed."""
        now = time.monotonic()
        at = max(self._times.pop(address, 0), now - 1) + self._interval
        self._times[address] = min(at, now + self.MAX_DELAY_SECS)
        if len(self._times) > self.MAX_ADDRESSES:
            self._times.popitem(last=False)
        return max(0, self._times[address] - now)


def decrement(counts: Counter[str], key: str, count: int = 1) -> None:
    """Subtract from a key's count, and delete the key if its count is 0."""
    counts[key] -= count
    if not counts[key]:
        del counts[key]


class ByteQuota:
    """A limit on the bytes that each key holds at once, for example an app's waiting prompts.

    Args:
        each: bytes of one key.
        refusal: the message of the error above the limit.
    """

    def __init__(self, each: int, refusal: str) -> None:
        self._each = each
        self._refusal = refusal
        self._used: Counter[str] = Counter()

    def acquire(self, key: str, size: int) -> None:
        """Add *size* bytes to a key.

        Raises:
            Error: ``queue_full``; the key would exceed its limit.
        """
        if self._used[key] + size > self._each:
            raise Error(ErrorCode.QUEUE_FULL, self._refusal)
        self._used[key] += size

    def release(self, key: str, size: int) -> None:
        """Subtract *size* bytes from a key."""
        decrement(self._used, key, size)

    def used(self, key: str) -> int:
        """The bytes that a key holds."""
        return self._used[key]


class ConcurrencyLimit:
    """A limit on unauthenticated connections at once, in all and of each address.

    Args:
        total: the limit in all.
        each: the limit of one key.
    """

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self._each = each
        self._used: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._used.total()

    @contextlib.contextmanager
    def acquire(self, key: str) -> Iterator[None]:
        """Count one more of a key for the time of the block.

        Raises:
            Error: ``rate_limited``; a limit is reached.
        """
        if self._used.total() >= self.total or self._used[key] >= self._each:
            message = "too many unauthenticated connections"
            raise Error(ErrorCode.RATE_LIMITED, message, retry_after=5)
        self._used[key] += 1
        try:
            yield
        finally:
            decrement(self._used, key)


class Reservation(asyncio.Future[None]):
    """Bytes requested from a :class:`ByteBudget`; done once they are granted."""

    def __init__(self, key: str, size: int) -> None:
        super().__init__()
        self.key = key
        self.size = size


class ByteBudget:
    """A limit on bytes in use at once, in all and of each key. Requests above it wait.

    The keys are served in turn, and the requests of a key in order. A key at its own limit does not
    delay other keys.

    Args:
        total: bytes in all.
        each: bytes of one key. No request may exceed the smaller of the two.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._used_by: Counter[str] = Counter()
        self._used = 0
        self._waiting: dict[Reservation, None] = {}
        self._grants = itertools.count(1)
        self._last_grant: dict[str, int] = {}  # of the keys that wait

    @property
    def used(self) -> int:
        """The bytes in use."""
        return self._used

    def request(self, key: str, size: int) -> Reservation:
        """Request bytes. Once granted they are in use until :meth:`release`."""
        reservation = Reservation(key, size)
        self._waiting[reservation] = None
        self._grant()
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Return the bytes, or cancel the request if they are not granted yet."""
        if reservation in self._waiting:
            del self._waiting[reservation]
            reservation.cancel()
        else:
            self._used -= reservation.size
            decrement(self._used_by, reservation.key, reservation.size)
        self._grant()

    @contextlib.asynccontextmanager
    async def reserve(self, key: str, size: int, wait_secs: float) -> AsyncIterator[None]:
        """Use bytes for the time of the block.

        Args:
            wait_secs: the longest time to wait for them.

        Raises:
            Error: ``rate_limited``; they were not granted in time.
        """
        reservation = self.request(key, size)
        try:
            async with asyncio.timeout(wait_secs):
                await reservation
        except TimeoutError:
            self.release(reservation)
            message = "too many large requests at once"
            raise Error(ErrorCode.RATE_LIMITED, message, retry_after=5) from None
        except BaseException:
            self.release(reservation)
            raise
        try:
            yield
        finally:
            self.release(reservation)

    def _grant(self) -> None:
        """Grant waiting requests as far as the limits allow."""
        last = {waiting.key: self._last_grant.get(waiting.key, 0) for waiting in self._waiting}
        self._last_grant = last
        for reservation in sorted(self._waiting, key=lambda waiting: last.get(waiting.key, 0)):
            if self._used_by[reservation.key] + reservation.size > self._each:
                continue
            if self._used + reservation.size > self._total:
                return  # smaller requests must not overtake this one, or it could wait forever
            del self._waiting[reservation]
            self._used_by[reservation.key] += reservation.size
            self._used += reservation.size
            last[reservation.key] = next(self._grants)
            if not reservation.done():
                reservation.set_result(None)


class Waiter(Generic[Item]):
    """An item in a :class:`FairQueue`.

    Attributes:
        future: done once the item has been served.
    """

    __slots__ = ("future", "item")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class FairQueue(Generic[Item]):
    """A queue for each app, of which the apps are served in turn."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, list[Waiter[Item]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def apps(self, rank: Callable[[str], int] = lambda _: 0) -> list[str]:
        """The waiting apps, the lowest rank first; with equal ranks, the least recently served."""
        return sorted(self._queues, key=rank)

    def of(self, app_name: str) -> tuple[Waiter[Item], ...]:
        """The waiters of an app, in order."""
        return tuple(self._queues.get(app_name, ()))

    def add(self, app_name: str, item: Item) -> Waiter[Item]:
        """Append an item to an app's queue."""
        waiter = Waiter(item)
        self._queues.setdefault(app_name, []).append(waiter)
        return waiter

    def serve(self, app_name: str, waiter: Waiter[Item]) -> None:
        """Remove a waiter that is served now. Its app's next turn is after all other apps'."""
        self.remove(app_name, waiter)
        if app_name in self._queues:
            self._queues.move_to_end(app_name)

    def remove(self, app_name: str, waiter: Waiter[Item]) -> None:
        """Remove a waiter, if it is still in the queue."""
        queue = self._queues.get(app_name, [])
        if waiter in queue:
            queue.remove(waiter)
        if not queue:
            self._queues.pop(app_name, None)


class DiskReserve:
    """Free disk space that new work may not use, so that running work can finish.

    Args:
        folder: a folder on the disk.
        minimum: bytes that must be free; 0 disables the limit.

    Attributes:
        free_bytes: returns the number of free bytes.
        app_limit: returns the limit of an app that has its own, else None.
        check_app: checks that limit for an app that needs so many bytes.
        note_app: counts bytes that a client has written.
    """

    def __init__(self, folder: Path, minimum: int) -> None:
        self._minimum = minimum
        self._measured_at = -DISK_SECS
        self._is_low = False
        self.free_bytes: Callable[[], int] = lambda: _free_bytes(folder)
        self.app_limit: Callable[[str], int | None] = lambda app_name: None
        self.check_app: Callable[[str, int], Awaitable[None]]
        self.note_app: Callable[[str, int], None] = lambda app_name, size: None

    async def check(self, app_name: str | None = None, more: int = 0) -> None:
        """Refuse new work while less than the minimum is free, or while its app has no space.

        Args:
            more: the bytes that the app needs.

        Raises:
            Error: ``internal``, retryable, as with a full disk; or ``payload_too_large``.
        """
        if app_name is not None and self.app_limit(app_name) is not None:
            await self.check_app(app_name, more)
        if not self._minimum:
            return
        if time.monotonic() - self._measured_at >= DISK_SECS:
            await self.measure()
        if self._is_low:
            raise not_stored()

    async def measure(self) -> None:
        """Measure the free space. If that fails, the space is taken to be sufficient."""
        self._measured_at = time.monotonic()
        try:
            free = await asyncio.to_thread(self.free_bytes)
        except OSError as error:
            logger.error("the free space of the disk cannot be measured: %s", error.strerror)
            return
        was_low, self._is_low = self._is_low, free < self._minimum
        if self._is_low and not was_low:
            logger.error("only %d bytes are free on the disk; new work is refused", free)
        elif was_low and not self._is_low:
            logger.warning("the disk has enough free space again; new work is accepted")


def _free_bytes(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize
