"""Uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from .. import bodies
from ..errors import bad_request
from ..files import Files, Upload
from ..replies import json_reply
from ..services import app_of, services_of

routes = web.RouteTableDef()


@routes.post("/files")
async def upload(request: web.Request) -> web.Response:
    app_name = app_of(request)
    if not request.content_type.startswith("multipart/"):
        raise bad_request("an upload is multipart/form-data with a field named file")
    files = services_of(request).files
    ttl_secs = bodies.read_query(request, bodies.UploadQuery).ttl_secs
    saved: Upload | None = None
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise bad_request("multipart: parts within parts are not understood")
            if part.name == "ttl_secs":
                text = (await part.read_chunk(64)).decode(errors="replace")
                ttl_secs = bodies.read_texts({"ttl_secs": text}, bodies.UploadQuery).ttl_secs
            elif part.name == "file" and saved is None:
                saved = await files.save(app_name, part.filename or "file", _chunks(part))
    except (ValueError, AssertionError, RuntimeError, HttpProcessingError):
        await _discard(files, saved)
        raise bad_request("the multipart body is malformed") from None
    except BaseException:
        await _discard(files, saved)
        raise
    if saved is None:
        raise bad_request("file: the field is missing")
    await files.keep(saved, ttl_secs)
    reply = {"file_token": saved.token, "ttl_secs": ttl_secs, "size": saved.size}
    return json_reply({"ok": True, **reply})


async def _discard(files: Files, saved: Upload | None) -> None:
    if saved is not None:
        await files.discard(saved)


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(1 << 18):
        yield chunk
