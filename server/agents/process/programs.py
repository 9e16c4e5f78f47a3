"""Programs below supervisors of their own, through one warm ``spawn.py``.

For what is started by the server itself and must not outlive it, nor leave
anything behind: see ``spawn.py`` for how.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...codec import dumps, loads
from . import process_tree

SPAWN = Path(__file__).parent / "spawn.py"
START, KEEP, FINISH = b"+", b"k", b"."
PIPE_BYTES = 1 << 18
END_SECS = 5


class Program:
    """A program that was started.

    Attributes:
        stdout, stderr: what it writes; both must be read.
    """

    def __init__(
        self,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
        reports: asyncio.StreamReader,
        orders: asyncio.StreamWriter,
        closing: contextlib.AsyncExitStack,
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self._reports = reports
        self._orders = orders
        self._closing = closing

    def terminate(self) -> None:
        """SIGTERM, for the program alone: it ends what it has started."""
        self._order(b"T")

    def kill(self) -> None:
        """SIGKILL, and the same for all that it leaves."""
        self._order(b"K")

    async def wait(self) -> int | None:
        """Wait until it has ended, and all below it.

        Returns:
            Its exit status, negative for a signal; None where its supervisor was
            killed: then something of it may be left.
        """
        with contextlib.suppress(ConnectionError):
            while line := await self._reports.readline():
                if "status" in (report := loads(line)):
                    return int(report["status"])
        return None

    async def close(self) -> None:
        """Let go of it; if it has not ended, it is killed, with all below it."""
        await self._closing.aclose()

    def _order(self, order: bytes) -> None:
        if not self._orders.is_closing():
            self._orders.write(order)


class Programs:
    """Starts programs.

    Args:
        environ: of the starter itself.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None

    @property
    def running(self) -> bool:
        """There is a starter, and what is below it."""
        return self._process is not None and self._process.returncode is None

    async def start(
        self,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        cwd: Path,
        stdin: int,
        keep: bool = False,
    ) -> Program:
        """Start a program; close it when it is no longer needed.

        Args:
            argv: the first is the path of its file.
            stdin: a descriptor; it stays the caller's.
            keep: what the program leaves lives on, until :meth:`stop`.
        """
        async with contextlib.AsyncExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            with theirs, contextlib.ExitStack() as ends:
                stdout, stdout_end = await _pipe(stack, ends)
                stderr, stderr_end = await _pipe(stack, ends)
                order = KEEP if keep else START
                await self._pass(order, [theirs.fileno(), stdin, stdout_end, stderr_end])
            reports, orders = await asyncio.open_connection(sock=ours)
            stack.push_async_callback(_close, orders)
            request = {"argv": list(argv), "environ": dict(environ), "cwd": str(cwd)}
            orders.write(dumps({**request, "keep": keep}) + b"\n")
            return Program(stdout, stderr, reports, orders, stack.pop_all())
        raise AssertionError("not reached")

    async def stop(self, grace: float = 0) -> bool:
        """End the starter, and whatever it has started.

        Args:
            grace: seconds that what is left has to end by itself, after a SIGTERM.

        Returns:
            False if the starter was killed: then something may be left.
        """
        process, control = self._process, self._control
        self._process = self._control = None
        if control is not None:
            if grace and process is not None:
                with contextlib.suppress(OSError, TimeoutError):
                    control.send(FINISH)
                    async with asyncio.timeout(grace):
                        await process.wait()
            control.close()
        if process is None:
            return True
        try:
            async with asyncio.timeout(END_SECS):
                await process.wait()
        except TimeoutError:  # it was stopped, for one
            await asyncio.to_thread(process_tree.end_all_below, process.pid)
            process.kill()
            await process.wait()
        if process.returncode != 0:
            await asyncio.to_thread(process_tree.end_orphans)
        return process.returncode == 0

    async def _pass(self, order: bytes, descriptors: list[int]) -> None:
        for last_try in (False, True):
            control = await self._ready()
            try:
                socket.send_fds(control, [order], descriptors)
                return
            except ConnectionError:
                if last_try:
                    raise
                await self.stop()

    async def _ready(self) -> socket.socket:
        """The socket to the starter, which is started by the first that needs it."""
        async with self._starting:
            if self._process is not None and self._process.returncode is not None:
                await self.stop()
            if self._control is None:
                ours, theirs = socket.socketpair()
                with theirs:
                    try:
                        self._process = await asyncio.create_subprocess_exec(
                            sys.executable,
                            *("-I", "-S", str(SPAWN), str(theirs.fileno())),
                            stdin=asyncio.subprocess.DEVNULL,
                            stdout=asyncio.subprocess.DEVNULL,
                            env=dict(self._environ),
                            pass_fds=(theirs.fileno(),),
                            # A Ctrl-C at the terminal is the server's to handle.
                            start_new_session=True,
                        )
                    except BaseException:
                        ours.close()
                        raise
                ours.setblocking(False)
                self._control = ours
            return self._control


async def _pipe(
    stack: contextlib.AsyncExitStack, ends: contextlib.ExitStack
) -> tuple[asyncio.StreamReader, int]:
    """A pipe: what reads it, and the descriptor to write to, which *ends* closes."""
    read_end, write_end = os.pipe()
    ends.callback(os.close, write_end)
    reader = asyncio.StreamReader(limit=PIPE_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    stack.callback(transport.close)
    return reader, write_end


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
