"""Starts the gateways of a server, and connects them to its sessions and runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from ..agents.usage import Usage
from ..config import Settings
from ..reload.program import ReloadError
from ..reload.state import Inherited
from ..runs.runner import Runner
from ..sandbox.control_groups import ControlGroups
from ..sandbox.policy import Tunnel
from ..sandbox.sandbox import Sandbox
from ..sandbox.setup import Machine, make_sandbox
from ..sessions.registry import SessionRegistry
from ..tasks import Supervisor
from .domain_proxy import DomainProxy
from .domains import AllowedDomains
from .key_proxy import KeyProxy
from .providers import KEY_VARIABLES
from .session_keys import Holder, SessionKeys
from .tunnels import ServeGateway, Tunnels
from .withheld import withheld_names

logger = logging.getLogger(__name__)


class Gateways:
    """The sandbox of a server and the gateways out of it.

    Attributes:
        key_proxy: inserts the keys of providers; None if it is off.
        domain_proxy: the way to the allowed domains; None if it is off.
        environ: the server's environment, without the keys that the proxy inserts.
        agent_environ: the part of it for the processes that start agents.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        agent_environ: Mapping[str, str],
        sandbox: Sandbox,
        supervisor: Supervisor,
    ) -> None:
        self.sandbox = sandbox
        self.environ = environ
        self.agent_environ = sandbox.program_environ.passed_on if sandbox.is_on else agent_environ
        self.key_proxy: KeyProxy | None = None
        self.domain_proxy: DomainProxy | None = None
        self._supervisor = supervisor
        self._tunnels: Tunnels | None = None
        self._has_programs: Callable[[], bool] = lambda: False
        has_keys = needs_key_proxy(settings, agent_environ)
        self._session_keys = session_keys = SessionKeys(sandbox.user_home, has_keys=has_keys)
        if has_keys:
            self.key_proxy = KeyProxy(session_keys, environ)
            self.environ, self.agent_environ = map(_without_keys, (environ, self.agent_environ))
        if settings.sandbox_network == "proxy":
            domains = AllowedDomains(settings.sandbox_domains)
            self.domain_proxy = DomainProxy(domains, session_keys.find_key)
        if self.key_proxy is not None or self.domain_proxy is not None:
            sandbox.program_environ.replace_keys = session_keys.replace

    @classmethod
    async def open(
        cls,
        stack: contextlib.AsyncExitStack,
        settings: Settings,
        environ: Mapping[str, str],
        agent_environ: Mapping[str, str],
        supervisor: Supervisor,
        inherited: Inherited | None = None,
    ) -> Gateways:
        """Make the sandbox, and start the gateways. *stack* stops them.

        Args:
            agent_environ: the part of the server's environment that agents would get.
            inherited: the state of an earlier version of the server.

        Raises:
            SettingError: the level that the settings name does not work on this machine.
            OSError: a port cannot be opened.
        """
        known = inherited.trial_result(Machine) if inherited is not None else None
        withheld = withheld_names(agent_environ, settings.agent_env)
        sandbox = await asyncio.to_thread(
            make_sandbox, settings, environ, agent_environ, known, withheld
        )
        processes = settings.sandbox_processes
        sandbox.groups = await asyncio.to_thread(ControlGroups.enter, processes)
        if withheld and sandbox.is_on:
            names = ", ".join(sorted(withheld))
            logger.info("agents do not get %s: CLAWDFORGE_AGENT_ENV passes on a variable", names)
        gateways = cls(settings, environ, agent_environ, sandbox, supervisor)
        await gateways._start(stack, inherited)
        return gateways

    async def _start(self, stack: contextlib.AsyncExitStack, inherited: Inherited | None) -> None:
        served: dict[int, ServeGateway] = {}
        if self.key_proxy is not None:
            stack.push_async_callback(self.key_proxy.stop)
            await self.key_proxy.start(inherited)
            served[self.key_proxy.port] = self.key_proxy.serve
        if self.domain_proxy is not None:
            stack.push_async_callback(self.domain_proxy.stop)
            await self.domain_proxy.start()
            served[self.domain_proxy.port] = self.domain_proxy.serve
            self._session_keys.domain_port = self.domain_proxy.port
        addresses = self.sandbox.network.gateways
        addresses.key_port = self.key_proxy.port if self.key_proxy is not None else 0
        addresses.domain_port = self.domain_proxy.port if self.domain_proxy is not None else 0
        if served:
            tunnels = self._tunnels = Tunnels(self._session_keys.knows, served, self._supervisor)
            tunnels.start()
            stack.push_async_callback(tunnels.stop)
            token_of = self._session_keys.token_of
            addresses.open_tunnel = lambda spec: Tunnel(tunnels.name, token_of(spec))

    def check_reload(self) -> None:
        """Check that every agent keeps its network in a reload.

        Raises:
            ReloadError: the ports of a sandbox would be closed.
        """
        has_tunnels = self._tunnels is not None and self._tunnels.open_count > 0
        # Programs without a tunnel know the port of the domain proxy.
        if has_tunnels or (self.domain_proxy is not None and self._has_programs()):
            raise ReloadError(
                "the network of the sandboxes would be lost: close or hibernate the sessions with"
                " live agents, or restart the server"
            )

    def connect(self, sessions: SessionRegistry, runner: Runner) -> None:
        """Let the sessions and runs of the server use the gateways."""

        def find_holder(key: str) -> Holder | None:
            session = sessions.memory.get(key)
            if session is not None:
                is_ended = session.is_closed or not session.agent.is_live
                is_running = session.state_name == "running"
                return None if is_ended else Holder(session.row.app_name, is_running)
            owner = runner.owner_of(key)
            if owner is not None:
                return Holder(owner, is_working=True)
            is_prewarmed = any(agent.id == key for agent in sessions.prewarmer.agents)
            return Holder("", is_working=False) if is_prewarmed else None

        def count(key: str, _: str, usage: Usage) -> None:
            session = sessions.memory.get(key)
            if session is None or session.state_name == "running":
                sessions.accounts.proxied.add(key, usage)
            else:
                session.usage.count_between_turns(usage)

        def may_spend(holder: Holder) -> str | None:
            if holder.is_working:  # a running turn is not interrupted
                return None
            refusal = sessions.accounts.refusal(holder.owner)
            return refusal.message if refusal is not None else None

        self._has_programs = lambda: len(sessions.slots) > 0 or not runner.is_idle
        self._session_keys.find_holder = find_holder
        if self.key_proxy is not None:
            self.key_proxy.count_usage, self.key_proxy.may_spend = count, may_spend


def _without_keys(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in KEY_VARIABLES}


def needs_key_proxy(settings: Settings, agent_environ: Mapping[str, str]) -> bool:
    """Whether the key proxy is on: as the setting says, else if a provider's key is set."""
    if settings.key_proxy is not None:
        return settings.key_proxy == "on"
    environs = [agent_environ, *(command.env for command in settings.agents.values())]
    return any(environ.get(name) for environ in environs for name in KEY_VARIABLES)
