"""``GET /openapi.json``: the OpenAPI document of the REST interface."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...codec import dumps
from ..endpoint import Endpoint, Tag
from ..openapi import document
from ..responses import raw_json_response
from . import ENDPOINTS


class StoredDocument:
    """The document of the endpoints. It is made once, when it is asked for: that takes 0.1 s."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._lock = asyncio.Lock()
        self._made = b""

    async def get(self) -> bytes:
        async with self._lock:
            if not self._made:
                self._made = await asyncio.to_thread(lambda: dumps(document(self._endpoints)))
        return self._made


DOCUMENT = web.AppKey("openapi-document", StoredDocument)


class OpenApiDocument(msgspec.Struct, kw_only=True):
    """OpenAPI 3.1."""

    openapi: Annotated[str, msgspec.Meta(pattern=r"^3\.1\.")]
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


@Endpoint(
    "GET",
    "/openapi.json",
    tag=Tag.MONITORING,
    summary="This document",
    auth=None,
    example={"openapi": "3.1.1", "info": {}, "paths": {}, "components": {}},
    has_ok=False,
)
async def get_document(request: web.Request) -> Annotated[web.Response, OpenApiDocument]:
    return raw_json_response(await request.app[DOCUMENT].get())


def prepare_app(app: web.Application) -> None:
    app[DOCUMENT] = StoredDocument(app[ENDPOINTS])
