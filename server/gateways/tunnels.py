"""Takes the listening sockets of programs that have a network of their own.

A launcher connects before the restriction and sends the secret of its session. The first program
in the sandbox (``sandbox/network.py``) then sends sockets that listen in its network namespace, and
the server accepts connections at them until the sandbox has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable

from ..descriptors import next_connection, until_readable
from ..tasks import Supervisor, Tasks

logger = logging.getLogger(__name__)

TUNNEL_SECS = 30.0
MAX_LISTENERS = 4

StopListening = Callable[[], Awaitable[None]]
ServeGateway = Callable[[socket.socket], Awaitable[StopListening]]
"""Serves a gateway at a listening socket, and returns how to stop it."""


class Tunnels:
    """The abstract socket at which launchers connect.

    Args:
        knows: returns whether a secret belongs to a session.
        gateways: how to serve each gateway, by its port.
        supervisor: runs the task that accepts connections.

    Attributes:
        name: the name of the socket.
        open_count: the number of sandboxes with open ports.
    """

    def __init__(
        self,
        knows: Callable[[str], bool],
        gateways: dict[int, ServeGateway],
        supervisor: Supervisor,
    ) -> None:
        self.name = f"clawdforge-tunnel-{os.getpid()}-{secrets.token_hex(8)}"
        self._knows = knows
        self._gateways = gateways
        self._supervisor = supervisor
        self._tasks = Tasks()
        self._listener: socket.socket | None = None
        self.open_count = 0

    def start(self) -> None:
        self._listener = listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind("\0" + self.name)
        listener.listen(128)
        self._supervisor.spawn(self._tasks, "tunnels", self._accept)

    async def stop(self) -> None:
        await self._tasks.finish(0)
        if self._listener is not None:
            self._listener.close()

    async def _accept(self) -> None:
        assert self._listener is not None
        while True:
            connection = await next_connection(self._listener)
            self._tasks.spawn(self._open(connection), "tunnel")

    async def _open(self, connection: socket.socket) -> None:
        """Serve the gateways at the sockets of one sandbox until it ends."""
        async with contextlib.AsyncExitStack() as stack:
            with connection:
                credentials = connection.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
                )
                pid, uid, _ = struct.unpack("3i", credentials)
                try:
                    process = os.pidfd_open(pid)
                    stack.callback(os.close, process)
                    async with asyncio.timeout(TUNNEL_SECS):
                        listeners = await self._receive(connection)
                except (OSError, ValueError, TimeoutError) as error:
                    logger.warning("a sandbox cannot use the proxies, without sockets: %r", error)
                    return
                for listener in listeners:
                    stack.callback(listener.close)
                if uid != os.getuid():
                    return
                for listener in listeners:
                    serve = self._gateways.get(listener.getsockname()[1])
                    if serve is not None:
                        stack.push_async_callback(await serve(listener))
                await asyncio.get_running_loop().sock_sendall(connection, b"+")
            self.open_count += 1
            stack.callback(self._note_closed)
            await until_readable(process)

    def _note_closed(self) -> None:
        self.open_count -= 1

    async def _receive(self, connection: socket.socket) -> list[socket.socket]:
        """Read the secret, and receive the sockets.

        Raises:
            ValueError: the secret belongs to no session.
        """
        loop = asyncio.get_running_loop()
        secret = b""
        while not secret.endswith(b"\n"):
            piece = await loop.sock_recv(connection, 1)
            if not piece or len(secret) > 256:
                raise ValueError("no secret")
            secret += piece
        if not self._knows(secret.decode(errors="replace").strip()):
            raise ValueError("not the secret of a session")
        await until_readable(connection.fileno())
        _, descriptors, _, _ = socket.recv_fds(connection, 1, MAX_LISTENERS)
        with contextlib.ExitStack() as received:
            for descriptor in descriptors:
                received.callback(os.close, descriptor)
            listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            received.pop_all()
        return listeners
