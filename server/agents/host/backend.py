"""Runs agents through one warm acpx host.

The host (``host.mjs``) embeds acpx: its registry, handshakes, sessions, load and resume, modes and
models. Prompts pass through it to the agent. The agent's messages reach the stdio proxy
(``stdio_proxy.py``) before acpx. If the host fails, its agents and their turns end, and the host is
started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import safe_files
from ...agent_commands import AgentCommand
from ...data_dir import DataDir
from ...errors import Error
from ...reload.state import Inherited
from ...sandbox.sandbox import Sandbox
from ...tasks import Semaphores, Supervisor, Tasks
from ..agent_settings import NO_SETTINGS, AgentSettings
from ..base import (
    Agent,
    AgentInfo,
    AgentObserver,
    AgentSpec,
    AgentTimeouts,
    EnvironOf,
    agent_unavailable,
)
from ..catalog import acpx_command, agent_infos, resolved_command
from ..login_states import LoginStates
from ..output_limits import Backpressure, MessageLimits
from ..parameters import claude_meta
from ..process.beats import Beats
from ..program_output import secrets_in
from ..traits import AgentTraits, traits_of
from .agent import HostAgent
from .calls import CallError, HostGoneError
from .fork import FORK_SECS
from .handover import StdioHandover
from .process import HostProcess
from .reloadable import ReloadableHost
from .stderr import StderrFiles

logger = logging.getLogger(__name__)

LAUNCHER = Path(__file__).parent / "launch.py"
STARTS_AT_ONCE = 4
CLOSES_AT_ONCE = 4
"""The limits are for each app: a start may take `CLAWDFORGE_AGENT_START_TIMEOUT_SECS`."""
PROBE_SECS = 10
SESSIONS = "sessions"
"""The folder of records in acpx's state folder."""


