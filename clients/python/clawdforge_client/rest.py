"""REST calls: errors, repeats, streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

import aiohttp
from yarl import URL

from .errors import ClawdforgeError, ConnectionLostError, error_of
from .shapes import Json

logger = logging.getLogger("clawdforge_client")

IDEMPOTENT = {"GET", "PUT", "DELETE", "PATCH"}
REFUSED = {"draining"}
"""Codes of refused requests that the server will accept later."""
SILENT_SECS = 60
"""Seconds without a byte after which a response has failed, unless it is a POST that waits."""
DROPPED = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)


def backoff(attempt: int) -> float:
    """Seconds to wait before the next attempt: random, so that clients spread their attempts."""
    return random.uniform(0, min(15.0, 0.25 * 2.0**attempt))  # noqa: S311


class Options(TypedDict, total=False):
    """The options of a call.

    Attributes:
        repeat: whether the call may be repeated after a lost connection; by default if its method
            is idempotent.
        kind: the class of the error if the server refuses the call.
    """

    params: Mapping[str, Any] | None
    headers: Mapping[str, str] | None
    repeat: bool | None
    kind: type[ClawdforgeError]


class Rest:
    """Calls the server.

    Args:
        retry_secs: seconds for which a repeatable call is repeated after lost connections.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, token: str, *, retry_secs: float
    ) -> None:
        self.http = http
        self.url = url.rstrip("/")
        self.headers: Mapping[str, str]
        self.set_token(token)
        self.retry_secs = retry_secs

    def set_token(self, token: str) -> None:
        """Use another token from now on, also for what was refused with the former one."""
        self.headers = {"Authorization": f"Bearer {token}"}

    def _address(self, path: str) -> URL:
        return URL(self.url + path, encoded=True)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        **options: Unpack[Options],
    ) -> Json:
        """Make a call, and return the response's object.

        Raises:
            ClawdforgeError: the server refused the call, or cannot be reached.
        """
        status, data, _ = await self.raw(method, path, body, **options)
        found = parsed(data)
        return {**found, "status": status} if status == 202 else found

    async def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        **options: Unpack[Options],
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Make a call, and return the status, the body and the headers of the response."""
        repeat = options.get("repeat")
        may_repeat = method in IDEMPOTENT if repeat is None else repeat
        deadline = time.monotonic() + self.retry_secs
        attempt = 0
        while True:
            used = self.headers
            try:
                return await self._once(method, path, body, options)
            except aiohttp.ClientConnectorError as error:  # the request was never sent
                failure: ClawdforgeError = ConnectionLostError(f"{self.url}: {error}")
            except DROPPED as error:
                failure = ConnectionLostError(f"{method} {path}: {_name(error)}")
                if not may_repeat:
                    raise failure from error
            except ClawdforgeError as error:
                if error.status == 401 and self.headers is not used:
                    continue
                if error.code not in REFUSED or error.status != 503:
                    raise
                failure = error
            wait = max(backoff(attempt), failure.retry_after or 0)
            attempt += 1
            if time.monotonic() + wait > deadline:
                raise failure
            logger.warning("%s; trying again in %.1f s", failure, wait)
            await asyncio.sleep(wait)

    async def _once(
        self,
        method: str,
        path: str,
        body: Any,
        options: Options,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        async with self.http.request(
            method,
            self._address(path),
            data=encoded(body),
            params=query(options.get("params")),
            headers={**self.headers, **(options.get("headers") or {})},
            timeout=_timeout(None if method == "POST" else SILENT_SECS),
        ) as response:
            await _check(response, options.get("kind", ClawdforgeError))
            return response.status, await response.read(), response.headers

    async def download(
        self, path: str, *, params: Mapping[str, Any] | None = None
    ) -> AsyncIterator[bytes]:
        """The body of a response, in pieces."""
        try:
            async with self.http.get(
                self._address(path),
                params=query(params),
                headers=self.headers,
                timeout=_timeout(SILENT_SECS),
            ) as response:
                await _check(response)
                async for piece in response.content.iter_chunked(1 << 16):
                    yield piece
        except DROPPED as error:
            raise ConnectionLostError(f"{path}: {_name(error)}") from error

    async def stream(
        self, path: str, body: Any, *, kind: type[ClawdforgeError]
    ) -> AsyncIterator[tuple[str, Json]]:
        """The server-sent events of a POST, as names and data."""
        try:
            async with self.http.post(
                self._address(path),
                data=encoded(body),
                headers={**self.headers, "Accept": "text/event-stream"},
                timeout=_timeout(SILENT_SECS),
            ) as response:
                await _check(response, kind)
                name, lines = "message", list[str]()
                async for line in long_lines(response):
                    if not line:
                        if lines:
                            yield name, json.loads("\n".join(lines))
                        name, lines = "message", []
                    elif line.startswith("event:"):
                        name = line[6:].strip()
                    elif line.startswith("data:"):
                        lines.append(line[5:].removeprefix(" "))
        except DROPPED as error:
            raise ConnectionLostError(f"{path}: {_name(error)}") from error


def _timeout(silent_secs: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=silent_secs)


async def _check(
    response: aiohttp.ClientResponse, kind: type[ClawdforgeError] = ClawdforgeError
) -> None:
    """Raise the error that the response describes, if it is one."""
    if response.status >= 400:
        retry_after = response.headers.get("Retry-After")
        raise error_of(response.status, parsed(await response.read()), retry_after, kind)


async def long_lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The lines of the body, however long they are."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode()


def _name(error: Exception) -> str:
    return str(error) or type(error).__name__


def encoded(body: Any) -> Any:
    """A request's body: bytes as they are, a file's content, a form that is made for each attempt,
    and all else as JSON.
    """
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, Path):
        return body.open("rb")
    if callable(body):
        return body()
    return json.dumps(body, ensure_ascii=False).encode()


def parsed(data: bytes) -> Json:
    """The object in a body; an empty one for anything else, such as a proxy's page."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def query(params: Mapping[str, Any] | None) -> dict[str, str]:
    """Parameters without those that are None, in the server's notation."""
    found: dict[str, str] = {}
    for name, value in (params or {}).items():
        if value is None:
            continue
        if isinstance(value, bool):
            found[name] = "true" if value else "false"
        elif isinstance(value, str):
            found[name] = value
        elif isinstance(value, (list, tuple, set, frozenset)):
            found[name] = ",".join(map(str, value))
        else:
            found[name] = str(value)
    return found


def segment(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


def without_none(fields: Mapping[str, Any]) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
