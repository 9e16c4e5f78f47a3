"""Waiting with a deadline, and a clock that a test advances."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

TIMEOUT_SECS = 40.0
"""After this time a wait fails the test. It is far longer than any wait takes."""


class Clock:
    """Unix seconds that a test advances."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Deadline:
    """``async with Deadline(what):`` fails the test if the block takes too long."""

    def __init__(self, what: str, seconds: float = TIMEOUT_SECS) -> None:
        self._what = what
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise AssertionError(f"timed out waiting for {self._what}") from error


async def eventually(
    what: str,
    condition: Callable[[], Any],
    seconds: float = TIMEOUT_SECS,
    *,
    pause: float = 0.01,
) -> Any:
    """Poll *condition* (plain or async) until it is true. Returns its value.

    Args:
        pause: seconds between two polls; longer for a condition that costs other processes time.
    """
    async with Deadline(what, seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(pause)
