"""The upgrade of an HTTP request to a WebSocket connection, and the size of a message."""

from __future__ import annotations

from aiohttp import HttpVersion11, hdrs, web

from ..codec import MAX_CONTAINERS, MAX_VALUES, call_off_loop, has_too_many_values
from ..errors import bad_request

MAX_FRAME_BYTES = 4 << 20
HARD_MAX_FRAME_BYTES = 2 * MAX_FRAME_BYTES
"""The limit for aiohttp, which aborts while the client still sends: the client sees a reset and
no close code. Above ``MAX_FRAME_BYTES`` the server closes in order."""
TOO_BIG = (
    f"a frame has at most {MAX_FRAME_BYTES} bytes, {MAX_CONTAINERS} objects and arrays and"
    f" {MAX_VALUES} values: do not send this one again"
)


def new_websocket(
    request: web.Request, protocols: tuple[str, ...] = ()
) -> web.WebSocketResponse[bool]:
    """Check an upgrade request and return its response, which is not prepared.

    Raises:
        Error: ``bad_request``; a fault that aiohttp does not detect.
    """
    if request.version < HttpVersion11:
        raise bad_request("a WebSocket needs HTTP/1.1")
    if not request.headers.get(hdrs.SEC_WEBSOCKET_KEY, "").isascii():
        raise bad_request("Sec-WebSocket-Key: must be base64")
    return web.WebSocketResponse(
        protocols=protocols,
        max_msg_size=HARD_MAX_FRAME_BYTES,
        compress=False,
        autoping=False,
        decode_text=False,
        timeout=3,
    )


async def is_too_big(data: bytes) -> bool:
    """Whether a message has too many bytes or too many JSON values."""
    if len(data) > MAX_FRAME_BYTES:
        return True
    return await call_off_loop(has_too_many_values, data)
