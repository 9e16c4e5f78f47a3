"""Uploads: files that an app hands over for a while, named by a token.

A file's name never becomes a path: on disk it is its token's hash, in a folder
that holds a file of a harmless version of the name the app gave, because agents
look at endings.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import safe_files
from ..errors import Error, bad_request, not_stored
from ..limits import DiskReserve, give_back
from ..sessions.event_log import DatabaseWriter
from ..storage import database as store
from ..storage.database import Database
from ..storage.schema import FileRow
from ..tasks import to_completion
from .names import harmless

logger = logging.getLogger(__name__)

PREFIX = "ff_"
TTL_SECS = 3600
TTL_RANGE = (60, 86400)
HEADER = "[Attached files]"


@dataclass(slots=True)
class Upload:
    """A file that has arrived; ``size`` is in bytes."""

    app_name: str
    token: str
    path: Path
    size: int


class FileStore:
    """The uploads of all apps.

    Args:
        max_bytes: of one file.
        max_bytes_per_app: of all the files that an app has here, those that still arrive included.
        max_count_per_app: how many these may be.
        disk: what must be free of it.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        writer: DatabaseWriter,
        *,
        max_bytes: int,
        max_bytes_per_app: int,
        max_count_per_app: int,
        disk: DiskReserve | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._store = database
        self._writer = writer
        self._max_bytes = max_bytes
        self._max_bytes_per_app = max_bytes_per_app
        self._max_count_per_app = max_count_per_app
        self._disk = disk
        self._clock = clock
        self._bytes_of: Counter[str] = Counter()
        self._count_of: Counter[str] = Counter()

    async def start(self) -> None:
        """Count what earlier servers kept, and delete what a killed one was still taking in."""
        kept = await self._store.all_files()
        for row in kept:
            self._bytes_of[row.app_name] += row.size
            self._count_of[row.app_name] += 1
        for name in await asyncio.to_thread(_names_in, self._folder):
            if name not in {row.hash.hex() for row in kept}:
                await self._remove(name)

    async def save(self, app_name: str, name: str, chunks: AsyncIterator[bytes]) -> Upload:
        """Write an upload to disk as it comes; it is nobody's until :meth:`keep`.

        Raises:
            Error: ``payload_too_large``, ``rate_limited`` where the app has as many files as it
                may, or ``internal`` where the disk takes nothing.
        """
        if self._disk is not None:
            await self._disk.check()
        if self._count_of[app_name] >= self._max_count_per_app:
            raise Error(
                "rate_limited",
                f"an app has at most {self._max_count_per_app} files: wait until some have expired",
            )
        token = PREFIX + secrets.token_urlsafe(32)
        path = self._path(_digest(token), harmless(name))
        upload = Upload(app_name, token, path, 0)
        self._count_of[app_name] += 1
        try:
            await asyncio.to_thread(safe_files.make_folder, *self._place(path.parent.name))
            await self._write(upload, chunks)
        except OSError as error:
            await self.discard(upload)
            logger.error("an upload cannot be stored: %s", error.strerror)
            raise not_stored() from None
        except BaseException:
            await self.discard(upload)
            raise
        return upload

    async def keep(self, upload: Upload, ttl_secs: int) -> None:
        """Let the upload's token be used, for *ttl_secs*.

        Raises:
            Error: ``internal``; it could not be stored, and is gone.
        """
        row = FileRow(
            _digest(upload.token),
            upload.app_name,
            str(upload.path),
            upload.size,
            self._clock() + ttl_secs,
        )
        try:
            await to_completion(self._writer.commit([store.insert_file(row)]))
        except BaseException:
            await self.discard(upload)
            raise

    async def discard(self, upload: Upload) -> None:
        """Delete an upload that is not kept."""
        self._give_back(upload.app_name, upload.size)
        await self._remove(upload.path.parent.name)

    async def _remove(self, name: str) -> None:
        try:
            await asyncio.to_thread(safe_files.remove, *self._place(name))
        except OSError as error:
            logger.error("an upload cannot be removed: %s", error)

    def _place(self, *names: str) -> tuple[Path, str, *tuple[str, ...]]:
        """Where an upload's folder and file are: in the data folder."""
        return self._folder.parent, self._folder.name, *names

    async def _write(self, upload: Upload, chunks: AsyncIterator[bytes]) -> None:
        place = self._place(upload.path.parent.name, upload.path.name)
        file = await asyncio.to_thread(safe_files.new_file, *place)
        try:
            async for chunk in chunks:
                if self._disk is not None:
                    await self._disk.check()
                self._count(upload, len(chunk))
                await asyncio.to_thread(file.write, chunk)
        finally:
            await asyncio.to_thread(file.close)

    def _count(self, upload: Upload, more: int) -> None:
        """Take *more* bytes of the app's allowance, before they are written."""
        if upload.size + more > self._max_bytes:
            raise Error("payload_too_large", f"a file has at most {self._max_bytes} bytes")
        if self._bytes_of[upload.app_name] + more > self._max_bytes_per_app:
            raise Error(
                "payload_too_large",
                f"an app's files have at most {self._max_bytes_per_app} bytes together:"
                " wait until some have expired",
            )
        upload.size += more
        self._bytes_of[upload.app_name] += more

    async def paths(self, app_name: str, tokens: Sequence[str]) -> list[Path]:
        """Where the app's files of these tokens lie.

        Raises:
            Error: ``bad_request`` for one that is unknown, expired or another app's.
        """
        rows = await self._store.files([_digest(token) for token in tokens])
        now = self._clock()
        good = [row for row in rows if row.app_name == app_name and row.expires_at > now]
        if len(good) != len(tokens):
            raise bad_request("files: one of the file tokens is unknown or has expired")
        return [self._path(row.hash, Path(row.path).name) for row in good]

    async def sweep(self) -> None:
        """Delete what has expired."""
        for row in await self._store.files_expired(self._clock()):
            await self._remove(row.hash.hex())
            await to_completion(self._writer.commit([store.delete_file(row.hash)]))
            self._give_back(row.app_name, row.size)

    def _path(self, digest: bytes, name: str) -> Path:
        """Where a file is; the data folder may have been elsewhere when it came."""
        return self._folder / digest.hex() / name

    def _give_back(self, app_name: str, size: int) -> None:
        give_back(self._bytes_of, app_name, size)
        give_back(self._count_of, app_name)


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def annotate(blocks: list[dict[str, object]], paths: Sequence[Path]) -> list[dict[str, object]]:
    """*blocks* with the paths listed in front of the prompt's text."""
    if not paths:
        return blocks
    head = "\n".join([HEADER, *map(str, paths)])
    for index, block in enumerate(blocks):
        if block.get("type") == "text":
            text = {**block, "text": f"{head}\n{block['text']}"}
            return [*blocks[:index], text, *blocks[index + 1 :]]
    return [{"type": "text", "text": head}, *blocks]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
