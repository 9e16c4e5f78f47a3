"""A WebSocket client that does nothing by itself: it reads, answers and closes on demand."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .harness import Client, Json

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
READY = b'{"type":"ready"'

Sink = Callable[[bytes], None]


class RawSocket:
    """A WebSocket client that reads no more from the kernel than a test requests.

    It sends neither pongs nor close frames by itself.

    Args:
        sink: called with the text frames after ``ready``, as bytes, which `frames` then lacks.

    Attributes:
        frames: all received text frames, in order.
    """

    def __init__(self, connection: socket.socket, sink: Sink | None = None) -> None:
        self.connection = connection
        self._buffer = bytearray()
        self._sink = sink
        self.frames: list[Json] = []
        self.pings = 0
        self.close_code: int | None = None

    @property
    def port(self) -> int:
        return int(self.connection.getsockname()[1])

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_frame(TEXT, json.dumps({"type": kind, **fields}).encode())

    async def request(self, request_id: int, method: str, **params: Any) -> None:
        """Send a JSON-RPC request."""
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        await self.send_frame(TEXT, json.dumps(message).encode())

    async def send_frame(self, opcode: int, payload: bytes = b"") -> None:
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
        mask = b"\0\0\0\0"  # a mask of zeros leaves the payload unchanged
        await asyncio.get_running_loop().sock_sendall(
            self.connection, bytes([0x80 | opcode]) + length + mask + payload
        )

    async def receive(self, size: int) -> bool:
        """Read up to *size* bytes from the kernel. Returns False at the end of the stream."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.connection, size)
        except ConnectionResetError:
            return False
        self.feed(data)
        return bool(data)

    def feed(self, data: bytes) -> None:
        """Parse received bytes into frames."""
        self._buffer += data
        while self._parse():
            pass

    def _parse(self) -> bool:
        if len(self._buffer) < 2:
            return False
        opcode, size, start = self._buffer[0] & 15, self._buffer[1] & 127, 2
        if size > 125:
            start += 2 if size == 126 else 8
            if len(self._buffer) < start:
                return False
            size = int.from_bytes(self._buffer[2:start], "big")
        if len(self._buffer) < start + size:
            return False
        payload = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        if opcode == TEXT and self._sink is not None and not payload.startswith(READY):
            self._sink(payload)
        elif opcode == TEXT:
            self.frames.append(json.loads(payload))
        elif opcode == CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big")
        elif opcode == PING:
            self.pings += 1
        return True

    async def until(self, kind: str, size: int = 65536, **fields: Any) -> Json:
        """Read until a frame with this type and these fields has arrived."""
        seen = 0
        while True:
            for frame in self.frames[seen:]:
                if frame["type"] == kind and fields.items() <= frame.items():
                    return frame
            seen = len(self.frames)
            if not await self.receive(size):
                raise AssertionError(f"closed with {self.close_code} before {kind} {fields}")

    async def until_closed(self, size: int = 65536, *, pause: float = 0) -> int | None:
        """Read until the end. Returns the close code, or None if there was no close frame."""
        while self.close_code is None:
            await asyncio.sleep(pause)
            if not await self.receive(size):
                break
        return self.close_code

    @property
    def last(self) -> int:
        """The ``seq`` of the newest received entry."""
        return next((frame["seq"] for frame in reversed(self.frames) if "seq" in frame), 0)

    @property
    def seqs(self) -> list[int]:
        return [frame["seq"] for frame in self.frames if "seq" in frame]

    def enlarge_receive_buffer(self) -> None:
        """Let the kernel accept large portions from now on."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def abort(self) -> None:
        """Reset the connection, as the kernel does for a process that was killed."""
        if self.connection.fileno() < 0:
            return
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


async def open_connection(url: str, *, receive_buffer: int = 4096) -> socket.socket:
    """A TCP connection to the server at *url*."""
    parts = urlsplit(url)
    connection = socket.socket()
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
    except BaseException:
        connection.close()
        raise
    return connection


def upgrade_request(url: str, path: str, token: str | None) -> bytes:
    """The upgrade request. Without a token, the first frame must be ``auth``."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = [
        f"GET {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *([f"Authorization: Bearer {token}"] if token is not None else []),
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode()


async def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """A response's status line and headers, and the bytes received after them.

    If the server closes the connection, the bytes so far.
    """
    response = b""
    while b"\r\n\r\n" not in response:
        data = await asyncio.get_running_loop().sock_recv(connection, 4096)
        if not data:
            break
        response += data
    head, _, rest = response.partition(b"\r\n\r\n")
    return head, rest


async def open_event_stream(client: Client, session: str) -> socket.socket:
    """Request a session's event stream from its first entry, on a connection that reads nothing."""
    connection = await open_connection(client.url)
    try:
        request = (
            f"GET /sessions/{session}/events?after=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {client.token}\r\nAccept: text/event-stream\r\n\r\n"
        )
        await asyncio.get_running_loop().sock_sendall(connection, request.encode())
    except BaseException:
        connection.close()
        raise
    return connection


async def open_raw_socket(
    client: Client,
    session: str,
    *,
    after: int | None = None,
    receive_buffer: int = 4096,
    sink: Sink | None = None,
) -> RawSocket:
    """Open a session's socket, and wait for ``ready``."""
    query = "" if after is None else f"?after={after}"
    raw = await upgrade(
        client, f"/sessions/{session}/ws{query}", receive_buffer=receive_buffer, sink=sink
    )
    try:
        await raw.until("ready")
    except BaseException:
        raw.connection.close()
        raise
    return raw


async def upgrade(
    client: Client, path: str, *, receive_buffer: int = 4096, sink: Sink | None = None
) -> RawSocket:
    """Open the WebSocket at *path*."""
    connection = await open_connection(client.url, receive_buffer=receive_buffer)
    try:
        request = upgrade_request(client.url, path, client.token)
        await asyncio.get_running_loop().sock_sendall(connection, request)
        head, rest = await read_head(connection)
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise ConnectionRefusedError(head)
        raw = RawSocket(connection, sink)
        raw.feed(rest)
    except BaseException:
        connection.close()
        raise
    return raw
