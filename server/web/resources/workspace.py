"""The files in a session's folder: list, read, write, archive."""

from __future__ import annotations

import asyncio
import codecs
import dataclasses
import mimetypes
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Literal

import msgspec
from aiohttp import hdrs, web

from ...codec import dumps
from ...errors import session_closed
from ...sessions.session import Session
from ...workspace.files import READ_BYTES
from ...workspace.folders import MAX_LEVELS, entity_tag
from ...workspace.listing import FolderListing
from ..context import app_name_of, context_of, stream_json, waiting
from ..downloads import (
    INLINE_POLICY,
    Download,
    attachment,
    check_conditions,
    part_of,
    raw_path_of,
    raw_query_value,
    send_pieces,
)
from ..endpoint import Endpoint, Tag
from ..field_types import Count, UnixSeconds, doc
from ..request_body import send_continue, stall_timeout
from ..responses import json_response

OCTETS = "application/octet-stream"
ZIP = "application/zip"
FILE_PATH = "/sessions/{session_id}/files/{path}"
FILE_ROUTE = r"/sessions/{session_id}/files/{path:(?s:.+)}"
FILE_PREFIX_PARTS = 3
"""The parts of a file's URL before its path."""
IMAGE_TYPES = {
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
TEXT = "text/plain; charset=utf-8"
TEXT_SAMPLE_BYTES = 8 << 10
ENCODED_AT_ONCE = 500
"""Entries of a listing that are encoded before other requests proceed."""

FolderPath = Annotated[str, doc("A folder, relative to the session's; by default that folder.")]


class FileQuery(msgspec.Struct, frozen=True):
    """The folder to list."""

    path: FolderPath = ""
    depth: Annotated[
        int, msgspec.Meta(ge=1, le=MAX_LEVELS, description="Levels of folders to list.")
    ] = 1


class DownloadQuery(msgspec.Struct, frozen=True):
    """The way in which a file is sent."""

    inline: Annotated[bool, doc("For display instead of download: images and plain text.")] = False


class ArchiveQuery(msgspec.Struct, frozen=True):
    """The folder to archive."""

    path: FolderPath = ""


class FileInfo(msgspec.Struct, kw_only=True):
    """A file, folder or link in a session's folder."""

    path: Annotated[str, doc("Relative to the session's folder.")]
    type: Literal["file", "directory", "link"]
    size: Annotated[Count, doc("In bytes; 0 for a directory.")]
    modified_at: UnixSeconds


class FileList(msgspec.Struct, kw_only=True):
    """The content of a folder."""

    entries: list[FileInfo]
    truncated: Annotated[bool, doc("Whether the folder has more entries than the limit.")]


class WrittenFile(msgspec.Struct, kw_only=True):
    """A file that was written."""

    path: str
    size: Count
    modified_at: UnixSeconds


@Endpoint(
    "GET",
    "/sessions/{session_id}/files",
    tag=Tag.FILES,
    scope="read",
    summary="List a session's folder",
    waits=("response",),
    description="Links are listed and never followed. Special files are left out.",
    example={
        "ok": True,
        "entries": [{"path": "a.txt", "type": "file", "size": 5, "modified_at": 1795479707}],
        "truncated": False,
    },
)
async def list_files(
    request: web.Request, session: Session, query: FileQuery
) -> Annotated[web.StreamResponse, FileList]:
    path = raw_query_value(request, "path") or ""
    files = context_of(request).workspace
    listing = await files.list(app_name_of(request), session.row.cwd, path, query.depth)
    return await stream_json(request, _encoded_listing(listing))


async def _encoded_listing(listing: FolderListing) -> AsyncIterator[bytes]:
    yield b'{"ok":true,"entries":['
    for start in range(0, len(listing.entries), ENCODED_AT_ONCE):
        part = listing.entries[start : start + ENCODED_AT_ONCE]
        yield (b"," if start else b"") + dumps([dataclasses.asdict(entry) for entry in part])[1:-1]
        await asyncio.sleep(0)
    yield b'],"truncated":%b}' % (b"true" if listing.is_truncated else b"false")


@Endpoint(
    "GET",
    FILE_PATH,
    route=FILE_ROUTE,
    tag=Tag.FILES,
    scope="read",
    summary="Read a file of a session",
    description="An attachment, with `ETag`, `Range` and `If-None-Match`. Links and special files"
    " are not found.",
    waits=("response",),
    media={OCTETS: "…"},
    failures=("precondition_failed", "range_not_satisfiable"),
    statuses={206: "A part of the file.", 304: "The client has this version."},
)
async def read_file(
    request: web.Request, session: Session, query: DownloadQuery
) -> web.StreamResponse:
    app_name, files = app_name_of(request), context_of(request).workspace
    path = raw_path_of(request, FILE_PREFIX_PARTS)
    name = path.rpartition("/")[2]
    file = await files.open(app_name, session.row.cwd, path)
    try:
        status = os.fstat(file.fileno())
        sample = b""
        if query.inline:
            sample = await files.read(app_name, file, TEXT_SAMPLE_BYTES)
        headers = _file_headers(name, sample, inline=query.inline)
        download = Download(request, status.st_size, entity_tag(status), headers)
        if download.refusal is not None:
            return download.refusal
        file.seek(download.start)
        read = partial(files.read, app_name)
        size = download.size if download.has_body else 0
        return await send_pieces(
            request,
            download.response,
            part_of(read, file, size, READ_BYTES),
            context_of(request).settings.stall_timeout_secs,
            waiting(request),
        )
    finally:
        file.close()


@Endpoint(
    "PUT",
    FILE_PATH,
    route=FILE_ROUTE,
    tag=Tag.FILES,
    scope="prompt",
    summary="Write a file of a session",
    description="The body is the file. Missing folders are created. A reader sees the old content"
    " or the new content. `If-Match` and `If-None-Match: *` are conditions.",
    waits=("body",),
    upload=OCTETS,
    example={"ok": True, "path": "a.txt", "size": 5, "modified_at": 1795479707},
    failures=("conflict", "precondition_failed", "session_closed"),
)
async def write_file(request: web.Request, session: Session) -> WrittenFile | web.Response:
    if session.is_closed:
        raise session_closed()
    path = raw_path_of(request, FILE_PREFIX_PARTS)
    files = context_of(request).workspace

    def may_write(old: os.stat_result | None) -> bool:
        return not check_conditions(request, None if old is None else entity_tag(old))

    async with waiting(request):
        status = await files.write(
            app_name_of(request),
            session.row.cwd,
            path,
            _body(request),
            may_write=may_write,
            lock=session.snapshots.lock,
        )
    written = WrittenFile(path=path, size=status.st_size, modified_at=int(status.st_mtime))
    response = json_response(written)
    response.headers[hdrs.ETAG] = f'"{entity_tag(status)}"'
    return response


@Endpoint(
    "GET",
    "/sessions/{session_id}/archive",
    tag=Tag.FILES,
    scope="read",
    summary="Archive a session's folder",
    description="A zip, which is made while it is sent. Links and special files are left out.",
    waits=("response",),
    media={ZIP: "…"},
    failures=("payload_too_large",),
)
async def archive_folder(
    request: web.Request, session: Session, query: ArchiveQuery
) -> web.StreamResponse:
    path = raw_query_value(request, "path") or ""
    name = path.strip("/").rpartition("/")[2] or f"session-{session.id[:8]}"
    headers = {
        hdrs.CONTENT_TYPE: ZIP,
        hdrs.CONTENT_DISPOSITION: attachment(f"{name}.zip"),
    }
    pieces = context_of(request).workspace.archive(app_name_of(request), session.row.cwd, path)
    if request.method == hdrs.METH_HEAD:
        pieces = _without_body(pieces)
    return await send_pieces(
        request,
        web.StreamResponse(headers=headers),
        pieces,
        context_of(request).settings.stall_timeout_secs,
        waiting(request),
    )


async def _without_body(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Produce the first piece, which checks the request, but yield no data."""
    async for _ in pieces:
        yield b""
        return


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    await send_continue(request)
    while True:
        async with stall_timeout(request):
            chunk = await request.content.readany()
        if not chunk:
            return
        yield chunk


def _file_headers(name: str, sample: bytes, *, inline: bool) -> dict[str, str]:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a client's name, not a path of ours
    kind = IMAGE_TYPES.get(suffix) or (TEXT if _is_text(sample) else None) if inline else None
    if kind is None:
        guessed = mimetypes.guess_type(name)[0] or OCTETS
        return {hdrs.CONTENT_TYPE: guessed, hdrs.CONTENT_DISPOSITION: attachment(name)}
    return {
        hdrs.CONTENT_TYPE: kind,
        hdrs.CONTENT_DISPOSITION: attachment(name, inline=True),
        "Content-Security-Policy": INLINE_POLICY,
    }


def _is_text(sample: bytes) -> bool:
    is_cut = len(sample) == TEXT_SAMPLE_BYTES  # perhaps within a character
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample, final=not is_cut)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample
