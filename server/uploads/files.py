"""The store of uploads: files of an app, each with a token and a limited lifetime.

An upload is stored as ``uploads/<hash of its token>/<safe name>``. The client's file name is never
used as a path. Its safe version is kept, because agents use the suffix.
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
from ..data_dir import DataDir
from ..errors import Error, ErrorCode, bad_request, not_stored
from ..limits import DiskReserve, decrement
from ..sandbox.sandbox import Sandbox
from ..storage import statements
from ..storage.queries import Queries
from ..storage.schema import FileRow
from ..storage.shared_limits import SharedLimits, free_upload
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion
from .names import safe_name

logger = logging.getLogger(__name__)

FILE_TOKEN_PREFIX = "ff_"  # noqa: S105
TTL_SECS = 3600
"""The default lifetime of an upload."""
TTL_RANGE = (60, 86400)
"""The shortest and the longest lifetime that a client may choose, in seconds."""
HEADER = "[Attached files]"


ADVANCE_BYTES = 1 << 20
"""Bytes that an upload reserves in advance in the limits of a cluster."""


@dataclass(slots=True)
class Upload:
    """A received file.

    Attributes:
        size: bytes that were received.
        reserved: bytes that are reserved for it in the limits of a cluster.
    """

    app_name: str
    token: str
    path: Path
    size: int
    reserved: int = 0


class FileStore:
    """The uploads of all apps.

    Args:
        max_bytes: the largest size of a file.
        max_bytes_per_app: the largest total size of an app's files, unfinished ones included.
        max_count_per_app: the largest number of an app's files, unfinished ones included.
        own_limit: returns *max_bytes_per_app* for an app that has a limit of its own, or None.
        disk: the free space that uploads must leave.
        sandbox: contains the agents, which get copies of the files.

    Attributes:
        shared: counts the uploads of all nodes; None without a cluster.
    """

    def __init__(
        self,
        data_dir: DataDir,
        queries: Queries,
        writer: DatabaseWriter,
        *,
        max_bytes: int,
        max_bytes_per_app: int,
        max_count_per_app: int,
        own_limit: Callable[[str], int | None] = lambda _: None,
        disk: DiskReserve | None = None,
        sandbox: Sandbox | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.shared: SharedLimits | None = None
        self._data_dir = data_dir
        self._queries = queries
        self._writer = writer
        self._max_bytes = max_bytes
        self._max_bytes_per_app = max_bytes_per_app
        self._max_count_per_app = max_count_per_app
        self._own_limit = own_limit
        self._disk = disk
        self._sandbox = sandbox
        self._clock = clock
        self._bytes_of: Counter[str] = Counter()
        self._count_of: Counter[str] = Counter()

    async def start(self) -> None:
        """Count the stored files, and delete unfinished uploads of a server that was killed."""
        # Before the rows: another node may store one in between.
        abandoned = await asyncio.to_thread(_abandoned_in, self._data_dir)
        rows = await self._queries.all_files()
        for row in rows:
            self._bytes_of[row.app_name] += row.size
            self._count_of[row.app_name] += 1
        known = {row.hash.hex() for row in rows}
        for name in abandoned:
            if name not in known:
                await self._remove(self._data_dir.uploads / name)

    def bytes_of(self, app_name: str) -> int:
        """The total size of an app's files."""
        return max(0, self._bytes_of[app_name])

    async def recount(self, app_name: str) -> None:
        """Count the app's files of all nodes of a cluster.

        Raises:
            Error: ``internal``; the database is out of reach.
        """
        if self.shared is not None:
            size, count = await self.shared.uploads_of(app_name)
            self._bytes_of[app_name], self._count_of[app_name] = size, count

    async def save(self, app_name: str, name: str, chunks: AsyncIterator[bytes]) -> Upload:
        """Write an upload to disk. Its token is not valid until :meth:`register`.

        Args:
            name: the client's name of the file.

        Raises:
            Error: ``payload_too_large``, ``rate_limited`` if the app has too many files, or
                ``internal`` if the file cannot be written.
        """
        if self._disk is not None:
            await self._disk.check(app_name)
        if self.shared is None and self._count_of[app_name] >= self._max_count_per_app:
            raise self._too_many()
        token = FILE_TOKEN_PREFIX + secrets.token_urlsafe(32)
        path = self._path(_token_hash(token), safe_name(name))
        upload = Upload(app_name, token, path, 0)
        self._count_of[app_name] += 1
        try:
            if self.shared is not None:
                await self._reserve_in_cluster(upload, 0)
            await asyncio.to_thread(safe_files.make_folder, *self._data_dir.split(path.parent))
            await self._write(upload, chunks)
        except OSError as error:
            await self.discard(upload)
            logger.error("cannot store an upload: %s", error.strerror)
            raise not_stored() from None
        except BaseException:
            await self.discard(upload)
            raise
        return upload

    async def register(self, upload: Upload, ttl_secs: int) -> None:
        """Make the upload's token valid for *ttl_secs*.

        Raises:
            Error: ``internal``; the database could not store it, and the file was deleted.
        """
        row = FileRow(
            _token_hash(upload.token),
            upload.app_name,
            str(upload.path),
            upload.size,
            self._clock() + ttl_secs,
        )
        try:
            await to_completion(self._writer.commit([statements.insert_file(row)]))
            await self._free_reservation(upload)
        except BaseException:
            await self.discard(upload)
            raise

    async def discard(self, upload: Upload) -> None:
        """Delete an upload that was not registered."""
        self._release(upload.app_name, upload.size)
        await self._free_reservation(upload)
        await self._remove(upload.path.parent)

    async def _remove(self, path: Path) -> None:
        try:
            await asyncio.to_thread(safe_files.remove, *self._data_dir.split(path))
        except OSError as error:
            logger.error("cannot remove an upload: %s", error)

    async def _write(self, upload: Upload, chunks: AsyncIterator[bytes]) -> None:
        file = await asyncio.to_thread(safe_files.new_file, *self._data_dir.split(upload.path))
        try:
            async for chunk in chunks:
                if self._disk is not None:
                    await self._disk.check()
                if upload.size + len(chunk) > self._max_bytes:
                    message = f"a file has at most {self._max_bytes} bytes"
                    raise Error(ErrorCode.PAYLOAD_TOO_LARGE, message)
                if self.shared is not None and upload.size + len(chunk) > upload.reserved:
                    await self._reserve_in_cluster(upload, len(chunk))
                self._reserve(upload, len(chunk))
                await asyncio.to_thread(file.write, chunk)
        finally:
            await asyncio.to_thread(file.close)

    def _reserve(self, upload: Upload, more: int) -> None:
        """Add *more* bytes to the upload and to the app's total, before they are written."""
        limit = self._limit_of(upload.app_name)
        if self.shared is None and self._bytes_of[upload.app_name] + more > limit:
            raise _too_large(limit)
        upload.size += more
        self._bytes_of[upload.app_name] += more

    async def _reserve_in_cluster(self, upload: Upload, more: int) -> None:
        """Reserve *more* bytes in the limits of the cluster, and some in advance if there are."""
        assert self.shared is not None
        limit = self._limit_of(upload.app_name)
        for advance in (ADVANCE_BYTES, 0) if more else (0,):
            size = upload.size + more + advance
            refused = await to_completion(
                self.shared.reserve_upload(
                    _token_hash(upload.token),
                    upload.app_name,
                    size,
                    max_bytes=limit,
                    max_count=self._max_count_per_app,
                )
            )
            if refused is None:
                upload.reserved = size
                return
            if refused == "count":
                raise self._too_many()
        raise _too_large(limit)

    async def _free_reservation(self, upload: Upload) -> None:
        if self.shared is not None:
            await to_completion(self.shared.free(free_upload(_token_hash(upload.token))))

    def _limit_of(self, app_name: str) -> int:
        own = self._own_limit(app_name)
        return self._max_bytes_per_app if own is None else own

    def _too_many(self) -> Error:
        return Error(
            ErrorCode.RATE_LIMITED,
            f"an app has at most {self._max_count_per_app} files: wait until some have expired",
        )

    async def paths(self, app_name: str, tokens: Sequence[str]) -> list[Path]:
        """The paths of the app's files with these tokens, in the same order.

        Raises:
            Error: ``bad_request``; a token is unknown, expired or of another app.
        """
        rows = await self._queries.files([_token_hash(token) for token in tokens])
        now = self._clock()
        valid = [row for row in rows if row.app_name == app_name and row.expires_at > now]
        if len(valid) != len(tokens):
            raise bad_request("files: one of the file tokens is unknown or has expired")
        return [self._path(row.hash, Path(row.path).name) for row in valid]

    def note_use(self, session: int, tokens: Sequence[str]) -> None:
        """Store that a prompt of the session uses these files, with the next commit."""
        self._writer.add(
            [statements.insert_upload_use(session, _token_hash(token)) for token in tokens]
        )

    async def delete_own(self, session: int) -> None:
        """Delete the files that only the prompts of this session have used."""
        for row in await self._queries.own_uploads(session):
            await self._delete(row)

    async def attach(self, app_name: str, key: str, paths: Sequence[Path]) -> list[Path]:
        """Make files readable for the agent of a session.

        Args:
            app_name: the session's app.
            key: the session's id.

        Returns:
            The paths under which the agent finds them.

        Raises:
            Error: ``internal``; a file cannot be copied.
        """
        if not paths or self._sandbox is None or not self._sandbox.of(app_name).is_on:
            return list(paths)
        try:
            return await asyncio.to_thread(self._sandbox.folders.add_files, key, paths)
        except OSError as error:
            logger.error("a file cannot be copied: %s", error, extra={"session": key})
            raise not_stored() from None

    async def sweep(self) -> None:
        """Delete expired files."""
        for row in await self._queries.expired_files(self._clock()):
            await self._delete(row)

    async def _delete(self, row: FileRow) -> None:
        await self._remove(self._folder(row.hash))
        await to_completion(self._writer.commit(statements.delete_file(row.hash)))
        self._release(row.app_name, row.size)

    def _path(self, digest: bytes, name: str) -> Path:
        """The path of a file. The stored path is not used: the data folder may have been moved."""
        return self._folder(digest) / name

    def _folder(self, digest: bytes) -> Path:
        return self._data_dir.uploads / digest.hex()

    def _release(self, app_name: str, size: int) -> None:
        decrement(self._bytes_of, app_name, size)
        decrement(self._count_of, app_name)


def _too_large(limit: int) -> Error:
    message = f"an app's files have at most {limit} bytes together: wait until some have expired"
    return Error(ErrorCode.PAYLOAD_TOO_LARGE, message)


def _abandoned_in(data_dir: DataDir) -> list[str]:
    """The names of the uploads that are not being written."""
    folder = data_dir.uploads
    entries = folder.iterdir() if folder.is_dir() else ()
    return [entry.name for entry in entries if data_dir.is_abandoned(entry)]


def prepend_file_paths(
    blocks: list[dict[str, object]], paths: Sequence[Path]
) -> list[dict[str, object]]:
    """The content blocks of a prompt, with a list of file paths before the first text."""
    if not paths:
        return blocks
    head = "\n".join([HEADER, *map(str, paths)])
    for index, block in enumerate(blocks):
        if block.get("type") == "text":
            text = {**block, "text": f"{head}\n{block['text']}"}
            return [*blocks[:index], text, *blocks[index + 1 :]]
    return [{"type": "text", "text": head}, *blocks]


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
