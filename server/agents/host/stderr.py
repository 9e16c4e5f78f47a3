"""Stores the end of the agents' stderr for the operator, in one file for each session.

The reason why an agent does not work (no login, no network) is often written only there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from ... import safe_files
from ...tasks import Supervisor, Tasks
from ..program_output import KEPT_BYTES, last_output

logger = logging.getLogger(__name__)

FILE_BYTES = 256 << 10
"""The limit of a file; a larger one is cut to its newer half."""
STDERR_END_SECS = 1.0


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
        self._running: dict[str, tuple[asyncio.Task[None], bytearray]] = {}

    async def stop(self) -> None:
        await self._tasks.finish(STDERR_END_SECS)

    async def open(self, key: str, pid: int) -> int:
        """Return a descriptor for the stderr of an agent, whose output is stored.

        The caller passes the descriptor on and closes it.
        """
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        pipe = cast(BinaryIO, os.fdopen(read_end, "rb", buffering=0))
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        newest = bytearray()
        task = self._supervisor.spawn(
            self._tasks, "agent-stderr", partial(self._keep, key, pid, reader, newest)
        )
        task.add_done_callback(lambda _: transport.close())
        self._running[key] = task, newest
        task.add_done_callback(lambda task: self._ended(key, task))
        return write_end

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        if key in self._running and self._running[key][0] is task:
            # A caller may still need the last output, until the next agent writes some.
            asyncio.get_running_loop().call_later(STDERR_END_SECS, self._drop, key, task)

    def _drop(self, key: str, task: asyncio.Task[None]) -> None:
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
        task, newest = self._running[key]
        await asyncio.wait([task], timeout=timeout)
        return last_output([stdout, bytes(newest)], hidden)

    async def forget(self, key: str) -> None:
        """Delete the file of a session whose agent has ended."""
        try:
            path = self._folder.parent, self._folder.name, self._path(key).name
            await asyncio.to_thread(safe_files.remove, *path)
        except OSError as error:
            logger.warning("stderr was not deleted: %s", error, extra={"session": key})

    def _path(self, key: str) -> Path:
        return stderr_path(self._folder, key)

    async def _keep(
        self,
        key: str,
        pid: int,
        reader: asyncio.StreamReader,
        newest: bytearray,
    ) -> None:
        head = f"-- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} process {pid}\n".encode()
        while data := await reader.read(1 << 16):
            newest += data
            del newest[:-KEPT_BYTES]
            logger.debug("stderr: %s", data[:1000].decode(errors="replace"), extra={"session": key})
            try:
                await asyncio.to_thread(_append, self._path(key), head + data)
            except OSError as error:  # for example, the disk is full; the agent runs on
                logger.warning("stderr was not stored: %s", error, extra={"session": key})
            head = b""


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