class HostBackend(ReloadableHost):
    """The host process and the agents that it runs.

    Args:
        node: Node's executable.
        data_dir: contains acpx's state folder, and the folder of the agents' stderr.
        agents: the configured agents by name, which precede those in acpx's list.
        environ: the environment of the host and of every agent: the allowed variables.
        start_timeout: seconds for an agent to start and load its session.
        backpressure: the capacity of the log.
        limits: on the agents' output.
        sandbox: restricts every process of an agent.
        supervisor: runs the tasks that must not fail silently.
        inherited: the state of an earlier version of the server.
    """

    can_ask = True
    unsupported_options: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        node: str,
        data_dir: DataDir,
        agents: Mapping[str, AgentCommand],
        environ: Mapping[str, str],
        start_timeout: float,
        backpressure: Backpressure,
        limits: MessageLimits,
        sandbox: Sandbox,
        supervisor: Supervisor | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        super().__init__(inherited)
        supervisor = supervisor or Supervisor()
        self.sandbox = sandbox
        self._data_dir = data_dir
        self._state_dir = state_dir = data_dir.acpx
        self._commands = agents
        self._environ = environ
        hidden = secrets_in(environ, *(command.env for command in agents.values()))
        handover = StdioHandover(
            agents,
            backpressure,
            StderrFiles(data_dir.stderr, supervisor, hidden),
            supervisor,
            sandbox,
            limits,
            environ,
            self.state.handover.name if self.state is not None else None,
        )
        host = HostProcess(
            node=node,
            state_dir=state_dir,
            config={
                "stateDir": str(state_dir),
                "cwd": str(state_dir),
                "launcher": [sys.executable, "-I", "-S", str(LAUNCHER)],
                "agents": {name: list(command.argv) for name, command in agents.items()},
                "startTimeoutMs": int(start_timeout * 1000),
            },
            environ=environ,
            handover_socket=handover.name,
            spawned=handover.announce,
            ended=handover.forget_announced,
            supervisor=supervisor,
        )
        self.connect(host, handover)
        self._starts = Semaphores(STARTS_AT_ONCE)
        self.timeouts = AgentTimeouts()
        self._closes = Semaphores(CLOSES_AT_ONCE)
        self._tasks = Tasks()
        self.logins = LoginStates()
        self._probes: dict[str, asyncio.Task[None]] = {}

    @property
    def environ_of(self) -> EnvironOf:
        """Returns the variables of an app."""
        return self.handover.environ_of

    @environ_of.setter
    def environ_of(self, environ_of: EnvironOf) -> None:
        self.handover.environ_of = environ_of

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of ``acpx`` and ``node``, once the host has started."""
        return self._host.versions

    @property
    def beats(self) -> Beats:
        """Sends the beats that let the agents run."""
        return self._host.beats

    @property
    def restarts(self) -> int:
        """The number of times that the host was started again."""
        return self._host.restarts

    async def start(self) -> None:
        """Start the host and wait until it is ready.

        Raises:
            AcpxError: the host does not start, or acpx or Node has an unsupported version.
        """
        await asyncio.to_thread(self._prepare_state_dir)
        await self.start_handover()
        try:
            await self._host.start()
        except BaseException:
            await self.handover.stop()
            raise

    def _prepare_state_dir(self) -> None:
        self._data_dir.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with safe_files.folder(*self._data_dir.split(self._state_dir / SESSIONS), make=True):
            pass  # acpx would follow a link
        if self.state is not None:
            return  # acpx is running
        # A killed server or host may have left probes, and records that acpx was writing.
        for pattern in ("probe-*", f"{SESSIONS}/probe-*", f"{SESSIONS}/acpx-write*"):
            for path in filter(self._data_dir.is_abandoned, self._state_dir.glob(pattern)):
                with contextlib.suppress(OSError):
                    safe_files.remove(*self._data_dir.split(path))

    async def stop(self) -> None:
        """End all agents, which have a moment to end by themselves, and then the host."""
        await self._host.stop()
        await self.handover.stop()
        await self._tasks.finish(0)

    def traits(self, name: str) -> AgentTraits:
        return traits_of(name, self._commands)

    def agent(
        self, spec: AgentSpec, observer: AgentObserver, settings: AgentSettings = NO_SETTINGS
    ) -> HostAgent:
        agent = HostAgent(
            self._host,
            self.handover,
            self._tasks,
            spec,
            observer,
            settings,
            starts=self._starts,
            closes=self._closes,
            timeouts=self.timeouts,
            load_meta=self._load_meta,
            logins=self.logins,
        )
        self.agents_by_key[spec.key] = agent
        return agent

    async def command(self, name: str) -> tuple[list[str], Mapping[str, str]]:
        command = self._commands.get(name)
        if command is None:
            listed = await self._acpx_agents(name)
            command = acpx_command(name, listed[0] if listed else None)
        return await asyncio.to_thread(resolved_command, command, self._environ)

    def _load_meta(self, spec: AgentSpec) -> Mapping[str, Any]:
        if not self.traits(spec.agent).takes_claude_options:
            return {}
        return claude_meta(spec.parameters, spec.system, self._environ)

    async def capabilities(self, name: str) -> Mapping[str, Any]:
        if name not in self.known_capabilities:
            probe = self._probes.get(name)
            if probe is None:
                probe = self._probes[name] = self._tasks.spawn(self._probe(name), f"probe-{name}")
                probe.add_done_callback(lambda _: self._probes.pop(name))
            await asyncio.wait({probe}, timeout=PROBE_SECS)
        return self.known_capabilities.get(name, {})

    async def _probe(self, name: str) -> None:
        """Start the agent, store the capabilities that it reports, and end it."""
        try:
            folder = self._state_dir / f"probe-{secrets.token_hex(8)}"
            await asyncio.to_thread(safe_files.make_folder, *self._data_dir.split(folder))
        except OSError as error:
            logger.warning("the capabilities of the agent %s are unknown: %s", name, error)
            return
        spec = AgentSpec(key=folder.name, agent=name, cwd=str(folder), permission="ask")
        agent = self.agent(spec, AgentObserver())
        try:
            await agent.start()
        except Error as error:
            logger.warning("the capabilities of the agent %s are unknown: %s", name, error.message)
        finally:
            if isinstance(capabilities := agent.settings.capabilities, dict):
                self.known_capabilities[name] = capabilities
            await agent.hibernate()
            await self.forget(spec.key)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(safe_files.remove, *self._data_dir.split(folder))
                await asyncio.to_thread(self.sandbox.folders.remove, spec.key)

    async def fork(self, agent: Agent, key: str, cwd: str) -> bool:
        if not (isinstance(agent, HostAgent) and await agent.fork_to(key, cwd)):
            return False
        return await self._copy_home(agent.spec.owner, agent.spec.key, key)

    async def fork_later(self, source: str, agent: Agent) -> bool:
        assert isinstance(agent, HostAgent)
        try:
            async with asyncio.timeout(FORK_SECS):
                conversation = await self._host.call("conversation", key=source)
        except (TimeoutError, HostGoneError, CallError, Error) as error:
            logger.info("session %s: its conversation is not known: %r", source, error)
            return False
        owner, key = agent.spec.owner, agent.spec.key
        if not isinstance(conversation, str) or not await self._copy_home(owner, source, key):
            return False
        agent.fork_from(conversation)
        return True

    async def _copy_home(self, owner: str, source: str, key: str) -> bool:
        """Copy the home of a session, in which its agent stores conversations."""
        if self.sandbox.of(owner).is_on:
            try:
                await asyncio.to_thread(self.sandbox.folders.copy_home, source, key)
            except OSError as error:
                logger.warning("session %s: the home was not copied: %s", key, error)
                return False
        return True

    async def forget(self, key: str) -> None:
        await self.handover.stderr.forget(key)
        try:
            await self._host.call("forget", key=key)
        except (HostGoneError, CallError, Error) as error:
            logger.warning("session %s: the record of acpx was not deleted: %s", key, error)

    async def agents(self, only: str | None = None) -> list[AgentInfo]:
        if only in self._commands:  # acpx does not know it
            launches = [{"name": only, "launch": None}]
        else:
            launches = await self._acpx_agents(only)
        return await asyncio.to_thread(
            agent_infos, launches, self._commands, self._environ.get("PATH")
        )

    async def _acpx_agents(self, only: str | None) -> Any:
        for _ in range(2):  # a host that ends meanwhile is replaced
            with contextlib.suppress(HostGoneError):
                return await self._host.call("agents", only=only)
        raise agent_unavailable("the acpx host is not running")
