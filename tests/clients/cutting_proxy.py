"""A proxy that cuts its connections on command, or after some bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class CuttingProxy:
    """Forwards TCP connections to the server at *port*.

    Attributes:
        cut_after: if set, each connection is cut after so many bytes from the server.
        connections: how many connections there were.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.cut_after: int | None = None
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Cut all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(
                "127.0.0.1", self.target
            )
        except OSError:
            writer.transport.abort()
            return
        pair = writer, upstream_writer
        self._writers.update(pair)
        left = self.cut_after
        try:
            up = asyncio.create_task(_copy(reader, upstream_writer))
            with contextlib.suppress(ConnectionError):
                while data := await upstream_reader.read(4096):
                    if left is not None:
                        data = data[:left]
                        left -= len(data)
                    writer.write(data)
                    await writer.drain()
                    if left == 0:
                        break
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
        finally:
            self._writers.difference_update(pair)
            for one in pair:
                one.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def cutting_proxy(url: str) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(int(url.rpartition(":")[2]))
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        proxy.cut()
