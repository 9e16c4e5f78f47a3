"""Starts programs through one warm ``spawn.py``, each under a supervisor of its own.

Used for programs that must not outlive the server and must leave no processes behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...codec import dumps, loads
from . import process_tree

SPAWN = Path(__file__).parent / "spawn.py"
START, KEEP, FINISH = b"+", b"k", b"."
PIPE_BYTES = 1 << 18
SPAWNER_EXIT_SECS = 5


class Program:
    """A running program.

    Attributes:
        stdout, stderr: the program's output. The caller must read both.
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
        """Send SIGTERM to the program alone, which is to end its own children."""
        self._send_order(b"T")

    def kill(self) -> None:
        """Send SIGKILL to the program. Its supervisor then kills all its descendants."""
        self._send_order(b"K")

    async def wait(self) -> int | None:
        """Wait until the program and all its descendants have ended.

        Returns:
            The exit status, negative for a signal. None if the supervisor was killed; descendants
            may be left then.
        """
        with contextlib.suppress(ConnectionError):
            while line := await self._reports.readline():
                if "status" in (report := loads(line)):
                    return int(report["status"])
        return None

    async def close(self) -> None:
        """Release the program. If it still runs, it is killed with all its descendants."""
        await self._closing.aclose()

    def _send_order(self, order: bytes) -> None:
        if not self._orders.is_closing():
            self._orders.write(order)


class Programs:
    """Starts programs through a process of ``spawn.py``, the spawner.

    Args:
        environ: the environment of the spawner itself.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None

    @property
    def running(self) -> bool:
        """Whether the spawner runs. Programs that were started with ``keep`` may run, too."""
        return self._process is not None and self._process.returncode is None

    async def start(
        self,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        cwd: Path,
        stdin: int,
        keep: bool = False,
        sandbox: Mapping[str, Any] | None = None,
    ) -> Program:
        """Start a program. The caller must close it.

        Args:
            argv: the arguments; the first is the path of the executable.
            stdin: a descriptor, which the caller closes.
            keep: let the program's descendants outlive it, until :meth:`stop`.
            sandbox: the plan by which the program is restricted; it includes *cwd*. See
                :mod:`server.sandbox.restrict`.
        """
        async with contextlib.AsyncExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            with theirs, contextlib.ExitStack() as ends:
                stdout, stdout_end = await _pipe(stack, ends)
                stderr, stderr_end = await _pipe(stack, ends)
                order = KEEP if keep else START
                await self._request(order, [theirs.fileno(), stdin, stdout_end, stderr_end])
            reports, orders = await asyncio.open_connection(sock=ours)
            stack.push_async_callback(_close_writer, orders)
            request = {"argv": list(argv), "environ": dict(environ), "cwd": str(cwd)}
            orders.write(dumps({**request, "keep": keep, "sandbox": sandbox}) + b"\n")
            return Program(stdout, stderr, reports, orders, stack.pop_all())
        raise AssertionError("not reached")

    async def stop(self, grace: float = 0) -> bool:
        """End the spawner and all its descendants.

        Args:
            grace: seconds between a SIGTERM to the remaining processes and their SIGKILL.

        Returns:
            False if the spawner was killed; descendants may be left then.
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
            async with asyncio.timeout(SPAWNER_EXIT_SECS):
                await process.wait()
        except TimeoutError:  # the spawner may have been stopped by a signal
            await asyncio.to_thread(process_tree.end_all_below, process.pid)
            process.kill()
            await process.wait()
        if process.returncode != 0:
            await asyncio.to_thread(process_tree.end_orphans)
        return process.returncode == 0

    async def _request(self, order: bytes, descriptors: list[int]) -> None:
        for last_try in (False, True):
            control = await self._connected()
            try:
                socket.send_fds(control, [order], descriptors)
                return
            except ConnectionError:
                if last_try:
                    raise
                await self.stop()

    async def _connected(self) -> socket.socket:
        """Return the socket of the spawner, which is started on first use."""
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
                            # Only the server handles a Ctrl-C at the terminal.
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
    """Make a pipe. Return its reader, and its write descriptor, which *ends* closes."""
    read_end, write_end = os.pipe()
    ends.callback(os.close, write_end)
    reader = asyncio.StreamReader(limit=PIPE_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    stack.callback(transport.close)
    return reader, write_end


async def _close_writer(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
