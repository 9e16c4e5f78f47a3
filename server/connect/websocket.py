"""The WebSocket of ``/acp``: opened, and its failures in words."""

from __future__ import annotations

import asyncio
import os
from urllib.parse import urlsplit

import aiohttp

from .failure import ConnectError
from .target import Target

OPEN_TIMEOUT_SECS = 20.0
PING_SECS = 30.0
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
LAST_CODE_TO_RETRY = 4499
"""From 4500 on, a close code says that a reconnect is useless."""
TOKEN_CODES = frozenset({4500, 4503})


class ServerAwayError(Exception):
    """The server cannot be reached now; the message says why. A later try may succeed."""


def client_session(target: Target) -> aiohttp.ClientSession:
    """The HTTP client. A proxy of the environment is not used for this machine."""
    host = urlsplit(target.url).hostname or ""
    is_local = host in ("localhost", "::1") or host.startswith("127.")
    return aiohttp.ClientSession(trust_env=not is_local)


async def open_websocket(
    http: aiohttp.ClientSession, target: Target
) -> aiohttp.ClientWebSocketResponse[bool]:
    """Open the connection.

    Raises:
        ServerAwayError: a later try may succeed.
        ConnectError: it will not.
    """
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_SECS):
            return await http.ws_connect(
                target.url,
                headers={"Authorization": f"Bearer {target.token}"},
                max_msg_size=0,  # the server keeps to the size that `initialize` names
                heartbeat=PING_SECS,
                compress=0,
                decode_text=False,
            )
    except aiohttp.WSServerHandshakeError as error:
        raise _upgrade_error(error.status, target) from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise ConnectError(
            f"the certificate of {target.address} is not valid: {error.certificate_error}"
        ) from None
    except aiohttp.InvalidURL:
        raise ConnectError(f"{target.address} is not the address of a server") from None
    except TimeoutError:
        raise ServerAwayError(f"{target.address} does not answer") from None
    except aiohttp.ClientConnectorDNSError:
        raise ServerAwayError(f"{target.address}: the name of the host is not known") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if isinstance(number, int) else type(error).__name__
        raise ServerAwayError(f"{target.address} cannot be reached: {reason}") from None


def _upgrade_error(status: int, target: Target) -> Exception:
    """The error for the HTTP status of an upgrade that was refused."""
    address = target.address
    if status == 401:
        return ConnectError.of_token(
            f"{address} refused the token: it is wrong or was revoked, or this machine's network"
            " may not use it"
        )
    if status == 403:
        return ConnectError.of_token(
            f"{address} refused the connection: it does not serve this host name, or the token's"
            " scopes do not include this"
        )
    if status in RETRIED_STATUSES:
        return ServerAwayError(f"{address} is not ready (HTTP status {status})")
    if status == 400:
        return ConnectError(
            f"{address} refused the address: check its agent, model, mode and permission"
        )
    return ConnectError(
        f"no clawdforge answers at {target.url.partition('?')[0]} (HTTP status {status}): check the"
        " address"
    )


def check_close(code: int | None, target: Target) -> None:
    """Check that a connection that was closed with *code* may be opened again.

    Raises:
        ConnectError: it may not.
    """
    if code is None or code <= LAST_CODE_TO_RETRY:
        return
    if code in TOKEN_CODES:
        raise ConnectError.of_token(f"{target.address} does not accept the token any more")
    raise ConnectError(f"{target.address} ended the connection (code {code})")
