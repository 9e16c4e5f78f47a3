"""Runs agents through acpx's command line: one ``acpx prompt`` for each turn.

The simple backend, and the fallback of the host. The first prompt of a session leaves an *owner*
process of acpx, which keeps the agent for later prompts. All processes of a session are descendants
of one spawner (``programs.py``) and end with it.

Its costs: each command starts Node again, and a prompt waits for the second of silence in which
acpx ends the turn before it. The output of an agent between turns is lost, messages have acpx's
format, and acpx decides permission requests by a fixed policy.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

from ... import installation, safe_files
from ...agent_commands import AgentCommand
from ...codec import parse_message
from ...data_dir import DataDir
from ...reload.program import ReloadError
from ...reload.state import PassedDescriptors
from ...sandbox.sandbox import Sandbox
from ...tasks import Tasks
from ..agent_settings import NO_SETTINGS, AgentSettings
from ..agent_state import AgentState
from ..base import (
    Agent,
    AgentInfo,
    AgentObserver,
    AgentSpec,
    AgentTimeouts,
    EnvironOf,
    agent_unavailable,
    no_environ,
)
from ..catalog import AcpxError, acpx_command, agent_infos, check_versions, resolved_command
from ..login_states import LoginStates
from ..output_limits import Backpressure, MessageLimits
from ..reloading import NothingToRestore
from ..traits import AgentTraits, asking_environ, traits_of
from .agent import CliAgent
from .commands import Acpx, AcpxCommands, has_sockets, socket_folder

logger = logging.getLogger(__name__)

CATALOG = installation.NODE_PROGRAMS / "agents" / "cli" / "catalog.mjs"
CATALOG_SECS = 20
SETTING_SECS = 30.0
"""The time for a change of a setting, each of which starts a Node process."""


class CliBackend(NothingToRestore):
    """A :class:`Backend` that runs acpx's command line.

    Args:
        node: Node's executable.
        data_dir: contains the folder of the sessions' acpx homes.
        agents: the configured agents by name, which precede those in acpx's list.
        environ: the environment of acpx and of every agent: the allowed variables.
        start_timeout: seconds for an agent to start and load its session.
        backpressure: the capacity of the log.
        limits: on the agents' output.
        sandbox: restricts every process of an agent.
    """

    can_ask = False
    unsupported_options = frozenset(
        {"additional_directories", "allowed_tools", "max_turns", "client_capabilities"}
    )
    restarts = 0  # there is no host

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
    ) -> None:
        self.environ_of: EnvironOf = no_environ
        self.sandbox = sandbox
        self._node = node
        self._data_dir = data_dir
        self._homes = data_dir.acpx_cli / "homes"
        self._no_mcp = data_dir.own_folder() / "acpx-cli" / "no-mcp.json"
        self._commands = agents
        self._environ = environ
        self._start_timeout = start_timeout
        self._backpressure = backpressure
        self._limits = limits
        self._script = ""
        self._tasks = Tasks()
        self.timeouts = AgentTimeouts(setting=SETTING_SECS)
        self._agents: WeakSet[CliAgent] = WeakSet()
        self.logins = LoginStates()
        self._query: asyncio.Task[dict[str, Any]] | None = None
        self.versions: dict[str, str] = {}

    # The methods of a carrier; see `reload/reloader.py`.

    name = "cli"

    def is_settled(self) -> bool:
        return not any(agent.state is AgentState.PROMPTING for agent in self._agents)

    async def freeze(self) -> None:
        if not self.is_settled():
            raise ReloadError("a turn runs, which the cli backend cannot keep; try again later")

    def thaw(self) -> None:
        """Do nothing."""

    def pack(self, passed: PassedDescriptors) -> None:
        return None

    def children(self) -> Sequence[int]:
        return []

    async def start(self) -> None:
        """Create the folders and check the installed acpx.

        Raises:
            AcpxError: acpx is not installed, or has another version.
        """
        await asyncio.to_thread(self._prepare)
        catalog = await self._query_catalog()
        self.versions = catalog["versions"]
        check_versions(self.versions)
        self._script = catalog["cli"]

    def _prepare(self) -> None:
        self._data_dir.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._homes, self._no_mcp.parent):
            with safe_files.folder(*self._data_dir.split(folder), make=True):
                pass
        no_mcp = self._data_dir.split(self._no_mcp)
        safe_files.remove(*no_mcp)
        with safe_files.new_file(*no_mcp) as file:
            file.write(b'{"mcpServers": []}\n')
        for home in self._homes.iterdir():  # left by a server that was killed
            if not (self._data_dir.is_shared and has_sockets(home)):
                shutil.rmtree(socket_folder(home), ignore_errors=True)

    async def stop(self) -> None:
        """End all agents; they have a moment to end by themselves."""
        await asyncio.gather(*(agent.hibernate() for agent in tuple(self._agents)))
        await self._tasks.finish(0)
        if self._query is not None:
            self._query.cancel()
            await asyncio.gather(self._query, return_exceptions=True)

    def traits(self, name: str) -> AgentTraits:
        return traits_of(name, self._commands)

    def agent(
        self, spec: AgentSpec, observer: AgentObserver, settings: AgentSettings = NO_SETTINGS
    ) -> CliAgent:
        agent = CliAgent(
            spec,
            observer,
            settings,
            find_commands=self._find_commands,
            tasks=self._tasks,
            start_timeout=self._start_timeout,
            timeouts=self.timeouts,
            max_message_bytes=self._limits.message_bytes,
            backpressure=self._backpressure,
            logins=self.logins,
        )
        self._agents.add(agent)
        return agent

    async def _find_commands(self, spec: AgentSpec) -> AcpxCommands:
        command = self._commands.get(spec.agent)
        own = {
            **(command.env if command else {}),
            **self.environ_of(spec.owner),
            **spec.parameters.environ,
        }
        traits, environ = self.traits(spec.agent), {**self._environ, **own}
        return AcpxCommands(
            Acpx(self._node, self._script, self._environ, self._no_mcp),
            spec,
            self._data_dir,
            self._homes / spec.key,
            self.sandbox,
            agent_argv=command.argv if command else await self._find_agent(spec.agent),
            agent_environ={**own, **asking_environ(traits, spec.permission, environ)},
        )

    async def _find_agent(self, name: str) -> Sequence[str]:
        """The command of an agent in acpx's own list."""
        matching = [
            agent for agent in (await self._catalog_for_client())["agents"] if agent["name"] == name
        ]
        return acpx_command(name, matching[0] if matching else None).argv

    async def command(self, name: str) -> tuple[list[str], Mapping[str, str]]:
        configured = self._commands.get(name)
        command = configured or AgentCommand(tuple(await self._find_agent(name)))
        return await asyncio.to_thread(resolved_command, command, self._environ)

    async def fork(self, agent: Agent, key: str, cwd: str) -> bool:
        return False  # acpx's command line cannot

    async def fork_later(self, source: str, agent: Agent) -> bool:
        return False

    async def forget(self, key: str) -> None:
        home = self._data_dir.split(self._homes / key)
        try:
            await asyncio.to_thread(safe_files.remove, *home)
        except OSError as error:
            logger.error("session %s: the record of acpx was not deleted: %s", key, error)

    async def agents(self, only: str | None = None) -> list[AgentInfo]:
        if only in self._commands:  # acpx does not know it
            launches = [{"name": only, "launch": None}]
        else:
            listed = (await self._catalog_for_client())["agents"]
            launches = [agent for agent in listed if only in (None, agent["name"])]
        return await asyncio.to_thread(
            agent_infos, launches, self._commands, self._environ.get("PATH")
        )

    async def capabilities(self, name: str) -> Mapping[str, Any]:
        return {}  # acpx's commands do not report them

    async def _catalog_for_client(self) -> dict[str, Any]:
        try:
            return await self._query_catalog()
        except AcpxError as error:
            raise agent_unavailable(str(error)) from None

    async def _query_catalog(self) -> dict[str, Any]:
        """Return acpx's versions and list of agents; concurrent callers share one query."""
        query = self._query
        if query is None or query.done():
            query = self._query = asyncio.create_task(self._run_catalog(), name="acpx-catalog")
        return await asyncio.shield(query)

    async def _run_catalog(self) -> dict[str, Any]:
        try:
            process = await asyncio.create_subprocess_exec(
                *(self._node, str(CATALOG), *self._commands),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(self._environ),
                cwd=self._homes,
            )
        except OSError as error:
            raise AcpxError(f"Node cannot be started: {error.strerror}") from None
        try:
            async with asyncio.timeout(CATALOG_SECS):
                output, stderr = await process.communicate()
        except TimeoutError:
            raise AcpxError(f"acpx's list of agents took over {CATALOG_SECS} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        catalog = parse_message(output)
        if process.returncode != 0 or catalog is None:
            logger.error("acpx: %s", stderr[-1000:].decode(errors="replace"))
            raise AcpxError(
                f"acpx cannot be used; is it installed? `{installation.REMEDY}` does it"
            )
        return catalog
