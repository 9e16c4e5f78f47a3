"""The files of all sessions' folders. The work is done in threads of its own, shared fairly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

from ..config import Settings
from ..data_dir import DataDir
from ..errors import Error, not_stored, payload_too_large
from ..limits import DiskReserve
from ..tasks import Semaphores, to_completion
from .archive import ArchiveWalk
from .folders import WorkFolder, open_to_read, split_folder_path, split_path
from .listing import FolderListing, list_entries
from .writing import Condition, FileDraft

logger = logging.getLogger(__name__)

FileResult = TypeVar("FileResult")

THREADS = 4
CALLS_PER_APP = 2
"""Calls of one app in the threads at once, so that other apps always find a free one."""
READ_BYTES = 256 << 10


class WorkspaceFiles:
    """Lists, reads, writes and archives the files of sessions.

    Args:
        disk: the free space that written files must leave.
    """

    def __init__(self, settings: Settings, disk: DiskReserve) -> None:
        self._settings = settings
        self._data_dir = DataDir.of(settings)
        self._disk = disk
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="workspace")
        self._calls = Semaphores(CALLS_PER_APP)
        self._archives = Semaphores(CALLS_PER_APP)

    def stop(self) -> None:
        """End the threads once their calls have returned."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def list(self, app_name: str, cwd: str, path: str, depth: int) -> FolderListing:
        """List a folder; see :func:`list_entries`.

        Raises:
            Error: ``not_found``.
        """
        names = split_folder_path(path)
        limit = self._settings.max_listed_files
        return await self._call(app_name, list_entries, self._folder(cwd), names, depth, limit)

    async def open(self, app_name: str, cwd: str, path: str) -> BinaryIO:
        """Open a file for reading. The caller closes it.

        Raises:
            Error: ``not_found``.
        """
        # To completion: a file that is opened for a cancelled caller would stay open.
        return await to_completion(
            self._call(app_name, open_to_read, self._folder(cwd), split_path(path))
        )

    async def read(self, app_name: str, file: BinaryIO, size: int = READ_BYTES) -> bytes:
        """Read from a file that :meth:`open` returned."""
        return await self._call(app_name, file.read, size)

    async def write(
        self,
        app_name: str,
        cwd: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        may_write: Condition = lambda _: True,
        lock: contextlib.AbstractAsyncContextManager[Any] | None = None,
    ) -> os.stat_result:
        """Write a file, and create its folders.

        Args:
            may_write: the client's preconditions.
            lock: held while the file is put in its place.

        Returns:
            The status of the file.

        Raises:
            Error: ``bad_request``, ``conflict``, ``payload_too_large``, ``precondition_failed``,
                or ``internal`` if the disk is full.
        """
        limit = self._settings.max_file_bytes
        await self._disk.check(app_name)
        draft = await to_completion(self._call(app_name, FileDraft, self._folder(cwd), path))
        try:
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise payload_too_large(f"a file has at most {limit} bytes")
                await self._disk.check(app_name, size)
                await self._call(app_name, draft.write, chunk)
            async with lock or contextlib.nullcontext():
                status = await to_completion(self._call(app_name, draft.commit, may_write))
            self._disk.note_app(app_name, size)
            return status
        except OSError as error:
            raise _not_written(error) from None
        finally:
            await to_completion(self._call(app_name, draft.close))

    async def archive(self, app_name: str, cwd: str, path: str) -> AsyncIterator[bytes]:
        """Yield a zip of a folder. Nothing is yielded before its size has been checked.

        Raises:
            Error: ``not_found`` or ``payload_too_large``.
        """
        settings = self._settings
        limits = settings.max_archive_files, settings.max_archive_bytes
        walk = ArchiveWalk(self._folder(cwd), split_folder_path(path), *limits)
        async with self._archives.of(app_name):
            await self._call(app_name, walk.check_size)
            pieces = walk.pieces()
            try:
                while piece := await to_completion(self._call(app_name, next, pieces, b"")):
                    yield piece
            finally:
                await to_completion(self._call(app_name, pieces.close))

    def _folder(self, cwd: str) -> WorkFolder:
        return WorkFolder.of(cwd, self._data_dir)

    async def _call(
        self, app_name: str, function: Callable[..., FileResult], *arguments: Any
    ) -> FileResult:
        async with self._calls.of(app_name):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, function, *arguments)


def _not_written(error: OSError) -> Error:
    logger.error("a file in a session's folder cannot be written: %s", error.strerror)
    return not_stored()
