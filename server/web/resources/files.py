"""Uploads."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import AsyncIterator, Iterator

from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    hdrs,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError

from ...errors import bad_request, payload_too_large
from ...uploads.files import FileStore, Upload
from ...uploads.names import decode_filename, parse_content_disposition
from .. import bodies
from ..context import REQUEST_ID, app_of, services_of, waiting
from ..responses import json_reply

logger = logging.getLogger(__name__)

routes = web.RouteTableDef()

MAX_PARTS = 16
MAX_FIELD_BYTES = 64 << 10

# aiohttp reads the header, too, to look for a part that we do not take; our reading counts.
for _category in (BadContentDispositionHeader, BadContentDispositionParam):
    warnings.filterwarnings("ignore", category=_category)


@routes.post("/files")
async def upload(request: web.Request) -> web.Response:
    app_name = app_of(request)
    if not request.content_type.startswith("multipart/"):
        raise bad_request("an upload is multipart/form-data with a field named file")
    files = services_of(request).files
    ttl_secs = bodies.read_query(request, bodies.UploadQuery).ttl_secs
    saved: Upload | None = None
    try:
        async with waiting(request):
            await bodies.start_body(request)
            async for part in _parts(request):
                header = parse_content_disposition(part.headers.get(hdrs.CONTENT_DISPOSITION, ""))
                field = header.get("name")
                if field == "ttl_secs":
                    text = (await _field(request, part)).decode(errors="replace")
                    ttl_secs = bodies.read_texts({"ttl_secs": text}, bodies.UploadQuery).ttl_secs
                elif field != "file":
                    await _field(request, part)
                elif saved is not None:
                    raise bad_request("file: an upload is one file; send each in its own request")
                else:
                    name = decode_filename(header)
                    saved = await files.save(app_name, name, _chunks(request, part))
    except BaseException:
        await _discard(files, saved)
        raise
    if saved is None:
        raise bad_request("file: the field is missing")
    await files.register(saved, ttl_secs)
    reply = {"file_token": saved.token, "ttl_secs": ttl_secs, "size": saved.size}
    return json_reply({"ok": True, **reply})


async def _discard(files: FileStore, saved: Upload | None) -> None:
    if saved is not None:
        await files.discard(saved)


@contextlib.contextmanager
def _parsing(request: web.Request) -> Iterator[None]:
    """Refuse what aiohttp's parser refuses, for which it has no exception of its own.

    Nothing but the parser runs in this block: from our own code the same exceptions are defects.
    """
    try:
        yield
    except (ValueError, AssertionError, RuntimeError, HttpProcessingError) as error:
        about = {"request_id": request[REQUEST_ID]}
        logger.info("malformed multipart body: %s", type(error).__name__, extra=about)
        raise bad_request("the multipart body is malformed") from None


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    """The form's parts; their number is limited, and none may be packed."""
    with _parsing(request):
        reader = await request.multipart()
    for _ in range(MAX_PARTS + 1):
        async with bodies.patience(request):
            with _parsing(request):
                part = await reader.next()
        if part is None:
            return
        if not isinstance(part, BodyPartReader):
            raise bad_request("multipart: parts within parts are not understood")
        bodies.check_coding(part.headers)
        yield part
    raise bad_request(f"multipart: a form has at most {MAX_PARTS} parts")


async def _field(request: web.Request, part: BodyPartReader) -> bytes:
    """The value of a field that is no file."""
    value = b""
    while chunk := await _chunk(request, part, 1 << 13):
        value += chunk
        if len(value) > MAX_FIELD_BYTES:
            raise payload_too_large(f"a form's field has at most {MAX_FIELD_BYTES} bytes")
    return value


async def _chunk(request: web.Request, part: BodyPartReader, size: int) -> bytes:
    async with bodies.patience(request):
        with _parsing(request):
            return await part.read_chunk(size)


async def _chunks(request: web.Request, part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await _chunk(request, part, 1 << 18):
        yield chunk
