"""The socket at which the launcher of an agent hands its stdin and stdout over to the server.

The server accepts only a process that the host announced. It connects a :class:`StdioProxy` to the
two descriptors. The process receives the ends of two new pipes, a third pipe for its stderr, and
the plan of its sandbox, which contains the variables to add to its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import marshal
import os
import secrets
import socket
import struct
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec

from ...agent_commands import AgentCommand
from ...codec import dumps, parse_message
from ...descriptors import next_connection, until_readable
from ...reload.state import Inherited, PassedDescriptors
from ...sandbox.folder_locator import FolderError
from ...sandbox.sandbox import Sandbox
from ...tasks import Supervisor, Tasks
from ..base import AgentSpec, EnvironOf, no_environ
from ..output_limits import Backpressure, MessageLimits
from ..process import process_tree
from ..traits import asking_environ, traits_of
from .incomplete_messages import IncompleteMessages
from .proxy_handler import ProxyHandler
from .proxy_state import ProxyState
from .stderr import StderrFiles, StderrState
from .stdio_proxy import StdioProxy

logger = logging.getLogger(__name__)

HANDOVER_SECS = 15.0


class HandoverState(msgspec.Struct, kw_only=True):
    """The handover for the next version of the server.

    Attributes:
        listener: the descriptor of the socket, at which processes may be waiting.
        announced: the pids of processes that have not connected, with the keys of their sessions.
        last_number: of the numbers by which agents are tagged.
    """

    name: str
    listener: int
    announced: dict[int, str]
    last_number: int
    stderr: list[StderrState]


class HandoverTarget(ProxyHandler, Protocol):
    """The agent of a session, for which a process can hand over its stdio."""

    @property
    def spec(self) -> AgentSpec: ...

    def process_connected(self, proxy: StdioProxy) -> None:
        """The proxy of a new process is connected. The process becomes the agent now."""

    def folder_refused(self, reason: str) -> None:
        """A process was refused because the session's folder cannot be used."""


