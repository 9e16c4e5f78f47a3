"""What every request goes through: an id, the Host check, errors by their codes, a log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from .auth import LOOPBACK_NAMES, client_address, unauthorized
from .door import Connection
from .errors import Error, bad_request, internal
from .failures import failure_of
from .replies import error_reply
from .services import APP, CREDENTIAL, REQUEST_ID, SESSION, TURN, services_of

logger = logging.getLogger(__name__)
access = logging.getLogger("server.access")

QUIET = frozenset({"/healthz", "/readyz"})
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run the handler; whatever it raises becomes an answer, and nothing leaks."""
    request[REQUEST_ID] = request_id = _new_id()
    trusted = services_of(request).settings.trusted_proxies
    if trusted:
        request = request.clone(remote=client_address(request, trusted) or "")
    began = time.monotonic()
    if isinstance(request.protocol, Connection):
        request.protocol.has_asked()
    try:
        _check_host(request)
        response = await handler(request)
    except web.HTTPException as error:
        response = error_reply(_of_http(error), request_id)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except Exception as error:  # noqa: BLE001 - failure_of logs it
        if _is_of_client(error, request):
            logger.info("the request ended early: %r", error, extra={"request_id": request_id})
            error = bad_request("the request ended early")
        response = error_reply(failure_of(error, "the request", request_id=request_id), request_id)
    credential = request.get(CREDENTIAL)
    if credential is not None and credential.is_revoked and not response.prepared:
        response = error_reply(unauthorized(), request_id)
    if request.path not in QUIET:
        access.info(
            "%s %s %d",
            request.method,
            request.path,  # never the query: it is no place for secrets, but people err
            response.status,
            extra={
                "request_id": request_id,
                "app": request.get(APP),
                "session": request.get(SESSION),
                "turn": request.get(TURN),
                "duration_ms": int((time.monotonic() - began) * 1000),
            },
        )
    return response


async def label(request: web.Request, response: web.StreamResponse) -> None:
    """Give an answer, also one that is streamed, the headers that all have; a socket needs none."""
    if response.status == 101:
        return
    if REQUEST_ID not in request:  # aiohttp refused it by itself: for an `Expect` it does not know
        request[REQUEST_ID] = _new_id()
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.path.startswith(("/sessions", "/admin", "/files", "/run")):
        response.headers.setdefault("Cache-Control", "no-store")


def _new_id() -> str:
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


def _check_host(request: web.Request) -> None:
    """On loopback only local names are ours: a page elsewhere may have its name point here."""
    settings = services_of(request).settings
    if settings.host not in ("127.0.0.1", "::1", "localhost"):
        return
    host = request.host.lower()
    if re.sub(r":\d+\Z", "", host) in LOOPBACK_NAMES:
        return
    if not any(origin.partition("://")[2] == host for origin in settings.allowed_origins):
        raise Error("forbidden", "this host name is not allowed; see CLAWDFORGE_ALLOWED_ORIGINS")
