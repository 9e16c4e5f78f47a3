"""Makes HTTP responses: JSON of any length, and failures in one format."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from aiohttp import hdrs, web

from ..codec import dumps
from ..errors import Error, ErrorCode
from ..ws import tcp
from .field_types import ErrorMessage, FailureCode, RequestId, ResetsAt

logger = logging.getLogger(__name__)

SERVER_NAME = "clawdforge"
MIN_COMPRESSED_BYTES = 1 << 10
"""A shorter response is not compressed."""
RESPONSE_PIECE_BYTES = 256 << 10
"""A longer response is written in pieces of this size, each when the client has taken the last."""


class Failure(msgspec.Struct, kw_only=True):
    """A failure."""

    error: ErrorMessage
    code: FailureCode
    request_id: RequestId
    resets_at: ResetsAt = msgspec.UNSET


async def set_server_header(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Name the server without versions; by default aiohttp sends its own and Python's."""
    response.headers[hdrs.SERVER] = SERVER_NAME


def json_response(
    value: msgspec.Struct, *, status: int = 200, extra: Mapping[str, Any] | None = None
) -> web.Response:
    """Return a response whose JSON object is ``ok``, the fields of *value*, then *extra*.

    ``ok`` is true if *status* is a success.
    """
    return raw_json_response(encode_json(value, ok=status < 400, extra=extra), status=status)


def encode_json(
    value: msgspec.Struct, *, ok: bool, extra: Mapping[str, Any] | None = None
) -> bytes:
    """Encode the JSON object of a response: ``ok``, the fields of *value*, then *extra*."""
    # Not by msgspec's encoder: agents send unpaired surrogates, which it refuses.
    return dumps({"ok": ok, **msgspec.to_builtins(value), **(extra or {})})


def raw_json_response(body: bytes, *, status: int = 200) -> web.Response:
    """Return a response with *body*, which is encoded JSON."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def error_response(error: Error, request_id: str) -> web.Response:
    """Return the response to a request that failed with *error*."""
    failure = Failure(error=error.message, code=error.code, request_id=request_id)
    response = json_response(failure, status=error.status, extra=error.fields)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.code is ErrorCode.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def streamed_json_response(
    request: web.Request,
    pieces: AsyncIterator[bytes],
    stall_timeout: float,
    wait: AbstractAsyncContextManager[None],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    compress: bool = False,
) -> web.StreamResponse:
    """Send JSON of any length, of which only a small part is in memory at any time.

    Args:
        pieces: the JSON. If the iterator fails after the first pieces were sent, the connection is
            aborted: another response is no longer possible.
        stall_timeout: seconds after which a client that accepts no data is disconnected.
        wait: entered while the client may be waited for. An error that it raises, for example
            because the client's credential is revoked, ends the response.
        headers: of the response; they may name another content type.
        compress: whether the client accepts gzip.

    Raises:
        Error: the errors of *wait* and *pieces* before anything is sent.
    """
    gathered: list[bytes] = []
    size = 0
    stream: _JsonStream | None = None
    try:
        async with wait:
            async for piece in pieces:
                gathered.append(piece)
                size += len(piece)
                if size >= RESPONSE_PIECE_BYTES:
                    if stream is None:
                        stream = _JsonStream(request, stall_timeout, status, headers or {})
                        await stream.start(compress=compress)
                    await stream.write(b"".join(gathered))
                    gathered, size = [], 0
            if stream is None:
                response = raw_json_response(b"".join(gathered), status=status)
                response.headers.update(headers or {})
                if compress and size >= MIN_COMPRESSED_BYTES:
                    response.enable_compression(web.ContentCoding.gzip)
                return response
            await stream.write(b"".join(gathered))
    except Exception as error:
        if stream is None:
            raise
        stream.abort(error)
    finally:
        if stream is not None:
            stream.stop()
    return stream.response


class _JsonStream:
    """A long JSON response that is being written."""

    def __init__(
        self,
        request: web.Request,
        stall_timeout: float,
        status: int,
        headers: Mapping[str, str],
    ) -> None:
        if request.transport is None:
            raise ConnectionResetError
        self._request = request
        self._watch = tcp.StallWatch(request.transport, stall_timeout)
        self._transport = request.transport
        self.response = web.StreamResponse(
            status=status, headers={"Content-Type": "application/json; charset=utf-8", **headers}
        )

    async def start(self, *, compress: bool) -> None:
        tcp.limit_kernel_buffer(self._transport)
        if compress:
            self.response.enable_compression(web.ContentCoding.gzip)
        await self.response.prepare(self._request)
        self._watch.start()

    async def write(self, data: bytes) -> None:
        if self._request.method == hdrs.METH_HEAD:
            return
        view = memoryview(data)
        for start in range(0, len(view), RESPONSE_PIECE_BYTES):
            piece = view[start : start + RESPONSE_PIECE_BYTES]
            self._watch.written += len(piece)
            await self.response.write(piece)

    def abort(self, error: Exception) -> None:
        """Abort the connection, so that the client does not take a part for the whole."""
        if not isinstance(error, (ConnectionError, Error)):
            logger.error("response to %s aborted", self._request.path, exc_info=error)
        if self._request.transport is not None:
            self._request.transport.abort()

    def stop(self) -> None:
        self._watch.stop()
