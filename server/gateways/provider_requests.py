"""The requests of agents to providers, and the part of them that the key proxy sends on."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

from aiohttp import web

from .providers import Secret, Upstream

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 << 20
PASSED_HEADERS = frozenset(
    {
        *("accept", "accept-language", "content-type", "content-encoding", "user-agent"),
        "anthropic-version",
        *("anthropic-beta", "anthropic-dangerous-direct-browser-access", "openai-beta", "x-app"),
        *("originator", "session_id", "session-id", "conversation_id", "thread-id", "version"),
        *("x-goog-api-client", "x-client-request-id", "idempotency-key"),
    }
)
PASSED_PREFIXES = ("x-stainless-", "x-codex-", "x-claude-", "x-gemini-")
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "x-goog-api-key")


def token_of(request: web.Request) -> tuple[str, str]:
    """The header with the session's token, and the token; both empty without one."""
    for name in CREDENTIAL_HEADERS:
        value = request.headers.get(name, "").strip()
        if name == "authorization":
            scheme, _, value = value.partition(" ")
            value = value.strip() if scheme.lower() == "bearer" else ""
        if value:
            return name, value
    return "x-goog-api-key", request.query.get("key", "")


def path_of(request: web.Request) -> str:
    """The path at the provider, as the agent sent it: not decoded, so that nothing is hidden."""
    if not request.raw_path.startswith("/"):
        return ""
    return "/" + request.raw_path.split("?", 1)[0].lstrip("/").partition("/")[2]


def request_headers(request: web.Request, upstream: Upstream, secret: Secret) -> dict[str, str]:
    """The headers for the provider: those that are passed on, and the operator's key."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        lower = name.lower()
        if lower in PASSED_HEADERS or lower.startswith(PASSED_PREFIXES):
            headers[lower] = f"{headers[lower]},{value}" if lower in headers else value
    if secret.beta is not None and secret.beta not in headers.get("anthropic-beta", ""):
        known = headers.get("anthropic-beta")
        headers["anthropic-beta"] = f"{known},{secret.beta}" if known else secret.beta
    headers |= {name.lower(): value for name, value in upstream.headers}
    if not any(name in headers for name in CREDENTIAL_HEADERS):
        headers[secret.header] = secret.value
    headers["accept-encoding"] = "identity"  # the usage must be readable
    if request.content_length is not None and request.can_read_body:
        headers["content-length"] = str(request.content_length)
    return headers


async def limited_body(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises:
        web.HTTPException: it is too large.
    """
    size = 0
    async for piece in request.content.iter_any():
        size += len(piece)
        if size > MAX_REQUEST_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_REQUEST_BYTES, size)
        yield piece


def operator_proxy(address: str, environ: Mapping[str, str]) -> str | None:
    """The operator's own proxy for that address."""
    parts = urlsplit(address)
    names = (f"{parts.scheme}_proxy", f"{parts.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    proxy = next(filter(None, (environ.get(name) for name in names)), None)
    if proxy is None or not proxy.startswith(("http://", "https://")):
        return None
    excluded = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")
    suffixes = [name.strip().partition(":")[0].lstrip("*.").lower() for name in excluded]
    host = parts.hostname or ""
    is_excluded = "*" in map(str.strip, excluded) or any(
        host == name or host.endswith(f".{name}") for name in suffixes if name
    )
    return None if is_excluded else proxy


def operator_certificates(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The certificates that the operator set for agents, in addition to the system's."""
    context = ssl.create_default_context()
    for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"):
        file = environ.get(name, "")
        if file and os.path.isfile(file):  # noqa: PTH113
            try:
                context.load_verify_locations(cafile=file)
            except (OSError, ssl.SSLError) as error:
                logger.warning("%s: the certificates cannot be read: %s", name, error)
    return context
