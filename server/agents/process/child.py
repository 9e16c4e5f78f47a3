"""Child processes that an earlier version of this server process has started."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Collection
from typing import Protocol

from . import supervise

logger = logging.getLogger(__name__)


class Child(Protocol):
    """A child process: one of asyncio, or an :class:`AdoptedChild`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def kill(self) -> None: ...

    async def wait(self) -> int: ...


class AdoptedChild:
    """A child process that was started before a reload, with the interface of asyncio's.

    Attributes:
        returncode: negative for a signal; None while it runs.

    Raises:
        OSError: this process has no such child.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def kill(self) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        try:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.returncode = 255  # as asyncio does
        self._ended.set()


def reap_others(known: Collection[int]) -> None:
    """Reap the children that the reload left to nobody, now or when they end.

    Args:
        known: the pids that another owner reaps.
    """
    for pid in supervise.children_of(os.getpid()):
        if pid not in known:
            with contextlib.suppress(OSError):
                AdoptedChild(pid)
