"""Bounds on what one client may ask: how often, and how much at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from .errors import Error, ErrorCode, not_stored

logger = logging.getLogger(__name__)

Holder = TypeVar("Holder")
DISK_SECS = 1.0
"""How old the last look at the disk may be."""


class TokenBucket:
    """So many a second, in bursts of at most so many (a token bucket).

    Args:
        per_second: how fast spent allowance comes back.
        burst: the most that can be spent at once.
    """

    __slots__ = ("_burst", "_left", "_per_second", "_then")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._then = time.monotonic()

    def allows(self) -> bool:
        """Spend one, if there is one left."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._then) * self._per_second)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def is_unspent(self) -> bool:
        """Whether all of the allowance has come back by now."""
        return self._left + (time.monotonic() - self._then) * self._per_second >= self._burst


def give_back(taken: Counter[str], key: str, count: int = 1) -> None:
    """Subtract from a key's count, and forget a key that has nothing any more."""
    taken[key] -= count
    if not taken[key]:
        del taken[key]


class ByteQuota:
    """So many bytes at once for each key: an app's prompts that wait.

    Args:
        each: bytes that a key may hold.
        refusal: the message for those who ask for more.
    """

    def __init__(self, each: int, refusal: str) -> None:
        self._each = each
        self._refusal = refusal
        self._taken: Counter[str] = Counter()

    def take(self, key: str, size: int) -> None:
        """Hold *size* bytes, until :meth:`give`.

        Raises:
            Error: ``queue_full``; the key would hold more than it may.
        """
        if self._taken[key] + size > self._each:
            raise Error(ErrorCode.QUEUE_FULL, self._refusal)
        self._taken[key] += size

    def give(self, key: str, size: int) -> None:
        give_back(self._taken, key, size)

    def held(self, key: str) -> int:
        return self._taken[key]


class ConcurrencyLimit:
    """So many at once, in all and for each key."""

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self._each = each
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many are taken."""
        return self._taken.total()

    @contextlib.contextmanager
    def take(self, key: str) -> Iterator[None]:
        """Hold a place for the time of the block.

        Raises:
            Error: ``rate_limited``; there is none left.
        """
        if self._taken.total() >= self.total or self._taken[key] >= self._each:
            raise Error(
                ErrorCode.RATE_LIMITED, "too many sockets wait for their auth", retry_after=5
            )
        self._taken[key] += 1
        try:
            yield
        finally:
            give_back(self._taken, key)


class Claim(asyncio.Future[None]):
    """Bytes that somebody wants of a :class:`ByteBudget`; done once they are theirs."""

    def __init__(self, key: str, size: int) -> None:
        super().__init__()
        self.key = key
        self.size = size


class ByteBudget:
    """So many bytes at once, in all and for each key; who finds none left waits for them.

    Waiting is in order, but nobody waits for the bytes of a key that has used up its own.

    Args:
        total: bytes in all.
        each: bytes of one key; nobody may ask for more than the smaller of the two.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._taken: Counter[str] = Counter()
        self._taken_in_all = 0
        self._waiting: dict[Claim, None] = {}

    @property
    def taken(self) -> int:
        """Bytes that are taken now."""
        return self._taken_in_all

    def claim(self, key: str, size: int) -> Claim:
        """Ask for *size* bytes, and hold them until :meth:`give_back`."""
        claim = Claim(key, size)
        self._waiting[claim] = None
        self._serve()
        return claim

    def give_back(self, claim: Claim) -> None:
        """Hold them no longer, or wait for them no longer."""
        if claim in self._waiting:
            del self._waiting[claim]
            claim.cancel()
        else:
            self._taken_in_all -= claim.size
            give_back(self._taken, claim.key, claim.size)
        self._serve()

    @contextlib.asynccontextmanager
    async def take(self, key: str, size: int, patience: float) -> AsyncIterator[None]:
        """Hold *size* bytes for the time of the block.

        Raises:
            Error: ``rate_limited``; there were none within *patience* seconds.
        """
        claim = self.claim(key, size)
        try:
            async with asyncio.timeout(patience):
                await claim
        except TimeoutError:
            self.give_back(claim)
            raise Error(
                ErrorCode.RATE_LIMITED, "too many large requests at once", retry_after=5
            ) from None
        except BaseException:
            self.give_back(claim)
            raise
        try:
            yield
        finally:
            self.give_back(claim)

    def _serve(self) -> None:
        """Give those who wait what there is."""
        for claim in tuple(self._waiting):
            if self._taken[claim.key] + claim.size > self._each:
                continue
            if self._taken_in_all + claim.size > self._total:
                return  # it is next: smaller ones behind it would keep it waiting for ever
            del self._waiting[claim]
            self._taken[claim.key] += claim.size
            self._taken_in_all += claim.size
            if not claim.done():
                claim.set_result(None)


class Entry(Generic[Holder]):
    """One who waits; *future* is done once it has what it waits for."""

    __slots__ = ("future", "holder")

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Waiting(Generic[Holder]):
    """A queue for each app; the apps have their turn one after the other."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, list[Entry[Holder]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def apps(self, rank: Callable[[str], int] = lambda _: 0) -> list[str]:
        """The apps that wait: the lowest by *rank* first; of equals, who was served longest ago."""
        return sorted(self._queues, key=rank)

    def of(self, app_name: str) -> tuple[Entry[Holder], ...]:
        """Those of an app, in their order."""
        return tuple(self._queues.get(app_name, ()))

    def add(self, app_name: str, holder: Holder) -> Entry[Holder]:
        entry = Entry(holder)
        self._queues.setdefault(app_name, []).append(entry)
        return entry

    def take(self, app_name: str, entry: Entry[Holder]) -> None:
        """It gets what it waits for; its app's next turn comes after those of all others."""
        self.remove(app_name, entry)
        if app_name in self._queues:
            self._queues.move_to_end(app_name)

    def remove(self, app_name: str, entry: Entry[Holder]) -> None:
        """It waits no more, if it still did."""
        queue = self._queues.get(app_name, [])
        if entry in queue:
            queue.remove(entry)
        if not queue:
            self._queues.pop(app_name, None)


class DiskReserve:
    """Space on the disk that nothing new may take: what runs already needs some to end in order.

    Args:
        folder: on the disk in question.
        minimum: bytes that must be free; 0 for none.

    Attributes:
        measure: tells how many bytes are free.
    """

    def __init__(self, folder: Path, minimum: int) -> None:
        self._minimum = minimum
        self._looked = -DISK_SECS
        self._is_low = False
        self.measure: Callable[[], int] = lambda: _free_bytes(folder)

    async def check(self) -> None:
        """Refuse something new while too little is free.

        Raises:
            Error: ``internal``, retryable, as with a disk that is full.
        """
        if not self._minimum:
            return
        if time.monotonic() - self._looked >= DISK_SECS:
            await self.look()
        if self._is_low:
            raise not_stored()

    async def look(self) -> None:
        """Measure now. What cannot be measured is taken to be enough."""
        self._looked = time.monotonic()
        try:
            free = await asyncio.to_thread(self.measure)
        except OSError as error:
            logger.error("the free space of the disk cannot be measured: %s", error.strerror)
            return
        was_low, self._is_low = self._is_low, free < self._minimum
        if self._is_low and not was_low:
            logger.error("only %d bytes are free on the disk; nothing new is accepted", free)
        elif was_low and not self._is_low:
            logger.warning("enough is free on the disk again; requests are accepted")


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
