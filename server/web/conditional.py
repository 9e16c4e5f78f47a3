"""Responses with an ETag, compressed if the client accepts that."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from .context import stream_json
from .negotiation import accepts_coding

MAX_TAGGED_BYTES = 4 << 20
"""A longer response is sent while it is being made, without an ETag."""


async def conditional_json(
    request: web.Request, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Send JSON, or 304 if the client has the same JSON by the ETag of an earlier response.

    Raises:
        Error: the errors of *pieces* before anything is sent.
    """
    gathered: list[bytes] = []
    size = 0
    async for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size > MAX_TAGGED_BYTES:
            break
    headers = {"Vary": "Accept-Encoding"}
    if size <= MAX_TAGGED_BYTES:
        digest = hashlib.blake2b(digest_size=16)
        for piece in gathered:
            digest.update(piece)
        # Weak: the compressed form has the same tag.
        headers["ETag"] = f'W/"{digest.hexdigest()}"'
        if _is_known(request.headers.getall(hdrs.IF_NONE_MATCH, []), digest.hexdigest()):
            return web.Response(status=304, headers=headers)
    compress = accepts_coding(request.headers.getall(hdrs.ACCEPT_ENCODING, []), "gzip")
    return await stream_json(
        request, _chain_pieces(gathered, pieces), headers=headers, compress=compress
    )


def _is_known(lines: list[str], digest: str) -> bool:
    """Whether ``If-None-Match`` names a tag, in its weak or strong form."""
    tags = {tag.strip().removeprefix("W/") for line in lines for tag in line.split(",")}
    return "*" in tags or f'"{digest}"' in tags


async def _chain_pieces(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while first:
        yield first.pop(0)
    async for piece in rest:
        yield piece