class StdioHandover:
    """The listening socket, and the agents for which processes may hand over their stdio.

    Args:
        commands: agents by name, for the variables that the settings add to their environment.
        backpressure: whether the log accepts more messages.
        stderr: the files for the agents' stderr.
        supervisor: runs the long-lived tasks.
        sandbox: makes the plan by which each agent is restricted.
        limits: the limits on the agents' messages.
        environ: the environment of all agents.
        name: of the socket that an earlier version of the server listens at.

    Attributes:
        name: the name of the abstract socket. A path could be too long, and would need removal.
        living: the tags of the agents that are alive.
        environ_of: returns the variables of an app.
        timeout: seconds within which a launcher must be announced, and must send its descriptors.
    """

    def __init__(
        self,
        commands: Mapping[str, AgentCommand],
        backpressure: Backpressure,
        stderr: StderrFiles,
        supervisor: Supervisor,
        sandbox: Sandbox,
        limits: MessageLimits,
        environ: Mapping[str, str] = MappingProxyType({}),
        name: str | None = None,
    ) -> None:
        self.name = name or f"clawdforge-{os.getpid()}-{secrets.token_hex(8)}"
        self.living = process_tree.LivingAgents()
        self.stderr = stderr
        self.timeout = HANDOVER_SECS
        self.environ_of: EnvironOf = no_environ
        self._sandbox = sandbox
        self._commands = commands
        self._environ = environ
        self._backpressure = backpressure
        self._agents: WeakValueDictionary[str, HandoverTarget] = WeakValueDictionary()
        self._announced: dict[int, str] = {}
        self._announcements: dict[int, asyncio.Future[str]] = {}
        self._last_number = 0
        self._incomplete = IncompleteMessages(limits)
        self._supervisor = supervisor
        self._tasks = Tasks()
        self._accepting = Tasks()
        self._listener: socket.socket | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no connection is being handled."""
        return self._tasks.is_empty

    def start(self) -> None:
        """Listen, and accept connections."""
        listener = self._listener = self._listener or self._listen()
        self._supervisor.spawn(self._accepting, "handover-accept", partial(self._accept, listener))

    async def stop(self) -> None:
        await self._accepting.finish(0)
        await self._tasks.finish(0)
        if self._listener is not None:
            self._listener.close()
        await self.stderr.stop()

    def register(self, agent: HandoverTarget) -> None:
        """Let processes of *agent*'s session hand over their stdio."""
        self._agents[agent.spec.key] = agent

    def unregister(self, agent: HandoverTarget) -> None:
        if self._agents.get(agent.spec.key) is agent:
            del self._agents[agent.spec.key]

    def has_sandbox_of_app(self, proxy: StdioProxy, spec: AgentSpec) -> bool:
        """Whether a process is in the sandbox that its app has by now."""
        return proxy.sandbox is None or proxy.sandbox is self._sandbox.of(spec.owner)

    def announce(self, pid: int, key: str) -> None:
        """Note that the host has started *pid* for the session of that key."""
        announcement = self._announcements.get(pid)
        if announcement is not None and not announcement.done():
            announcement.set_result(key)
        else:
            self._announced[pid] = key

    def forget_announced(self) -> None:
        """Note that the host has ended, and with it all announced processes."""
        self._announced.clear()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind("\0" + self.name)
        listener.listen(128)
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            connection = await next_connection(listener)
            self._tasks.spawn(self._hand_over(connection), "handover")

    async def _hand_over(self, connection: socket.socket) -> None:
        """Connect a proxy to the process at the other end, if the host announced it."""
        with connection:
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            pid, uid, _ = struct.unpack("3i", credentials)
            try:
                key = await self._announced_key(pid) if uid == os.getuid() else None
            except TimeoutError:
                key = None
            agent = self._agents.get(key) if key is not None else None
            if agent is None:
                logger.warning("refused the connection of process %d: it is not an agent", pid)
                return
            try:
                await self._connect_proxy(connection, pid, agent)
            except OSError as error:  # the launcher has ended, or no descriptors are left
                logger.warning("process %d cannot become an agent: %s", pid, error.strerror)

    async def _connect_proxy(
        self, connection: socket.socket, pid: int, agent: HandoverTarget
    ) -> None:
        async with asyncio.timeout(self.timeout):
            await until_readable(connection)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
        # Unique to the process: ending one process of a session must not end the next one.
        value = f"{agent.spec.key}:{secrets.token_hex(4)}"
        with contextlib.ExitStack() as ours:
            for descriptor in descriptors:
                ours.callback(os.close, descriptor)
            if len(descriptors) != 2:
                return
            environ = {**self._environ_of(agent.spec), process_tree.AGENT_VARIABLE: value}
            try:
                sandbox = self._sandbox.of(agent.spec.owner)
                plan = await asyncio.to_thread(sandbox.plan, agent.spec, environ)
            except FolderError as error:
                logger.warning("process %d may not become an agent: %s", pid, error)
                agent.folder_refused(str(error))
                return
            self._last_number = 1 + self._last_number % process_tree.MAX_NUMBER
            env_tag = process_tree.env_tag(process_tree.AGENT_VARIABLE, value)
            rlimit_tag = process_tree.tag_process(
                pid, self._last_number, lambda tag: self.living.add(tag, env_tag)
            )
            try:
                proxy = self._new_proxy(pid, agent, env_tag, rlimit_tag)
                ours.pop_all()  # the proxy owns them now
                proxy.sandbox = sandbox
                ends = [*await proxy.connect(*descriptors)]
            except BaseException:
                self.living.remove(rlimit_tag, env_tag)
                raise
            self.living.add(rlimit_tag, env_tag)  # the target removes it in the end
            for descriptor in ends:
                ours.callback(os.close, descriptor)
            ends.append(await self.stderr.open(agent.spec.key, pid))
            ours.callback(os.close, ends[-1])
            agent.process_connected(proxy)
            # As from JSON, but in a form that the launcher reads without the parser of JSON.
            data = marshal.dumps(parse_message(dumps(plan)))
            sent = socket.send_fds(connection, [data], ends)
            await asyncio.get_running_loop().sock_sendall(connection, data[sent:])

    def _new_proxy(
        self,
        pid: int,
        agent: HandoverTarget,
        env_tag: bytes,
        rlimit_tag: process_tree.RlimitTag | None,
        pidfd: int | None = None,
    ) -> StdioProxy:
        return StdioProxy(
            pid,
            agent,
            self._backpressure,
            env_tag=env_tag,
            rlimit_tag=rlimit_tag,
            owner=lambda: agent.spec.owner,
            incomplete=self._incomplete,
            pidfd=pidfd,
        )

    async def _announced_key(self, pid: int) -> str | None:
        """Wait until the host announces *pid*. Return the session's key.

        Returns:
            None if another connection of the process waits already.

        Raises:
            TimeoutError: the host has not announced the process in time.
        """
        if pid in self._announced:
            return self._announced.pop(pid)
        if pid in self._announcements:
            return None
        announcement: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._announcements[pid] = announcement
        try:
            async with asyncio.timeout(self.timeout):
                return await announcement
        finally:
            del self._announcements[pid]

    def _environ_of(self, spec: AgentSpec) -> Mapping[str, str]:
        command = self._commands.get(spec.agent)
        own = command.env if command else {}
        traits = traits_of(spec.agent, self._commands)
        own = {**own, **self.environ_of(spec.owner), **spec.parameters.environ}
        return {**own, **asking_environ(traits, spec.permission, {**self._environ, **own})}

    # A reload of the server.

    def pack(self, passed: PassedDescriptors) -> HandoverState:
        assert self._listener is not None
        return HandoverState(
            name=self.name,
            listener=passed.add(self._listener.fileno()),
            announced=dict(self._announced),
            last_number=self._last_number,
            stderr=self.stderr.pack(passed),
        )

    async def restore(self, state: HandoverState, inherited: Inherited) -> None:
        """Take over the socket of an earlier version of the server. :meth:`start` follows."""
        self._listener = socket.socket(fileno=inherited.claim(state.listener))
        self._listener.setblocking(False)
        self._announced = state.announced
        self._last_number = state.last_number
        await self.stderr.restore(state.stderr, inherited)

    async def restore_proxy(
        self, agent: HandoverTarget, state: ProxyState, inherited: Inherited
    ) -> StdioProxy:
        """Return the proxy of a process that an earlier version of the server has connected.

        It is paused.
        """
        pidfd = inherited.claim(state.pidfd)
        proxy = self._new_proxy(state.pid, agent, state.env_tag, state.rlimit_tag, pidfd)
        # A prewarmed agent may get another sandbox with its session's app.
        proxy.sandbox = self._sandbox.of(agent.spec.owner) if state.has_sandbox else self._sandbox
        await proxy.restore(state, inherited)
        self.living.add(proxy.rlimit_tag, proxy.env_tag)
        return proxy
