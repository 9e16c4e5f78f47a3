"""What every request goes through: an id, the Host check, errors by their codes, a log line."""

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
from ..errors import Error, bad_request, internal
from ..storage.failures import failure_of
from .context import CREDENTIAL, LOGGED_SESSION_ID, LOGGED_TURN_INDEX, REQUEST_ID, context_of
from .listener import BoundedRequestHandler
from .request_body import APP, EXPECT, check_coding
from .request_origin import check_host, client_address
from .responses import error_response

logger = logging.getLogger(__name__)
access = logging.getLogger("server.access")

STRANGERS_SPARE_BYTES = 256 << 10
APPS_SPARE_BYTES = 32 << 20
SPARE_SECS = 2.0
"""So much of a body is read, and for so long, once its request is answered."""
QUIET = frozenset({"/healthz", "/readyz"})
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ServerRunner(web.AppRunner):
    """Runs the application; what it refuses by itself is refused in the project's own words."""

    def __init__(self, app: web.Application, **options: Any) -> None:
        # These two are `door.py`'s as well: here they are for the operator's socket.
        super().__init__(app, access_log=None, auto_decompress=False, lingering_time=0, **options)

    async def setup(self) -> None:
        await super().setup()
        assert self.server is not None
        self.server.request_handler = _take_expect(self.server.request_handler)


def _take_expect(handle: Callable[..., Any]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Keep ``Expect`` from aiohttp, which asks for a body before it is known whose it is."""

    async def handle_without(request: web.Request) -> web.StreamResponse:
        if hdrs.EXPECT not in request.headers:
            response: web.StreamResponse = await handle(request)
            return response
        headers = CIMultiDict(
            # Bytes that are no UTF-8 cannot be written again, and mean nothing in any header.
            (name, value.encode(errors="replace").decode())
            for name, value in request.headers.items()
        )
        request[EXPECT] = ",".join(headers.popall(hdrs.EXPECT))
        request[REQUEST_ID] = _new_request_id()
        clone = request.clone(headers=headers)
        response = await handle(clone)
        await response.prepare(clone)  # which knows its application, by which it is labelled
        return response

    return handle_without


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run the handler; whatever it raises becomes an answer, and nothing leaks."""
    request_id = request.get(REQUEST_ID) or _new_request_id()
    request[REQUEST_ID] = request_id
    trusted = context_of(request).settings.trusted_proxies
    if trusted:
        request = request.clone(remote=client_address(request, trusted) or "")
    began = time.monotonic()
    connection = request.protocol if isinstance(request.protocol, BoundedRequestHandler) else None
    if connection is not None and not connection.begin_request():
        await asyncio.sleep(0)  # of requests that came together, others have their turn in between
    try:
        check_host(request, context_of(request).settings)
        _check_head(request)
        response = await handler(request)
    except web.HTTPException as error:
        response = error_response(_of_http(error), request_id)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except Exception as error:  # noqa: BLE001 - failure_of logs it
        if _is_of_client(error, request):
            logger.info("the request ended early: %r", error, extra={"request_id": request_id})
            error = bad_request("the request ended early")
        response = error_response(
            failure_of(error, "the request", request_id=request_id), request_id
        )
    credential = request.get(CREDENTIAL)
    if credential is not None and credential.is_revoked and not response.prepared:
        response = error_response(unauthorized(), request_id)
    if request.path not in QUIET:
        access.info(
            "%s %s %d",
            request.method,
            # Never the query: it is no place for secrets, but people err.
            request.path.replace(" ", "%20"),
            response.status,
            extra={
                "request_id": request_id,
                "app": request.get(APP),
                "session": request.get(LOGGED_SESSION_ID),
                "turn": request.get(LOGGED_TURN_INDEX),
                "duration_ms": int((time.monotonic() - began) * 1000),
            },
        )
    if not request.content.is_eof() and response.status != 101:
        await _leave_body(request, response)
    if connection is not None:
        connection.end_request(is_stranger=APP not in request)
    return response


async def _leave_body(request: web.Request, response: web.StreamResponse) -> None:
    """Answer before the body is there, and close the connection.

    A client that sends before it reads would see a reset instead of the answer, so a
    little is read; of what an app sends, more.
    """
    response.force_close()
    left = APPS_SPARE_BYTES if APP in request else STRANGERS_SPARE_BYTES
    with contextlib.suppress(TimeoutError, ConnectionError, web.RequestPayloadError):
        await response.prepare(request)
        await response.write_eof()
        async with asyncio.timeout(SPARE_SECS):
            while left > 0 and not request.content.is_eof():
                left -= len(await request.content.readany())


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Give an answer, also one that is streamed, the headers that all have; a socket needs none."""
    if response.status == 101:
        if isinstance(request.protocol, BoundedRequestHandler):
            request.protocol.become_socket()
        return
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.path.startswith(("/sessions", "/admin", "/files", "/run")):
        response.headers.setdefault("Cache-Control", "no-store")


def _new_request_id() -> str:
    return uuid.uuid4().hex[:16]


def _is_of_client(error: Exception, request: web.Request) -> bool:
    """Whether it is the client that broke off; another connection may break as well."""
    if isinstance(error, web.RequestPayloadError):
        return True
    is_gone = request.transport is None or request.transport.is_closing()
    return isinstance(error, ConnectionError) and is_gone


def _of_http(error: web.HTTPException) -> Error:
    match error.status:
        case 404:
            return Error("not_found", "no such path")
        case 405:
            return Error("method_not_allowed", f"{error.reason}")
        case 413:
            return Error("payload_too_large", "the body is too large")
        case status if 400 <= status < 500:
            return Error("bad_request", error.reason)
    return internal()


def _check_head(request: web.Request) -> None:
    """Refuse, before anything is read of its body, a request that cannot be answered.

    Raises:
        Error: ``unsupported_media_type``, or ``expectation_failed`` for an unknown ``Expect``.
    """
    check_coding(request.headers)
    expected = request.get(EXPECT, "100-continue").split(",")
    if any(one.strip().lower() != "100-continue" for one in expected):
        raise Error("expectation_failed", "the only expectation that is supported is 100-continue")
