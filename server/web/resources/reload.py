"""A reload of the server: its next version takes over, and no turn ends."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from ... import __version__
from ...errors import Error, ErrorCode
from ...reload.program import ReloadError
from ..context import context_of
from ..endpoint import Endpoint, Tag
from ..field_types import Count, doc

EXAMPLE = {"ok": True, "version": "0.3.0", "reloads": 0, "reloading": True}
EXAMPLE |= {"pause_ms": None, "failure": None}


class ReloadStatus(msgspec.Struct, kw_only=True):
    """The reloads of this server process."""

    version: str
    reloads: Annotated[Count, doc("One more once the next version answers.")]
    reloading: bool
    pause_ms: Annotated[
        Count | None, doc("The time for which nobody answered, in the last reload.")
    ]
    failure: Annotated[str | None, doc("Why the last reload was given up.")]


@Endpoint(
    "POST",
    "/admin/reload",
    tag=Tag.OPERATOR,
    auth="admin",
    summary="Reload the server",
    description="The version that is installed now is tried; if it cannot start, the answer is the"
    " reason and the server is unchanged. Otherwise it takes over within a second: `reloads` is"
    " one more then. No turn ends. Sockets get `bye` with code 1012.",
    example=EXAMPLE,
    failures=("conflict",),
)
async def reload_server(request: web.Request) -> ReloadStatus:
    reloader = context_of(request).reloader
    if reloader.is_busy:
        raise Error(ErrorCode.CONFLICT, "the server is being reloaded")
    try:
        await reloader.try_next()
    except ReloadError as error:
        raise Error(ErrorCode.CONFLICT, str(error)) from None
    reloader.start()
    return _reload_status(request)


@Endpoint(
    "GET",
    "/admin/reload",
    tag=Tag.OPERATOR,
    auth="admin",
    summary="Whether the server was reloaded",
    example={**EXAMPLE, "reloads": 1, "reloading": False, "pause_ms": 640},
)
async def get_reload(request: web.Request) -> ReloadStatus:
    return _reload_status(request)


def _reload_status(request: web.Request) -> ReloadStatus:
    reloader = context_of(request).reloader
    return ReloadStatus(
        version=__version__,
        reloads=reloader.reloads,
        reloading=reloader.is_busy,
        pause_ms=reloader.pause_ms,
        failure=reloader.failure,
    )
