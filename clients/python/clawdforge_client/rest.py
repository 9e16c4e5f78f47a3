"""REST calls: errors, repeats, streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

import aiohttp
from yarl import URL

from .errors import ClawdforgeError, ConnectionLostError, error_of
from .shapes import Json

logger = logging.getLogger("clawdforge_client")

IDEMPOTENT = {"GET", "PUT", "DELETE", "PATCH"}
REFUSED = {(503, "draining"), (429, "rate_limited")}
"""The refusals after which the server accepts the same request later. It has done nothing."""
PROXY_STATUSES = {502, 503, 504}
"""The statuses with which a proxy answers while its server restarts."""
SILENT_SECS = 60
"""Seconds without a byte after which a response has failed, unless it is a POST that waits."""
FAILURES = (
    *(aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError),
    ClawdforgeError,
)


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
        http: an aiohttp session that is not closed; None for one that the first call makes.
        retry_secs: seconds for which a repeatable call is repeated after lost connections.
    """

    def __init__(
        self, http: aiohttp.ClientSession | None, url: str, token: str, *, retry_secs: float
    ) -> None:
        self._http = http
        self._owns_http = http is None
        self._is_closed = False
        self.url = url.rstrip("/")
        self.headers: Mapping[str, str]
        self.set_token(token)
        self.retry_secs = retry_secs

    @property
    def http(self) -> aiohttp.ClientSession:
        """The aiohttp session. It belongs to the event loop of the first call.

        Raises:
            ClawdforgeError: ``closed``.
        """
        if self._is_closed:
            raise ClawdforgeError("closed", "the client was closed")
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=15),
            )
        return self._http

    async def close(self) -> None:
        """End all calls. Those that wait for another attempt fail with ``closed``."""
        self._is_closed = True
        if self._owns_http and self._http is not None:
            await self._http.close()

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
        attempts = Attempts(self, method in IDEMPOTENT if repeat is None else repeat)
        while True:
            try:
                return await self._once(method, path, body, options)
            except FAILURES as error:
                await attempts.wait_after(error, f"{method} {path}")

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
        attempts, has_begun = Attempts(self, may_repeat=True), False
        while True:
            try:
                async with self.http.get(
                    self._address(path),
                    params=query(params),
                    headers=self.headers,
                    timeout=_timeout(SILENT_SECS),
                ) as response:
                    await _check(response)
                    async for piece in response.content.iter_chunked(1 << 16):
                        has_begun = True
                        yield piece
                    return
            except FAILURES as error:
                attempts.may_repeat = not has_begun
                await attempts.wait_after(error, f"GET {path}")

    async def stream(
        self, path: str, body: Any, *, kind: type[ClawdforgeError]
    ) -> AsyncGenerator[tuple[str, Json], None]:
        """The server-sent events of a POST, as names and data."""
        attempts = Attempts(self, may_repeat=False)
        while True:
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
                    return
            except FAILURES as error:
                await attempts.wait_after(error, f"POST {path}")


class Attempts:
    """Decides whether a failed call is repeated, and when.

    A call that the server has refused for now, or that was never sent, is repeated in any case.

    Args:
        may_repeat: whether the call may be carried out twice.
    """

    def __init__(self, rest: Rest, may_repeat: bool) -> None:
        self.may_repeat = may_repeat
        self._rest = rest
        self._used = rest.headers
        self._deadline = time.monotonic() + rest.retry_secs
        self._count = 0

    async def wait_after(self, error: Exception, call: str) -> None:
        """Wait until the next attempt.

        Raises:
            ClawdforgeError: the call has failed finally.
        """
        failure = error
        if not isinstance(failure, ClawdforgeError):
            is_unsent = isinstance(error, aiohttp.ClientConnectorError)
            subject = self._rest.url if is_unsent else call
            failure = ConnectionLostError(f"{subject}: {_name(error)}")
            may_repeat = is_unsent or self.may_repeat
        elif failure.status == 401 and self._rest.headers is not self._used:
            self._used = self._rest.headers
            return
        else:
            is_of_proxy = failure.status in PROXY_STATUSES and "code" not in failure.body
            is_refused = (failure.status, failure.code) in REFUSED
            may_repeat = (is_refused and not is_of_proxy) or (is_of_proxy and self.may_repeat)
        wait = backoff(self._count) + (failure.retry_after or 0)
        self._count += 1
        if not may_repeat or time.monotonic() + wait > self._deadline:
            if failure is error:
                raise failure
            raise failure from error
        logger.warning("%s; trying again in %.1f s", failure, wait)
        await asyncio.sleep(wait)
        self._used = self._rest.headers


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
