"""Responses that send files and archives: conditions, ranges, names, and slow clients."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from aiohttp import hdrs, web

from ..errors import Error, ErrorCode
from ..ws import tcp
from .context import REQUEST_ID
from .responses import error_response

logger = logging.getLogger(__name__)

INLINE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
"""The policy of an inline file: its scripts do not run, and it loads nothing."""
_PAST_END = 1 << 62
AsyncReader = Callable[[BinaryIO, int], Awaitable[bytes]]


def raw_path_of(request: web.Request, prefix_parts: int) -> str:
    """Return the path after *prefix_parts* parts of the URL, as a name of the file system.

    Names that are not UTF-8 are decoded as :func:`os.fsdecode` does.
    """
    raw = request.rel_url.raw_path.split("/", prefix_parts + 1)[-1]
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def raw_query_value(request: web.Request, name: str) -> str | None:
    """Return a query parameter that is a path, None without one. See :func:`raw_path_of`."""
    pairs = parse_qsl(
        request.rel_url.raw_query_string, keep_blank_values=True, errors="surrogateescape"
    )
    return next((value for key, value in pairs if key == name), None)


def attachment(name: str, *, inline: bool = False) -> str:
    """Return a ``Content-Disposition`` header with a file's name."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    encoded = quote(name.encode("utf-8", "surrogateescape"), safe="")
    kind = "inline" if inline else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def check_conditions(request: web.Request, tag: str | None) -> bool:
    """Check ``If-Match`` and ``If-None-Match`` against a file's tag, None for a missing file.

    Returns:
        Whether the client has this version, by ``If-None-Match``.

    Raises:
        Error: ``precondition_failed``.
    """
    if (wanted := request.if_match) is not None and not any(
        tag is not None and (etag.value in (tag, "*") and not etag.is_weak) for etag in wanted
    ):
        raise Error(ErrorCode.PRECONDITION_FAILED, "the file has changed")
    known = request.if_none_match
    return known is not None and any(tag is not None and etag.value in (tag, "*") for etag in known)


class Download:
    """A file's response.

    Attributes:
        start, size: the part that is sent, in bytes.
        has_body: whether any of it is sent.
        refusal: the response for a range that the file does not have, or None.
        response: the response, with all headers.
    """

    def __init__(
        self, request: web.Request, size: int, tag: str, headers: Mapping[str, str]
    ) -> None:
        """Decide which bytes are sent.

        Raises:
            Error: ``precondition_failed``.
        """
        has_version = check_conditions(request, tag)
        self.start, self.size = 0, size
        status = 304 if has_version else 200
        self.refusal: web.Response | None = None
        headers = {
            **headers,
            hdrs.ETAG: f'"{tag}"',
            hdrs.ACCEPT_RANGES: "bytes",
            hdrs.CACHE_CONTROL: "private, no-cache",
        }
        if status == 200 and (part := _range_of(request, size, tag)) is not None:
            self.start, end = part
            if self.start >= size:
                error = Error(ErrorCode.RANGE_NOT_SATISFIABLE, f"the file has {size} bytes")
                self.refusal = error_response(error, request[REQUEST_ID])
                self.refusal.headers[hdrs.CONTENT_RANGE] = f"bytes */{size}"
            self.size = end - self.start
            status = 206
            headers[hdrs.CONTENT_RANGE] = f"bytes {self.start}-{end - 1}/{size}"
        self.has_body = status != 304 and request.method != hdrs.METH_HEAD
        self.response = web.StreamResponse(status=status, headers=headers)
        if status != 304:
            self.response.content_length = self.size


def _range_of(request: web.Request, size: int, tag: str) -> tuple[int, int] | None:
    """Return the start and the end of the requested part, None for the whole file."""
    condition = request.headers.get(hdrs.IF_RANGE)
    if condition is not None and condition.strip() != f'"{tag}"':
        return None
    lines = request.headers.getall(hdrs.RANGE, [])
    if len(lines) != 1 or "," in lines[0]:
        return None  # several parts: the whole file is allowed as well
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", lines[0])
    if match is None or not (match[1] or match[2]):
        return None  # another unit, or malformed: RFC 9110 says to ignore it
    if not match[1]:
        length = int(match[2])
        return (max(0, size - length), size) if length else (_PAST_END, size)
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if match[2] and int(match[2]) < start:
        return None
    return start, end


async def send_pieces(
    request: web.Request,
    response: web.StreamResponse,
    pieces: AsyncIterator[bytes],
    stall_timeout: float,
    wait: AbstractAsyncContextManager[None],
) -> web.StreamResponse:
    """Send a response piece by piece. If something fails on the way, abort the connection.

    Args:
        stall_timeout: seconds after which a client that accepts no data is disconnected.
        wait: entered while the client may be waited for.

    Raises:
        Error: the errors of *wait* and of the first piece.
    """
    transport = request.transport  # None on the request once the client has disconnected
    if transport is None:
        raise ConnectionResetError
    watch = tcp.StallWatch(transport, stall_timeout)
    try:
        async with wait:
            async for piece in pieces:
                if not response.prepared:
                    tcp.limit_kernel_buffer(transport)
                    await response.prepare(request)
                    watch.start()
                watch.written += len(piece)
                await response.write(piece)
            if not response.prepared:
                await response.prepare(request)
            await response.write_eof()
    except Exception as error:
        if not response.prepared:
            raise
        if not isinstance(error, (ConnectionError, Error)):
            logger.warning("response to %s aborted: %s", request.path, error)
        transport.abort()  # the client must not take a part for the whole
    finally:
        watch.stop()
    return response


async def part_of(
    read: AsyncReader, file: BinaryIO, size: int, piece_bytes: int
) -> AsyncIterator[bytes]:
    """Yield *size* bytes of a file from its position.

    Raises:
        OSError: the file has become shorter.
    """
    while size > 0:
        piece = await read(file, min(size, piece_bytes))
        if not piece:
            raise OSError("the file has become shorter while it was sent")
        size -= len(piece)
        yield piece
