"""Waiting with a deadline, and a clock that a test advances."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

PATIENCE = 20.0
"""Seconds after which a wait fails the test. Far more than any wait takes."""


class Clock:
    """Unix seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Deadline:
    """``async with Deadline(what):`` fails the test when the body takes too long."""

    def __init__(self, what: str, seconds: float = PATIENCE) -> None:
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
            raise AssertionError(f"waited too long for {self._what}") from error


async def eventually(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Poll *condition* (plain or async) until it is true, for what sends no signal."""
    async with Deadline(what, seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.01)
