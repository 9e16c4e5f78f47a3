"""Notices the end of an agent's process: acpx reports it only during a prompt."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from ...tasks import Tasks


class ProcessWatch:
    """Watches the process of an agent, one at a time.

    Args:
        open_process: returns a descriptor of the process; None if it has ended.
        ended: called when the process has ended, also if that was before the watch began.
    """

    def __init__(
        self,
        tasks: Tasks,
        open_process: Callable[[], Awaitable[int | None]],
        ended: Callable[[], None],
    ) -> None:
        self._tasks = tasks
        self._open = open_process
        self._ended = ended
        self._pidfd: int | None = None

    def begin(self) -> None:
        """Watch the process, unless one that runs is watched."""
        if self._pidfd is None:
            self._tasks.spawn(self._begin(), "watch-agent")

    async def _begin(self) -> None:
        pidfd = await self._open()
        self.close()
        if pidfd is None:
            self._ended()
            return
        self._pidfd = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._note_end)

    def close(self) -> None:
        """Stop watching."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _note_end(self) -> None:
        self.close()
        self._ended()
