"""A TCP proxy in the test's event loop, which can cut connections, drop answers and freeze."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class TcpProxy:
    """Forwards connections to a port of 127.0.0.1.

    Attributes:
        target: the port to which new connections go.
        port: at which it listens.
        dropped: the bytes of answers that were dropped since :meth:`drop_answers`.
        delay_secs: by which each piece of data is late.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._drops = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.dropped = 0
        self.delay_secs = 0.0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.thaw()
        self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def drop_answers(self) -> None:
        """Drop what the target sends from now on."""
        self.dropped = 0
        self._drops = True

    def restore(self) -> None:
        """Reset the connections whose answers were dropped, and forward answers again."""
        self._drops = False
        self.cut()

    def freeze(self) -> None:
        """Forward nothing, as a half-open connection, until :meth:`thaw`."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        mine = {writer, target_writer}
        self._writers |= mine
        try:
            await asyncio.wait(
                {
                    asyncio.create_task(self._copy(reader, target_writer, is_answer=False)),
                    asyncio.create_task(self._copy(target_reader, writer, is_answer=True)),
                },
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._writers -= mine
            for one in mine:
                one.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if self.delay_secs:
                    await asyncio.sleep(self.delay_secs)
                if is_answer and self._drops:
                    self.dropped += len(data)
                    continue
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def tcp_proxy(target: int) -> AsyncIterator[TcpProxy]:
    """Run a proxy in front of a port."""
    proxy = TcpProxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
