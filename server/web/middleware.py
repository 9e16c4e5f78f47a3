"""Wraps every request: request id, Host check, errors, access log, common headers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from ..auth.credential import unauthorized
from ..errors import Error, ErrorCode, bad_request, failure_of, internal, payload_too_large
from ..openai.responses import error_body
from .context import (
    CREDENTIAL,
    LOGGED_SESSION_ID,
    LOGGED_TURN_INDEX,
    PROMPT_ID,
    REQUEST_ID,
    context_of,
)
from .control_socket import FORWARDED_OPERATOR
from .node_link import LINK
from .request_body import APP_NAME, EXPECT, check_coding
from .request_handler import BoundedRequestHandler
from .request_origin import check_host, client_address
from .responses import error_response

logger = logging.getLogger(__name__)
access = logging.getLogger("server.access")

UNAUTHENTICATED_DISCARD_BYTES = 256 << 10
AUTHENTICATED_DISCARD_BYTES = 32 << 20
DISCARD_SECS = 2.0
"""The bytes of an unread body that are discarded after the response, and the time for it."""
UNLOGGED_PATHS = frozenset({"/healthz", "/readyz"})
OPENAI_PATHS = "/v1/"
"""The paths of OpenAI's API, whose failures have another shape."""
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ServerRunner(web.AppRunner):
    """Runs the application, and keeps aiohttp from answering ``Expect`` by itself."""

    def __init__(self, app: web.Application, **options: Any) -> None:
        # `listener.py` sets the last two for its connections; these are for the operator's socket.
        super().__init__(app, access_log=None, auto_decompress=False, lingering_time=0, **options)

    async def setup(self) -> None:
        await super().setup()
        assert self.server is not None
        self.server.request_handler = _without_expect(self.server.request_handler)


