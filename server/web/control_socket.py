"""The operator's socket: a Unix socket in the data folder, for commands to a running server.

Access to the data folder is access to everything that the server stores. A request that arrives
through this socket from the server's own user or from root therefore needs no admin token. Agents
run as the same user: they and all other processes that the server started are recognized by their
ancestors and refused. Commands work even if the admin token is lost, and no command line contains
it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import struct
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Iterator

from aiohttp import web

from ..agents.process import process_tree
from ..data_dir import DataDir

logger = logging.getLogger(__name__)

SO_PEERPIDFD = 77
FORWARDED_OPERATOR = web.RequestKey("forwarded_operator", bool)
"""Whether the operator sent a request that another node has passed on."""
_CREDENTIALS = struct.Struct("iII")
"""The kernel's ``struct ucred``: pid, uid, gid."""


@contextlib.contextmanager
def address(data_dir: DataDir) -> Iterator[str]:
    """Yield a short path of the socket, through a descriptor of its folder.

    The path of a Unix socket has at most 107 bytes, and the folder's path may be longer.
    """
    path = data_dir.control_socket
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def listening(
    runner: web.AppRunner, data_dir: DataDir, inherited: int | None = None
) -> AsyncIterator[int | None]:
    """Also serve requests at the operator's socket, if the file system supports sockets.

    Args:
        inherited: the descriptor of the socket at which an earlier version of the server listens.

    Yields:
        The descriptor of the socket; None if the file system does not support sockets.
    """
    if inherited is None:
        listening_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        listening_socket = socket.socket(fileno=inherited)
    site = web.SockSite(runner, listening_socket)
    try:
        if inherited is None:
            data_dir.control_socket.unlink(missing_ok=True)  # left by a killed server
            # Before it has a name, which an agent could replace.
            os.fchmod(listening_socket.fileno(), 0o600)
            with address(data_dir) as path:
                listening_socket.bind(path)
        await site.start()
    except OSError as error:
        listening_socket.close()
        logger.warning("no operator's socket, so commands need a stopped server: %s", error)
        yield None
        return
    try:
        yield listening_socket.fileno()
    finally:
        with contextlib.suppress(OSError):  # an agent may have replaced it by a folder
            data_dir.control_socket.unlink(missing_ok=True)
        await site.stop()  # which closes the socket


def is_server_socket(connection: TransportSocket | socket.socket, data_dir: DataDir) -> bool:
    """Return whether a server listens at the operator's socket in the data folder.

    An agent can put a socket of its own there. Processes below a supervisor are recognized by their
    resource limits, which they cannot raise.

    Args:
        connection: to the socket.
    """
    pid, uid = _credentials_of(connection)
    if uid not in (0, os.getuid(), data_dir.path.stat().st_uid):
        return False
    try:
        return pid == 0 or not process_tree.is_supervised(pid)
    except OSError:
        return False  # the process has ended


def is_operator(request: web.Request) -> bool:
    """Return whether *request* came through the operator's socket from its user or from root."""
    if FORWARDED_OPERATOR in request:
        return request[FORWARDED_OPERATOR]
    connection = request.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return False
    pid, uid = _credentials_of(connection)
    return uid in (0, os.getuid()) and not _is_descendant(connection, pid)


def _credentials_of(connection: TransportSocket | socket.socket) -> tuple[int, int]:
    """Return the pid and the uid of the process at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def _is_descendant(connection: TransportSocket, pid: int) -> bool:
    """Return whether an agent, or another process that the server started, has connected.

    Those run as the server's own user. The server inherits their orphans, so it is an ancestor of
    each of them.
    """
    if pid == 0:
        return False  # a process outside of our pid namespace, which contains all descendants
    try:
        return process_tree.descends_from(pid, os.getpid()) or not _is_alive(connection)
    except OSError:  # the process or one of its ancestors has ended
        return True


def _is_alive(connection: TransportSocket) -> bool:
    """Return whether the process that connected is alive, so that its pid is not reused."""
    try:
        descriptor = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        return error.errno == errno.ENOPROTOOPT  # unknown before Linux 6.5
    try:
        signal.pidfd_send_signal(descriptor, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # root's process
    finally:
        os.close(descriptor)
    return True
