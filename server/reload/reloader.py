"""Carries out a reload: tries the next version, stops all parts, packs them, and becomes it.

A failure before the exec leaves the server as it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from ..errors import Error
from ..tasks import Tasks
from .program import ReloadError, StartedProgram
from .state import Inherited, PassedDescriptors, write_state

logger = logging.getLogger(__name__)

GOOD_MOMENT_SECS = 10.0
"""The longest wait, while the server serves, until all carriers are settled."""
FREEZE_SECS = 5.0
"""The parts must stop within this time; otherwise the reload is given up."""


class Carrier(Protocol):
    """A part of the server that keeps its state during a reload.

    Attributes:
        name: the name of its part of the state.
    """

    name: str

    def is_settled(self) -> bool:
        """Whether no step is in progress that the next version would have to begin again."""

    async def freeze(self) -> None:
        """Stop: from now on nothing changes. Takes fractions of a second.

        Raises:
            ReloadError: it cannot stop now.
        """

    def thaw(self) -> None:
        """Continue after a reload that was given up."""

    def pack(self, passed: PassedDescriptors) -> msgspec.Struct | None:
        """Return the state for the next version. Changes nothing."""

    def children(self) -> Sequence[int]:
        """The pids of the child processes that the next version inherits."""


class Reloader:
    """Reloads the server.

    Args:
        program: what this process was started with; None if it cannot be started again.
        running: what the next version must agree with; see ``commands/reload.py``.
        reloads: the number of earlier reloads of this process.

    Attributes:
        carriers: in the order in which they are stopped.
        failure: why the last reload was given up.
        pause_ms: the pause of the last reload; None if there was none.
        is_stopping: returns whether the server has received SIGTERM or SIGINT.
        on_begin: called when a reload begins.
        on_given_up: called when a reload was given up, and the server continues as before.
    """

    def __init__(
        self, program: StartedProgram | None, running: Mapping[str, object], reloads: int
    ) -> None:
        self.carriers: list[Carrier] = []
        self.reloads = reloads
        self.failure: str | None = None
        self.pause_ms: int | None = None
        self.is_stopping: Callable[[], bool] = lambda: False
        self.on_begin: Callable[[], None] = lambda: None
        self.on_given_up: Callable[[], None] = lambda: None
        self._program = program
        self._running = running
        self._trial_result = b""
        self._lock = asyncio.Lock()
        self._tasks = Tasks()

    @property
    def is_busy(self) -> bool:
        return self._lock.locked() or not self._tasks.is_empty

    async def try_next(self) -> None:
        """Try the next version in a child process.

        Raises:
            ReloadError: it cannot start.
        """
        if self._program is None:
            raise ReloadError("this server cannot be reloaded: restart it")
        self._trial_result = await self._program.try_next(self._running)

    def note_ready(self, inherited: Inherited | None) -> None:
        """Note that the server answers, after a reload if it has *inherited* a state."""
        if inherited is not None:
            self.pause_ms = int((time.monotonic() - inherited.paused_at) * 1000)
            logger.info("reloaded; the pause was %d ms", self.pause_ms)

    def start(self) -> None:
        """Become the next version, which has been tried, in the background."""
        if not self.is_busy:
            self.failure = None
            self._tasks.spawn(self._reload(is_tried=True), "reload")

    def on_signal(self) -> None:
        """Try the next version and become it. The log has the reason if it cannot start."""
        if not self.is_busy:
            self.failure = None
            self._tasks.spawn(self._reload(is_tried=False), "reload")

    async def stop(self) -> None:
        await self._tasks.finish(0)

    async def _reload(self, *, is_tried: bool) -> None:
        self.on_begin()
        try:
            async with self._lock:
                if not is_tried:
                    await self.try_next()
                await self._settle()
                await self._become_next()
        except ReloadError as error:
            self.failure = str(error)
            self.on_given_up()
            logger.error("not reloaded: %s", error)
        except Exception as error:
            self.failure = f"an unexpected error: {error!r}"
            self.on_given_up()
            logger.exception("not reloaded, after an unexpected error")

    async def _settle(self) -> None:
        """Wait for a good moment. After :data:`GOOD_MOMENT_SECS` any moment is good enough."""
        deadline = time.monotonic() + GOOD_MOMENT_SECS
        while time.monotonic() < deadline:
            if all(carrier.is_settled() for carrier in self.carriers):
                return
            await asyncio.sleep(0.02)

    async def _become_next(self) -> None:
        """Stop all parts, pack them, and replace this process.

        Raises:
            ReloadError: a part cannot stop, or the next version cannot be executed.
        """
        assert self._program is not None
        began = time.monotonic()
        logger.info("reloading")
        frozen: list[Carrier] = []
        try:
            try:
                async with asyncio.timeout(FREEZE_SECS):
                    for carrier in self.carriers:
                        frozen.append(carrier)
                        await carrier.freeze()
            except TimeoutError:
                raise ReloadError("the server could not stop its parts in time") from None
            await asyncio.sleep(0)  # handle a signal that has just arrived
            if self.is_stopping():
                raise ReloadError("the server is stopping")
            # No await from here to the exec: what was packed must not change.
            passed = PassedDescriptors()
            parts = {
                carrier.name: part
                for carrier in frozen
                if (part := carrier.pack(passed)) is not None
            }
            children = [pid for carrier in frozen for pid in carrier.children()]
            state = write_state(
                parts,
                passed,
                reloads=self.reloads + 1,
                paused_at=began,
                children=children,
                trial_result=self._trial_result,
            )
            try:
                self._program.become_next(state, passed)
            finally:
                os.close(state)  # it could not be executed
        except BaseException as error:
            for carrier in reversed(frozen):
                carrier.thaw()
            if isinstance(error, (OSError, Error)):
                raise ReloadError(f"the new version cannot be executed: {error}") from None
            raise
