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
_CREDENTIALS = struct.Struct("iII")
"""The kernel's ``struct ucred``: pid, uid, gid."""


@contextlib.contextmanager
def address(data_dir: DataDir) -> Iterator[str]:
    """The socket's path, through the descriptor of its folder, whose path may be long.

    A Unix socket's path may have 107 bytes.
    """
    path = data_dir.control_socket
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def listening(runner: web.AppRunner, data_dir: DataDir) -> AsyncIterator[None]:
    """Also serve requests at the operator's socket, if the file system supports sockets."""
    listening_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    site = web.SockSite(runner, listening_socket)
    try:
        data_dir.control_socket.unlink(missing_ok=True)  # a killed server's
        # Before it has a name, which an agent could replace.
        os.fchmod(listening_socket.fileno(), 0o600)
        with address(data_dir) as path:
            listening_socket.bind(path)
        await site.start()
    except OSError as error:
        listening_socket.close()
        logger.warning("no operator's socket, so commands need a stopped server: %s", error)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # an agent may have put a folder there
            data_dir.control_socket.unlink(missing_ok=True)
        await site.stop()  # which closes the socket


def is_servers(connection: TransportSocket | socket.socket, data_dir: DataDir) -> bool:
    """Whether it is a server that listens at the operator's socket in the data folder.

    An agent can put a socket of its own there. What a supervisor has started, and all that comes of
    it, is known by its limits, which it cannot raise.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid not in (0, os.getuid(), data_dir.path.stat().st_uid):
        return False
    try:
        return pid == 0 or not process_tree.is_supervised(pid)
    except OSError:
        return False  # it has ended


def is_operator(request: web.Request) -> bool:
    """Whether the request came by the operator's socket, from the server's own user or root."""
    peer = request.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return False
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (0, os.getuid()) and not _is_below_us(peer, pid)


def _is_below_us(peer: TransportSocket, pid: int) -> bool:
    """Whether an agent, or another process that the server started, has connected *peer*.

    They are of the server's own user. The server inherits their orphans, so it is among the
    ancestors of each of them.
    """
    if pid == 0:
        return False  # it is outside of our namespace of pids, in which all below us is
    try:
        return process_tree.descends_from(pid, os.getpid()) or not _still_is(peer)
    except OSError:  # an ancestor, or the process itself, has ended
        return True


def _still_is(peer: TransportSocket) -> bool:
    """Whether the process that connected is alive: then its pid is not another's by now."""
    try:
        descriptor = peer.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        return error.errno == errno.ENOPROTOOPT  # before Linux 6.5 it cannot be told
    try:
        signal.pidfd_send_signal(descriptor, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # root's
    finally:
        os.close(descriptor)
    return True
