"""What is present on this machine, probed in the background so that asking is never slow."""

from __future__ import annotations

import asyncio
import logging
import shutil

logger = logging.getLogger(__name__)

PROBE_SECS = 60
PROBE_TIMEOUT_SECS = 15


class Health:
    """The last findings.

    Attributes:
        ready: whether requests are served; False while starting and draining.
        claude_version: of the ``claude`` program, or None where it is not present.
        acpx_version: of acpx, or None while there is no host.
    """

    def __init__(self, claude_bin: str) -> None:
        self._claude_bin = claude_bin
        self.ready = False
        self.claude_present = False
        self.claude_version: str | None = None
        self.acpx_version: str | None = None

    async def watch(self) -> None:
        """Probe for ever."""
        while True:
            await self._probe()
            await asyncio.sleep(PROBE_SECS)

    async def _probe(self) -> None:
        program = await asyncio.to_thread(shutil.which, self._claude_bin)
        self.claude_present = program is not None
        self.claude_version = None if program is None else await _version_of(program)


async def _version_of(program: str) -> str | None:
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        logger.info("%s cannot be started: %s", program, error)
        return None
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PROBE_TIMEOUT_SECS)
    except (TimeoutError, asyncio.CancelledError):
        process.kill()
        await process.wait()
        raise
    words = output.decode(errors="replace").split()
    return words[0] if process.returncode == 0 and words else None
