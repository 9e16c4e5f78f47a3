"""Uploads: files that an app's prompts can use."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import msgspec
from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    hdrs,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError

from ...errors import bad_request, payload_too_large
from ...uploads.files import TTL_RANGE, TTL_SECS, FileStore, Upload
from ...uploads.names import decode_filename, parse_content_disposition
from ..context import REQUEST_ID, app_name_of, context_of, waiting
from ..endpoint import Endpoint, Tag
from ..field_types import Count, doc
from ..request_body import check_coding, send_continue, stall_timeout
from ..request_values import from_texts

logger = logging.getLogger(__name__)

MAX_PARTS = 16
MAX_FIELD_BYTES = 64 << 10

# aiohttp reads this header as well, to look for parts of other kinds. Our parser decides.
for _category in (BadContentDispositionHeader, BadContentDispositionParam):
    warnings.filterwarnings("ignore", category=_category)

Ttl = Annotated[
    int,
    msgspec.Meta(ge=TTL_RANGE[0], le=TTL_RANGE[1], description="Seconds until it is deleted."),
]


class UploadForm(msgspec.Struct, frozen=True):
    """A file, in the parts of a form."""

    file: Annotated[str, msgspec.Meta(extra_json_schema={"format": "binary"})]
    ttl_secs: Ttl = TTL_SECS


class UploadQuery(msgspec.Struct, frozen=True):
    """The alternative to a part `ttl_secs`."""

    ttl_secs: Ttl = TTL_SECS


class UploadedFile(msgspec.Struct, kw_only=True):
    """An uploaded file."""

    file_token: Annotated[str, msgspec.Meta(pattern="^ff_")]
    ttl_secs: Annotated[int, doc("Seconds until it is deleted.")]
    size: Annotated[Count, doc("In bytes.")]


@Endpoint(
    "POST",
    "/files",
    tag=Tag.FILES,
    scope="prompt",
    summary="Upload a file",
    description="The token can be used in `files` of a prompt, only by this app.",
    waits=("body",),
    form=UploadForm,
    example={"ok": True, "file_token": "ff_…", "ttl_secs": 3600, "size": 1024},
    failures=("payload_too_large", "rate_limited"),
)
async def upload_file(request: web.Request, query: UploadQuery) -> UploadedFile:
    if not request.content_type.startswith("multipart/"):
        raise bad_request("an upload is multipart/form-data with a field named file")
    files = context_of(request).files
    ttl_secs = query.ttl_secs
    saved: Upload | None = None
    try:
        async with waiting(request):
            await send_continue(request)
            async for part in _parts(request):
                header = parse_content_disposition(part.headers.get(hdrs.CONTENT_DISPOSITION, ""))
                field = header.get("name")
                if field == "ttl_secs":
                    text = (await _read_field(request, part)).decode(errors="replace")
                    ttl_secs = from_texts({"ttl_secs": text}, UploadQuery).ttl_secs
                elif field != "file":
                    await _read_field(request, part)
                elif saved is not None:
                    raise bad_request("file: an upload is one file; send each in its own request")
                else:
                    name = decode_filename(header)
                    saved = await files.save(app_name_of(request), name, _chunks(request, part))
    except BaseException:
        await _discard(files, saved)
        raise
    if saved is None:
        raise bad_request("file: the field is missing")
    await files.register(saved, ttl_secs)
    return UploadedFile(file_token=saved.token, ttl_secs=ttl_secs, size=saved.size)


async def _discard(files: FileStore, saved: Upload | None) -> None:
    if saved is not None:
        await files.discard(saved)


@contextlib.contextmanager
def _parsing(request: web.Request) -> Iterator[None]:
    """Turn the exceptions of aiohttp's parser, which has no class of its own for them, into 400.

    Only the parser runs in this block: from our own code the same exceptions are defects.
    """
    try:
        yield
    except (ValueError, AssertionError, RuntimeError, HttpProcessingError) as error:
        extra = {"request_id": request[REQUEST_ID]}
        logger.info("malformed multipart body: %s", type(error).__name__, extra=extra)
        raise bad_request("the multipart body is malformed") from None


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    """Yield the parts of the form: a limited number, none of them compressed or nested."""
    with _parsing(request):
        reader = await request.multipart()
    for _ in range(MAX_PARTS + 1):
        async with stall_timeout(request):
            with _parsing(request):
                part = await reader.next()
        if part is None:
            return
        if not isinstance(part, BodyPartReader):
            raise bad_request("multipart: nested parts are not supported")
        check_coding(part.headers)
        yield part
    raise bad_request(f"multipart: a form has at most {MAX_PARTS} parts")


async def _read_field(request: web.Request, part: BodyPartReader) -> bytes:
    """Read the value of a part that is not a file."""
    value = b""
    while chunk := await _read_chunk(request, part, 1 << 13):
        value += chunk
        if len(value) > MAX_FIELD_BYTES:
            raise payload_too_large(f"a form's field has at most {MAX_FIELD_BYTES} bytes")
    return value


async def _read_chunk(request: web.Request, part: BodyPartReader, size: int) -> bytes:
    async with stall_timeout(request):
        with _parsing(request):
            return await part.read_chunk(size)


async def _chunks(request: web.Request, part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await _read_chunk(request, part, 1 << 18):
        yield chunk
