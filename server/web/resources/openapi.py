"""``GET /openapi.json``: the OpenAPI document of the REST interface."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...codec import dumps
from ..endpoint import Endpoint, Tag
from ..openapi import document
from ..responses import raw_json_response
from . import ENDPOINTS

DOCUMENT = web.AppKey("openapi-document", bytes)


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
    return raw_json_response(request.app[DOCUMENT])


def prepare_app(app: web.Application) -> None:
    app[DOCUMENT] = dumps(document(app[ENDPOINTS]))
