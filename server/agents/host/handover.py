"""Where agents attach: the socket at which a launcher hands its stdio over.

Only a process that the host announced may attach. It gets the ends of two fresh
pipes, a third for its stderr, and what its environment adds; the seam stays in
the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import socket
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from weakref import WeakValueDictionary

from ...codec import dumps
from ...config import AgentCommand
from ...tasks import Supervisor, Tasks
from ..base import AgentSpec, Backpressure, MessageLimits, real_folder
from ..process import process_tree
from ..traits import asking_environ, traits_of
from .stderr import StderrFiles
from .stdio_proxy import Handler, StdioProxy, Unfinished

logger = logging.getLogger(__name__)

ATTACH_SECS = 15


class HandoverTarget(Handler, Protocol):
    """An agent that a process can attach for."""

    spec: AgentSpec

    def attached(self, seam: StdioProxy) -> None:
        """The seam is in place; the process starts now."""

    def misplaced(self) -> None:
        """The process is refused: it is not in the session's folder."""


class StdioHandover:
    """The listening socket, and the agents that are expected at it.

    Args:
        commands: agents by name, for what their environment adds.
        pressure: whether the log has room.
        stderr: where their stderr is kept.
        supervisor: of the long-lived tasks.
        data_dir: the data folder, the path of which may lead through links.
        limits: of what the agents write.
        environ: what all of them have.
    """

    def __init__(
        self,
        commands: Mapping[str, AgentCommand],
        pressure: Backpressure,
        stderr: StderrFiles,
        supervisor: Supervisor,
        data_dir: Path,
        limits: MessageLimits,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._data_dir = data_dir
        self._commands = commands
        self._environ = environ
        self._pressure = pressure
        self.stderr = stderr
        self.name = f"clawdforge-{os.getpid()}-{secrets.token_hex(8)}"
        """Of an abstract socket: a path could be too long, and would have to be removed."""
        self._agents: WeakValueDictionary[str, HandoverTarget] = WeakValueDictionary()
        self._announced: dict[int, str] = {}
        self._arrivals: dict[int, asyncio.Future[str]] = {}
        self._numbers = itertools.count()
        self.living = process_tree.LivingAgents()
        self._limits = limits
        self._unfinished = Unfinished(limits.per_app)
        self._supervisor = supervisor
        self._tasks = Tasks()
        self._accepting = Tasks()
        self._listener: socket.socket | None = None

    def start(self) -> None:
        listener = self._listener = self._listen()
        self._supervisor.spawn(self._accepting, "seam-accept", partial(self._accept, listener))

    async def stop(self) -> None:
        await self._accepting.finish(0)
        await self._tasks.finish(0)
        if self._listener is not None:
            self._listener.close()
        await self.stderr.stop()

    def register(self, agent: HandoverTarget) -> None:
        """Expect processes of *agent*'s session."""
        self._agents[agent.spec.key] = agent

    def unregister(self, agent: HandoverTarget) -> None:
        if self._agents.get(agent.spec.key) is agent:
            del self._agents[agent.spec.key]

    def announce(self, pid: int, key: str) -> None:
        """The host has started *pid* for the session of that key."""
        arrival = self._arrivals.get(pid)
        if arrival is not None and not arrival.done():
            arrival.set_result(key)
        else:
            self._announced[pid] = key

    def forget_announced(self) -> None:
        """The host has ended, and so has whoever had not attached yet."""
        self._announced.clear()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind("\0" + self.name)
        listener.listen(128)
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, for one
                logger.error("the seam cannot accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            self._tasks.spawn(self._attach(connection), "seam-attach")

    async def _attach(self, connection: socket.socket) -> None:
        """Let an announced agent in, and put the seam between it and acpx."""
        with connection:
            connection.setblocking(False)
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            pid, uid, _ = struct.unpack("3i", credentials)
            try:
                key = await self._key_of(pid) if uid == os.getuid() else None
            except TimeoutError:
                key = None
            agent = self._agents.get(key) if key is not None else None
            if agent is None:
                logger.warning("refused process %d at the seam: the host did not start it", pid)
                return
            try:
                await self._put_between(connection, pid, agent)
            except OSError as error:  # it died in its launcher; or no descriptors are left
                logger.warning("process %d cannot attach: %s", pid, error.strerror)

    async def _put_between(
        self, connection: socket.socket, pid: int, agent: HandoverTarget
    ) -> None:
        await _readable(connection)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
        # Its own for each process: ending one agent must not end the next.
        value = f"{agent.spec.key}:{secrets.token_hex(4)}"
        with contextlib.ExitStack() as ours:
            for descriptor in descriptors:
                ours.callback(os.close, descriptor)
            if len(descriptors) != 2:
                return
            if not await asyncio.to_thread(_is_in, pid, agent.spec.cwd, self._data_dir):
                logger.warning("process %d was started in another folder: refused", pid)
                agent.misplaced()
                return
            number = 1 + next(self._numbers) % process_tree.MAX_NUMBER
            seam = StdioProxy(
                pid,
                agent,
                self._pressure,
                env_tag=process_tree.env_tag(process_tree.AGENT_VARIABLE, value),
                rlimit_tag=process_tree.tag_process(pid, number),
                owner=lambda: agent.spec.owner,
                unfinished=self._unfinished,
                max_message_bytes=self._limits.each,
            )
            ours.pop_all()  # they are the seam's
            ends = [*await seam.join(*descriptors)]
            self.living.add(seam.rlimit_tag, seam.env_tag)  # until the seam tells that it has gone
            for descriptor in ends:
                ours.callback(os.close, descriptor)
            ends.append(await self.stderr.open(agent.spec.key, pid))
            ours.callback(os.close, ends[-1])
            agent.attached(seam)
            environ = {**self._environ_of(agent.spec), process_tree.AGENT_VARIABLE: value}
            socket.send_fds(connection, [dumps(environ)], ends)

    async def _key_of(self, pid: int) -> str | None:
        """The key that the host announced *pid* for; None for a second connection of it."""
        if pid in self._announced:
            return self._announced.pop(pid)
        if pid in self._arrivals:
            return None
        arrival: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._arrivals[pid] = arrival
        try:
            async with asyncio.timeout(ATTACH_SECS):
                return await arrival
        finally:
            del self._arrivals[pid]

    def _environ_of(self, spec: AgentSpec) -> Mapping[str, str]:
        command = self._commands.get(spec.agent)
        own = command.env if command else {}
        traits = traits_of(spec.agent, self._commands)
        return {**own, **asking_environ(traits, spec.permission, {**self._environ, **own})}


def _is_in(pid: int, cwd: str, data_dir: Path) -> bool:
    """Whether a launcher is in its session's own folder, where the agent will be, too.

    The path was followed again when it was started, and links may have been put in its way.
    """
    try:
        return os.readlink(f"/proc/{pid}/cwd") == real_folder(cwd, data_dir)  # noqa: PTH115
    except OSError:
        return False  # it has ended


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _set, future)
    try:
        async with asyncio.timeout(ATTACH_SECS):
            await future
    finally:
        loop.remove_reader(connection)