def _without_expect(handle: Callable[..., Any]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Hide ``Expect`` from aiohttp, which would request the body before authentication."""

    async def handle_request(request: web.Request) -> web.StreamResponse:
        if hdrs.EXPECT not in request.headers:
            response: web.StreamResponse = await handle(request)
            return response
        headers = CIMultiDict(
            # Bytes that are not UTF-8 cannot be encoded again; they mean nothing in any header.
            (name, value.encode(errors="replace").decode())
            for name, value in request.headers.items()
        )
        request[EXPECT] = ",".join(headers.popall(hdrs.EXPECT))
        request[REQUEST_ID] = _new_request_id()
        clone = request.clone(headers=headers)
        response = await handle(clone)
        await response.prepare(clone)  # only the clone has the application, whose hooks add headers
        return response

    return handle_request


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Call the handler, and turn every exception into a response that reveals no internals."""
    link = request.app.get(LINK)
    origin = link.origin_of(request) if link is not None else None
    known_id = request.get(REQUEST_ID) if origin is None else origin.request_id
    request_id = known_id or _new_request_id()
    request[REQUEST_ID] = request_id
    trusted = context_of(request).settings.trusted_proxies
    if origin is not None:
        request = request.clone(remote=origin.remote)
        request[FORWARDED_OPERATOR] = origin.is_operator
        if origin.prompt_id:
            request[PROMPT_ID] = origin.prompt_id
    elif trusted:
        request = request.clone(remote=client_address(request, trusted) or "")
    started_at = time.monotonic()
    connection = request.protocol if isinstance(request.protocol, BoundedRequestHandler) else None
    if connection is not None and not connection.request_started():
        await asyncio.sleep(0)  # let other connections proceed between pipelined requests
    response = await _respond(request, handler, request_id)
    credential = request.get(CREDENTIAL)
    if credential is not None and credential.is_revoked and not response.prepared:
        response = _failure_response(request, unauthorized(), request_id)
    if connection is not None and response.status >= 400 and _is_of_stranger(request):
        await connection.pause(context_of(request).sockets.refusals.delay(request.remote or ""))
    _log_access(request, response, started_at)
    if not request.content.is_eof() and response.status != 101:
        await _discard_body(request, response)
    if connection is not None:
        connection.request_finished(is_authenticated=APP_NAME in request)
    return response


async def _respond(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        check_host(request, context_of(request).settings)
        _check_headers(request)
        return await handler(request)
    except web.HTTPException as error:
        response = _failure_response(request, _from_http_exception(error), request_id)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:  # noqa: BLE001 - failure_of logs it
        if _is_disconnect(error, request):
            logger.info("client disconnected: %r", error, extra={"request_id": request_id})
            error = bad_request("the request ended early")
        failure = failure_of(error, "the request", request_id=request_id)
        return _failure_response(request, failure, request_id)


def _is_of_stranger(request: web.Request) -> bool:
    """Whether a request had no credential of an app. Monitors need none."""
    return APP_NAME not in request and request.path not in UNLOGGED_PATHS


def _failure_response(request: web.Request, error: Error, request_id: str) -> web.Response:
    response = error_response(error, request_id)
    if request.path.startswith(OPENAI_PATHS):
        response.body = error_body(error)
    return response


def _log_access(request: web.Request, response: web.StreamResponse, started_at: float) -> None:
    if request.path in UNLOGGED_PATHS:
        return
    access.info(
        "%s %s %d",
        request.method,
        # Never the query: clients put secrets there by mistake.
        request.path.replace(" ", "%20"),
        response.status,
        extra={
            "request_id": request[REQUEST_ID],
            "app": request.get(APP_NAME),
            "session": request.get(LOGGED_SESSION_ID),
            "turn": request.get(LOGGED_TURN_INDEX),
            "duration_ms": int((time.monotonic() - started_at) * 1000),
        },
    )


async def _discard_body(request: web.Request, response: web.StreamResponse) -> None:
    """Send the response before the body has arrived, and close the connection.

    A client that writes before it reads would see a reset instead of the response, so some of the
    body is read and discarded; more for an authenticated client.
    """
    response.force_close()
    left = AUTHENTICATED_DISCARD_BYTES if APP_NAME in request else UNAUTHENTICATED_DISCARD_BYTES
    with contextlib.suppress(TimeoutError, ConnectionError, web.RequestPayloadError):
        await response.prepare(request)
        await response.write_eof()
        async with asyncio.timeout(DISCARD_SECS):
            while left > 0 and not request.content.is_eof():
                left -= len(await request.content.readany())


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that all responses have, streams included. A WebSocket needs none."""
    if response.status == 101:
        if isinstance(request.protocol, BoundedRequestHandler):
            request.protocol.upgraded()
        return
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    is_private = request.path.startswith(("/sessions", "/admin", "/files", "/run"))
    if is_private or hdrs.AUTHORIZATION in request.headers:
        response.headers.setdefault("Cache-Control", "no-store")


def _new_request_id() -> str:
    return uuid.uuid4().hex[:16]


def _is_disconnect(error: Exception, request: web.Request) -> bool:
    """Return whether the client disconnected. Other connections raise the same errors."""
    if isinstance(error, web.RequestPayloadError):
        return True
    is_closed = request.transport is None or request.transport.is_closing()
    return isinstance(error, ConnectionError) and is_closed


def _from_http_exception(error: web.HTTPException) -> Error:
    match error.status:
        case 404:
            return Error(ErrorCode.NOT_FOUND, "no such path")
        case 405:
            return Error(ErrorCode.METHOD_NOT_ALLOWED, f"{error.reason}")
        case 413:
            return payload_too_large()
        case status if 400 <= status < 500:
            return Error(ErrorCode.BAD_REQUEST, error.reason)
    return internal()


def _check_headers(request: web.Request) -> None:
    """Refuse a request that cannot be answered, before any of its body is read.

    Raises:
        Error: ``unsupported_media_type``, or ``expectation_failed`` for an unknown ``Expect``.
    """
    check_coding(request.headers)
    expected = request.get(EXPECT, "100-continue").split(",")
    if any(value.strip().lower() != "100-continue" for value in expected):
        raise Error(ErrorCode.EXPECTATION_FAILED, "the only supported expectation is 100-continue")
