"""The operator's door: a Unix socket in the data folder, for commands beside a running server.

Who may open the data folder is the operator, since all that is kept is in it:
so a request that comes by this socket, from the server's own user or root,
needs no admin token. It works where the token is lost, and puts none into a
command line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from aiohttp import web

logger = logging.getLogger(__name__)

NAME = "control.sock"
_CREDENTIALS = struct.Struct("iII")
"""The kernel's ``struct ucred``: pid, uid, gid."""


@contextlib.contextmanager
def address(folder: Path) -> Iterator[str]:
    """The socket's path, by the folder's descriptor: a long name of it does not matter.

    A Unix socket's path may have 107 bytes.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def listening(runner: web.AppRunner, folder: Path) -> AsyncIterator[None]:
    """Answer at the socket, too, where the folder can hold one."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    site = web.SockSite(runner, door)
    try:
        (folder / NAME).unlink(missing_ok=True)  # a killed server's
        with address(folder) as path:
            door.bind(path)
        (folder / NAME).chmod(0o600)
        await site.start()
    except OSError as error:
        door.close()
        logger.warning("no operator's socket, so commands need a stopped server: %s", error)
        yield
        return
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        await site.stop()  # which closes the socket


def is_operator(request: web.Request) -> bool:
    """Whether the request came by the operator's socket, from the server's own user or root."""
    peer = request.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return False
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (0, os.getuid())
