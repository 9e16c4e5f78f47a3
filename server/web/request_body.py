"""Reads request bodies within the byte budgets of their apps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy

from ..codec import has_too_many_values, is_costly, loads_bounded
from ..errors import Error, ErrorCode, bad_request, payload_too_large
from ..ws.incoming import INCOMING_LIMITS, IncomingLimits

APP_NAME = web.RequestKey("app", str)
"""The name of the app that a request was authenticated for. A body counts against its budget."""
EXPECT = web.RequestKey("expect", str)
"""The ``Expect`` header, which ``middleware.py`` removes so that aiohttp does not act on it."""
READ_BODY = web.RequestKey("read-body", bytes)
"""A body that names a session of another node: its handler has read it, and that node needs it."""
UNBUDGETED_CHUNKED_BYTES = 64 << 10
"""A chunked body may have this many bytes before the maximum size is reserved in the budget."""
BUDGET_TIMEOUT_SECS = 10.0
"""Time that a body waits for its share of the budget."""


class BodyReader:
    """Reads JSON bodies within the byte budgets, and parses one large body at a time.

    Args:
        limits: shared with the messages of WebSocket connections.
    """

    def __init__(self, limits: IncomingLimits) -> None:
        self._limits = limits
        self._parsing = asyncio.Semaphore()

    async def read_json(self, request: web.Request) -> Any:
        """Read and parse the body of *request*. An empty body is an empty object.

        Raises:
            Error: ``bad_request``, ``payload_too_large``, ``request_timeout``, or
                ``rate_limited`` if the budget has no room for it in time.
        """
        limit = request.client_max_size
        size = request.content_length
        if (size or 0) > limit:
            raise payload_too_large()
        app_name = request.get(APP_NAME, "")
        data = bytearray()
        if size is None:  # chunked
            await self._read(request, data, UNBUDGETED_CHUNKED_BYTES)
            if request.content.at_eof():
                return await self._parse(data)
            size = limit
        async with self._limits.budget.reserve(app_name, size, BUDGET_TIMEOUT_SECS):
            await self._read(request, data, limit)
            if len(data) > limit:
                raise payload_too_large()
            return await self._parse(data)

    @contextlib.asynccontextmanager
    async def reserve(self, request: web.Request, limit: int) -> AsyncIterator[bytearray]:
        """Read a body of at most *limit* bytes, and count it against the budget in the block.

        Raises:
            Error: the errors of :meth:`read_json`, except ``bad_request``.
        """
        size = request.content_length
        if (size or 0) > limit:
            raise payload_too_large()
        app_name = request.get(APP_NAME, "")
        size = limit if size is None else size
        async with self._limits.budget.reserve(app_name, size, BUDGET_TIMEOUT_SECS):
            data = bytearray()
            await self._read(request, data, limit)
            if len(data) > limit:
                raise payload_too_large()
            yield data

    async def _read(self, request: web.Request, data: bytearray, limit: int) -> None:
        """Append to *data* until it has more than *limit* bytes or the body ends."""
        await send_continue(request)
        now = asyncio.get_running_loop().time
        deadline = now() + self._limits.timeout
        try:
            async with asyncio.timeout(None) as timeout:
                while len(data) <= limit:
                    timeout.reschedule(min(deadline, now() + self._limits.stall_timeout))
                    chunk = await request.content.readany()
                    if not chunk:
                        return
                    data += chunk
        except TimeoutError:
            raise _body_timeout() from None

    async def _parse(self, data: bytearray) -> Any:
        if not is_costly(data):
            return _parse_json(data)
        async with self._parsing:
            return await asyncio.to_thread(_parse_json, data)


BODY_READER = web.AppKey("body-reader", BodyReader)


def _parse_json(data: bytearray) -> Any:
    if has_too_many_values(data):
        raise payload_too_large("the body has too many values: see docs/explanation/guarantees.md")
    try:
        return loads_bounded(data) if data and not data.isspace() else {}
    except ValueError:
        raise bad_request("the body is not JSON, or is nested too deeply") from None


@contextlib.asynccontextmanager
async def stall_timeout(request: web.Request) -> AsyncIterator[None]:
    """Limit the time that the block may wait for the next bytes of a body.

    Raises:
        Error: ``request_timeout``.
    """
    try:
        async with asyncio.timeout(request.app[INCOMING_LIMITS].stall_timeout):
            yield
    except TimeoutError:
        raise _body_timeout() from None


def _body_timeout() -> Error:
    return Error(ErrorCode.REQUEST_TIMEOUT, "the body did not arrive in time")


def check_coding(headers: CIMultiDictProxy[str]) -> None:
    """Refuse a compressed body: decompressed, it could be a thousand times as large.

    This applies to transfer codings as well: only ``chunked`` is accepted.

    Raises:
        Error: ``unsupported_media_type``.
    """
    lines = headers.getall(hdrs.CONTENT_ENCODING, ())
    if any(coding.strip().lower() not in ("", "identity") for coding in ",".join(lines).split(",")):
        raise Error(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            "Content-Encoding is not supported: send the body without it",
        )
    if headers.get(hdrs.TRANSFER_ENCODING, "chunked").strip().lower() != "chunked":
        raise Error(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE, "the only supported Transfer-Encoding is chunked"
        )


async def send_continue(request: web.Request) -> None:
    """Send ``100 Continue`` if the client expects it before it sends its body."""
    if request.get(EXPECT) and not request.writer.output_size:
        del request[EXPECT]
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # not part of the response itself
