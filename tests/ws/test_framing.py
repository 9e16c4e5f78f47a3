"""WebSocket frames as bytes, read back by aiohttp's own reader."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.base_protocol import BaseProtocol

from server.sessions.log_pages import Batch
from server.ws.framing import batch_frames, ping_frame, pong_frame, text_frame


async def read_by_aiohttp(data: bytes) -> list[tuple[WSMsgType, Any]]:
    loop = asyncio.get_running_loop()
    queue = WebSocketDataQueue(BaseProtocol(loop), 1 << 30, loop=loop)
    reader = WebSocketReader(queue, 0, compress=False, decode_text=False)
    reader.feed_data(data)
    messages = []
    for _ in range(len(queue._buffer)):
        message = await queue.read()
        messages.append((message.type, message.data))
    return messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
async def test_text_frame_of_any_size_is_read_by_aiohttp(size: int) -> None:
    payload = b"x" * size
    frame = text_frame(payload)
    assert await read_by_aiohttp(frame) == [(WSMsgType.TEXT, payload)]


async def test_joined_frames_are_read_separately() -> None:
    payloads = [b"{}", b"y" * 70_000, b"", b"z" * 126]
    wire = b"".join(map(text_frame, payloads))
    wire += ping_frame() + pong_frame(b"") + pong_frame(b"p" * 125)
    assert await read_by_aiohttp(wire) == [
        *((WSMsgType.TEXT, payload) for payload in payloads),
        (WSMsgType.PING, b""),
        (WSMsgType.PONG, b""),
        (WSMsgType.PONG, b"p" * 125),
    ]


def test_batch_is_framed_once_for_all_subscribers() -> None:
    batch = Batch(3, 4, b'{"a":1}\n{"b":2}')
    frames = batch_frames(batch)
    assert frames == text_frame(b'{"a":1}') + text_frame(b'{"b":2}')
    assert batch_frames(batch) is frames
