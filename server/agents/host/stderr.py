"""Stores the end of the agents' stderr for the operator, in one file for each session.

The reason why an agent does not work (no login, no network) is often written only there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

import msgspec

from ... import safe_files
from ...reload.state import Inherited, PassedDescriptors
from ...tasks import Supervisor, Tasks
from ..pipes import as_file
from ..program_output import KEPT_BYTES, last_output

logger = logging.getLogger(__name__)

FILE_BYTES = 256 << 10
"""The limit of a file; a larger one is cut to its newer half."""
STDERR_END_SECS = 1.0
STDERR_POLL_SECS = 0.005


class StderrState(msgspec.Struct, kw_only=True):
    """The stderr of one agent, for the next version of the server.

    Attributes:
        newest: the last bytes that the agent has written.
    """

    key: str
    pid: int
    descriptor: int
    newest: bytes


class _StderrPipe(asyncio.StreamReaderProtocol):
    """The stderr of one agent.

    Attributes:
        unstored: the number of bytes that were read and are not stored yet.
    """

    def __init__(self, key: str, pid: int, descriptor: int, newest: bytes = b"") -> None:
        self.key, self.pid, self.descriptor = key, pid, descriptor
        self.reader = asyncio.StreamReader()
        self.newest = bytearray(newest)
        self.unstored = 0
        self.transport: asyncio.ReadTransport
        super().__init__(self.reader)

    def data_received(self, data: bytes) -> None:
        self.unstored += len(data)
        super().data_received(data)


class StderrFiles:
    """The files, and a task for each running agent that writes its file.

    Args:
        folder: the folder of the files, ``<session's key>.log``. They may contain prompts.
        secrets: strings that clients must not see.
    """

    def __init__(
        self,
        folder: Path,
        supervisor: Supervisor | None = None,
        secrets: Collection[str] = (),
    ) -> None:
        self._folder = folder
        self._secrets = secrets
        self._supervisor = supervisor or Supervisor()
        self._tasks = Tasks()
        self._running: dict[str, tuple[asyncio.Task[None], _StderrPipe]] = {}

    async def stop(self) -> None:
        await self._tasks.finish(STDERR_END_SECS)

    async def open(self, key: str, pid: int) -> int:
        """Return a descriptor for the stderr of an agent, whose output is stored.

        The caller passes the descriptor on and closes it.
        """
        read_end, write_end = os.pipe()
        await self._read(_StderrPipe(key, pid, read_end), is_new=True)
        return write_end

    async def _read(self, pipe: _StderrPipe, *, is_new: bool) -> None:
        loop, file = asyncio.get_running_loop(), as_file(pipe.descriptor, "rb")
        pipe.transport, _ = await loop.connect_read_pipe(lambda: pipe, file)
        task = self._supervisor.spawn(
            self._tasks, "agent-stderr", partial(self._copy_to_file, pipe, is_new=is_new)
        )
        task.add_done_callback(lambda _: pipe.transport.close())
        self._running[pipe.key] = task, pipe
        task.add_done_callback(lambda task: self._ended(pipe.key, task))

    # A reload of the server.

    @property
    def _open(self) -> list[_StderrPipe]:
        return [pipe for task, pipe in self._running.values() if not task.done()]

    async def pause(self) -> None:
        """Leave further output in the pipes, and store what was read."""
        for pipe in self._open:
            pipe.transport.pause_reading()
        while any(pipe.unstored for pipe in self._open):  # noqa: ASYNC110 - for milliseconds
            await asyncio.sleep(STDERR_POLL_SECS)

    def resume(self) -> None:
        for pipe in self._open:
            if not pipe.transport.is_closing():
                pipe.transport.resume_reading()

    def pack(self, passed: PassedDescriptors) -> list[StderrState]:
        return [
            StderrState(
                key=pipe.key,
                pid=pipe.pid,
                descriptor=passed.add(pipe.descriptor),
                newest=bytes(pipe.newest),
            )
            for pipe in self._open
        ]

    async def restore(self, states: Iterable[StderrState], inherited: Inherited) -> None:
        """Read the stderr of agents that an earlier version of the server has started."""
        for state in states:
            descriptor = inherited.claim(state.descriptor)
            pipe = _StderrPipe(state.key, state.pid, descriptor, state.newest)
            await self._read(pipe, is_new=False)

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        if key in self._running and self._running[key][0] is task:
            # A caller may still need the last output, until the next agent writes some.
            asyncio.get_running_loop().call_later(STDERR_END_SECS, self._drop_finished, key, task)

    def _drop_finished(self, key: str, task: asyncio.Task[None]) -> None:
        if key in self._running and self._running[key][0] is task:
            del self._running[key]

    async def last_output(
        self,
        key: str,
        stdout: bytes = b"",
        timeout: float = STDERR_END_SECS,
        secrets: Collection[str] = (),
    ) -> str:
        """Return the end of the output of the session's agent, which has ended, on one line.

        Args:
            stdout: the end of its stdout, without messages.
            timeout: seconds for the rest of its stderr to arrive. A descendant may hold the pipe
                open.
            secrets: more strings that clients must not see.
        """
        hidden = {*self._secrets, *secrets}
        if key not in self._running:
            return last_output([stdout], hidden)
        task, pipe = self._running[key]
        await asyncio.wait([task], timeout=timeout)
        return last_output([stdout, bytes(pipe.newest)], hidden)

    async def forget(self, key: str) -> None:
        """Delete the file of a session whose agent has ended."""
        try:
            path = self._folder.parent, self._folder.name, self._path(key).name
            await asyncio.to_thread(safe_files.remove, *path)
        except OSError as error:
            logger.warning("stderr was not deleted: %s", error, extra={"session": key})

    def _path(self, key: str) -> Path:
        return stderr_path(self._folder, key)

    async def _copy_to_file(self, pipe: _StderrPipe, *, is_new: bool) -> None:
        key, head = pipe.key, b""
        if is_new:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            head = f"-- {now} process {pipe.pid}\n".encode()
        while data := await pipe.reader.read(1 << 16):
            pipe.newest += data
            del pipe.newest[:-KEPT_BYTES]
            logger.debug("stderr: %s", data[:1000].decode(errors="replace"), extra={"session": key})
            try:
                await asyncio.to_thread(_append, self._path(key), head + data)
            except OSError as error:  # for example, the disk is full; the agent runs on
                logger.warning("stderr was not stored: %s", error, extra={"session": key})
            head = b""
            pipe.unstored -= len(data)


def stderr_path(folder: Path, key: str) -> Path:
    """The path of the file of a session."""
    return folder / f"{key}.log"


def read(folder: Path, key: str) -> bytes:
    """Return the stored stderr of a session's agents.

    Raises:
        OSError: the file does not exist, or is not a regular file of the server.
    """
    with (
        safe_files.folder(folder.parent, folder.name) as directory,
        safe_files.open_file(f"{key}.log", directory) as file,
    ):
        return file.read()


def _append(path: Path, data: bytes) -> None:
    with safe_files.folder(path.parent.parent, path.parent.name, make=True) as directory:
        with safe_files.open_file(
            path.name, directory, os.O_RDWR | os.O_CREAT | os.O_APPEND
        ) as file:
            file.seek(0, os.SEEK_END)
            file.write(data)
            if file.tell() <= FILE_BYTES:
                return
            file.seek(-FILE_BYTES // 2, os.SEEK_END)
            kept = file.read()
        part = f"{path.stem}.part"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=directory)
        with safe_files.open_file(part, directory, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            file.write(kept.partition(b"\n")[2] or kept)
        os.replace(part, path.name, src_dir_fd=directory, dst_dir_fd=directory)
