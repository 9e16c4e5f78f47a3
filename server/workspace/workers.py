"""The processes that take snapshots. Apps share them fairly, and a slow one is killed."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..agents.process.programs import Program, Programs
from ..codec import dumps, parse_message
from ..errors import Error, ErrorCode, internal, not_found, not_stored, payload_too_large
from ..limits import FairQueue, decrement
from ..tasks import Tasks, to_completion

logger = logging.getLogger(__name__)

PROGRAM = Path(__file__).parent / "snapshotter" / "snapshotter.py"
MAX_WORKERS = 3
MAX_WORKERS_PER_APP = 2
LONG_SECS = 120.0
"""Time for work that no prompt waits for, and for an undo."""
IDLE_SECS = 60.0
"""A worker without work ends after this time."""


class SnapshotError(Exception):
    """A snapshot could not be taken; the message is for the log."""


class Worker:
    """One process of the snapshotter."""

    def __init__(self, program: Program, writer: asyncio.StreamWriter) -> None:
        self._program = program
        self._writer = writer
        self._stderr = asyncio.create_task(self._log_stderr())
        self.timer: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, programs: Programs) -> Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                program = await programs.start(
                    [sys.executable, "-I", "-S", str(PROGRAM)],
                    environ={"PATH": os.defpath},
                    cwd=Path("/"),
                    stdin=theirs.fileno(),
                )
            _, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(program, writer)

    async def exchange(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Send a request and return its response.

        Raises:
            SnapshotError: the process has ended.
        """
        data = dumps(request)
        try:
            self._writer.write(len(data).to_bytes(4, "big") + data)
            await self._writer.drain()
            response, content = await self._read(), await self._read()
        except (OSError, asyncio.IncompleteReadError) as error:
            raise SnapshotError(f"the snapshotter has ended: {error}") from None
        message = parse_message(response)  # names that are not UTF-8 have unpaired surrogates
        if message is None:
            raise SnapshotError("the snapshotter sent no JSON object")
        return message, content

    async def _read(self) -> bytes:
        length = await self._program.stdout.readexactly(4)
        return await self._program.stdout.readexactly(int.from_bytes(length, "big"))

    async def close(self) -> None:
        """Kill the process, and git if it runs."""
        if self.timer is not None:
            self.timer.cancel()
        self._writer.close()
        await self._program.close()
        self._stderr.cancel()
        await asyncio.gather(self._stderr, return_exceptions=True)

    async def _log_stderr(self) -> None:
        while line := await self._program.stderr.readline():
            logger.error("snapshotter: %s", line.decode(errors="replace").rstrip())


class SnapshotWorkers:
    """Starts workers as they are needed, and gives each request one of them."""

    def __init__(self) -> None:
        self._programs = Programs({"PATH": os.defpath})
        self._queue: FairQueue[None] = FairQueue()
        self._running: Counter[str] = Counter()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._tasks = Tasks()
        self._is_stopped = False

    async def call(
        self, app_name: str, request: Mapping[str, Any], timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        """Carry out a request.

        Args:
            timeout: seconds, with the wait for a worker.

        Raises:
            Error: ``not_found``, ``not_supported``, ``payload_too_large`` or ``internal``.
            SnapshotError: it takes too long, or the process has ended.
        """
        try:
            async with asyncio.timeout(timeout) as limit:
                await self._acquire(app_name)
        except TimeoutError:
            raise SnapshotError("all snapshotters were busy for too long") from None
        try:
            left = (limit.when() or 0) - asyncio.get_running_loop().time()
            # To completion: a worker can be used again only after its response was read.
            response, data = await to_completion(self._exchange(request, max(left, 0.1)))
        finally:
            decrement(self._running, app_name)
            self._dispatch()
        if "error" in response:
            raise _error_of(response)
        return response, data

    async def stop(self) -> None:
        """End all workers."""
        self._is_stopped = True
        for worker in (*self._idle, *self._busy):
            await worker.close()
        await self._tasks.finish(1)
        await self._programs.stop()

    async def _exchange(
        self, request: Mapping[str, Any], timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        if self._is_stopped:
            raise SnapshotError("the server is stopping")
        worker = self._idle.pop() if self._idle else await Worker.start(self._programs)
        if worker.timer is not None:
            worker.timer.cancel()
        self._busy.add(worker)
        is_usable = False
        try:
            async with asyncio.timeout(timeout):
                result = await worker.exchange(request)
            is_usable = True
            return result
        except TimeoutError:
            raise SnapshotError("the snapshotter did not respond in time") from None
        finally:
            self._busy.discard(worker)
            if is_usable and not self._is_stopped:
                self._release(worker)
            else:
                await worker.close()

    def _release(self, worker: Worker) -> None:
        self._idle.append(worker)

        def end() -> None:
            if worker in self._idle:
                self._idle.remove(worker)
                self._tasks.spawn(worker.close(), "snapshotter-end")

        worker.timer = asyncio.get_running_loop().call_later(IDLE_SECS, end)

    async def _acquire(self, app_name: str) -> None:
        waiter = self._queue.add(app_name, None)
        self._dispatch()
        try:
            await waiter.future
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled():
                decrement(self._running, app_name)
            self._queue.remove(app_name, waiter)
            self._dispatch()
            raise

    def _dispatch(self) -> None:
        """Serve the apps in turn, those with the fewest workers first."""
        while self._running.total() < MAX_WORKERS:
            apps = self._queue.apps(lambda app_name: self._running[app_name])
            app_name = next((app for app in apps if self._running[app] < MAX_WORKERS_PER_APP), None)
            if app_name is None:
                return
            waiter = self._queue.of(app_name)[0]
            self._queue.serve(app_name, waiter)
            if not waiter.future.done():
                self._running[app_name] += 1
                waiter.future.set_result(None)


def _error_of(response: Mapping[str, Any]) -> Error:
    """Return the failure that a client gets for an error of the snapshotter."""
    match response["error"]:
        case "no_snapshot":
            return not_found("snapshot")
        case "no_folder":
            return not_found("folder")
        case "too_many_files":
            message = "the session's folder has too many files for snapshots"
            return Error(ErrorCode.NOT_SUPPORTED, message)
        case "too_large":
            return payload_too_large("the difference is too large: request a single file")
        case "bad_request" | "conflict" as code:
            return Error(code, response["detail"])
        case "disk_full":
            return not_stored()
    logger.error("a snapshot failed: %s", response.get("detail", response["error"]))
    return internal()
