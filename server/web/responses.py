"""Answers over HTTP: JSON, and one shape for every failure."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiohttp import hdrs, web

from ..codec import dumps
from ..errors import Error
from ..ws import tcp

logger = logging.getLogger(__name__)

NAME = "clawdforge"
WRITE_BYTES = 256 << 10
"""A longer reply is sent in pieces of this size, each when the client has taken the last."""


async def sign(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Say who answers, and nothing of versions: left to itself aiohttp tells its and Python's."""
    response.headers[hdrs.SERVER] = NAME


def raw_reply(body: bytes, *, status: int = 200) -> web.Response:
    """*body* is JSON already."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


async def long_reply(
    request: web.Request,
    pieces: AsyncIterator[bytes],
    stall_timeout: float,
    wait: AbstractAsyncContextManager[None],
    *,
    status: int = 200,
) -> web.StreamResponse:
    """A reply of any length, of which only a small part is in memory at any time.

    Args:
        pieces: make up the JSON. If one cannot be had after the first were sent, the connection
            is dropped: it is too late for another answer.
        stall_timeout: seconds after which a client that has taken nothing is dropped.
        wait: is entered for as long as the client may take. An error of its own, as when the
            client's credential is revoked, ends the reply.

    Raises:
        Error: what *wait* and *pieces* raise before anything is sent.
    """
    gathered: list[bytes] = []
    size = 0
    stream: _LongReply | None = None
    try:
        async with wait:
            async for piece in pieces:
                gathered.append(piece)
                size += len(piece)
                if size >= WRITE_BYTES:
                    stream = stream or await _LongReply.begin(request, stall_timeout, status)
                    await stream.write(b"".join(gathered))
                    gathered, size = [], 0
            if stream is None:
                return raw_reply(b"".join(gathered), status=status)
            await stream.write(b"".join(gathered))
    except Exception as error:
        if stream is None:
            raise
        stream.cut(error)
    finally:
        if stream is not None:
            stream.end()
    return stream.response


class _LongReply:
    """The sending of a long reply."""

    def __init__(self, request: web.Request, stall_timeout: float, status: int) -> None:
        assert request.transport is not None
        self._request = request
        self._watch = tcp.StallWatch(request.transport, stall_timeout)
        self.response = web.StreamResponse(
            status=status, headers={hdrs.CONTENT_TYPE: "application/json; charset=utf-8"}
        )

    @classmethod
    async def begin(cls, request: web.Request, stall_timeout: float, status: int) -> _LongReply:
        if request.transport is None:
            raise ConnectionResetError
        reply = cls(request, stall_timeout, status)
        tcp.keep_little(request.transport)
        await reply.response.prepare(request)
        reply._watch.start()
        return reply

    async def write(self, data: bytes) -> None:
        if self._request.method == hdrs.METH_HEAD:
            return
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            piece = view[start : start + WRITE_BYTES]
            self._watch.written += len(piece)
            await self.response.write(piece)

    def cut(self, error: Exception) -> None:
        """Drop the connection: the client must not take a part for the whole."""
        if not isinstance(error, (ConnectionError, Error)):
            logger.error("a reply to %s is cut", self._request.path, exc_info=error)
        if self._request.transport is not None:
            self._request.transport.abort()

    def end(self) -> None:
        self._watch.stop()


def json_reply(value: Any, *, status: int = 200) -> web.Response:
    return raw_reply(dumps(value), status=status)


def error_reply(error: Error, request_id: str) -> web.Response:
    reply = json_reply(
        {
            "ok": False,
            "error": error.message,
            "code": error.code,
            "request_id": request_id,
            **error.fields,
        },
        status=error.status,
    )
    if error.retry_after is not None:
        reply.headers["Retry-After"] = str(error.retry_after)
    if error.code == "unauthorized":
        reply.headers["WWW-Authenticate"] = "Bearer"
    return reply
