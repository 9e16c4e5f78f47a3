"""A run on its way: what was asked for, and its end in time."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .. import safe_files
from .answers import Answer, RunFailed

logger = logging.getLogger(__name__)

END_SECS = 5
"""For what was killed to be gone."""

Effort = Literal["low", "medium", "high", "xhigh", "max"]
SystemMode = Literal["replace", "append"]
RunEnd = Literal["timeout", "hang-up", "stop"]
"""Why a run is ended that has not ended by itself."""

ENDINGS: Mapping[RunEnd, tuple[str, str, str]] = {
    "timeout": ("agent_timeout", "the run took longer than it may", "timeout"),
    "hang-up": ("agent_failed", "the client hung up", "cancelled"),
    "stop": ("server_restarted", "the server is going away", "cancelled"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class RunRequest:
    """What an app asks for; ``files`` are paths that the agent is to read."""

    app_name: str
    prompt: str
    agent: str | None = None
    model: str | None = None
    system: str | None = None
    system_mode: SystemMode = "replace"
    effort: Effort | None = None
    files: Sequence[Path] = ()
    timeout_secs: float | None = None


class Run:
    """A run on its way.

    Attributes:
        timeout: seconds that it may take, once it has a place.
        outcome: the task; it gives the :class:`Answer` or raises an ``Error``.
        stopped: why it is to end, once somebody has said so.
    """

    def __init__(self, request: RunRequest, timeout: float) -> None:
        self.id = str(uuid.uuid4())
        self.request = request
        self.timeout = timeout
        self.outcome: asyncio.Task[Answer]
        self.stopped: asyncio.Future[RunEnd] = asyncio.get_running_loop().create_future()

    def stop(self, reason: RunEnd) -> None:
        """End it, or do nothing where it has ended."""
        if not self.stopped.done():
            self.stopped.set_result(reason)

    async def watch(
        self,
        work: asyncio.Task[Any],
        terminate: Callable[[], None],
        kill: Callable[[], Awaitable[None]],
        grace: float,
    ) -> RunEnd | None:
        """Wait until *work* is done, or see to it.

        Returns:
            Why it was ended, where it did not end by itself.
        """
        await asyncio.wait(
            {work, self.stopped}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if work.done():
            return None
        ending: RunEnd = self.stopped.result() if self.stopped.done() else "timeout"
        terminate()
        await asyncio.wait({work}, timeout=grace)
        if not work.done():
            await kill()
            await asyncio.wait({work}, timeout=END_SECS)
        return ending


def run_place(folder: Path) -> tuple[Path, str, str]:
    """A run's folder, by its names in the data folder."""
    return folder.parent.parent, folder.parent.name, folder.name


def leave_nothing(folder: Path) -> None:
    """Remove a run's folder."""
    try:
        safe_files.remove(*run_place(folder))
    except OSError as error:
        logger.error("a run's folder cannot be removed: %s", error)


def ended(ending: RunEnd, stderr: str = "") -> RunFailed:
    """The failure that a run is which was ended."""
    code, message, stop_reason = ENDINGS[ending]
    return RunFailed(code, message, stop_reason=stop_reason, stderr=stderr)
