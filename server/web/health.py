"""Probes the programs on this machine in the background, so that health checks never wait."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Mapping

from ..storage.engine import SharedEngine
from ..storage.lease import LeaseState

logger = logging.getLogger(__name__)

PROBE_INTERVAL_SECS = 60.0
PROBE_TIMEOUT_SECS = 15.0


class HealthMonitor:
    """The results of the latest probe.

    Args:
        environ: the environment of the probed programs, which has only allowed variables.
        every: seconds between two probes.
        timeout: seconds that a program may take.

    Attributes:
        ready: whether requests are served; False while the server starts or drains.
        claude_version: the version of ``claude``; None if it is missing or reports no version.
        engine: the database that this node shares with others; None without a cluster.
        is_notified: returns whether the notifications of other nodes arrive.
        acpx_version: the version of acpx; None until the agent backend has started.
    """

    def __init__(
        self,
        claude_bin: str,
        *,
        environ: Mapping[str, str] = os.environ,
        every: float = PROBE_INTERVAL_SECS,
        timeout: float = PROBE_TIMEOUT_SECS,
    ) -> None:
        self._claude_bin = claude_bin
        self._environ = environ
        self._every = every
        self._timeout = timeout
        self.ready = False
        self.engine: SharedEngine | None = None
        self.is_notified: Callable[[], bool] = lambda: True
        self.claude_present = False
        self.claude_version: str | None = None
        self.acpx_version: str | None = None

    @property
    def is_in_cluster(self) -> bool:
        """Whether clients may use this node; always true without a cluster."""
        if self.engine is None:
            return True
        return self.engine.lease.state is LeaseState.HELD and self.is_notified()

    async def watch(self) -> None:
        """Probe again and again; runs forever."""
        while True:
            await self._probe()
            await asyncio.sleep(self._every)

    async def _probe(self) -> None:
        path = self._environ.get("PATH")
        program = await asyncio.to_thread(shutil.which, self._claude_bin, path=path)
        self.claude_present = program is not None
        self.claude_version = program and await _version_of(program, self._environ, self._timeout)


async def _version_of(program: str, environ: Mapping[str, str], timeout: float) -> str | None:
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(environ),
        )
    except OSError as error:
        logger.info("cannot start %s: %s", program, error)
        return None
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    except TimeoutError:
        logger.warning("%s did not report its version within %g s", program, timeout)
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    words = output.decode(errors="replace").split()
    return words[0] if process.returncode == 0 and words else None
