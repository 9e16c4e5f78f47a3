"""Starts the gateways of a server, and connects them to its sessions and runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from ..agents.usage import Usage
from ..config import Settings
from ..runs.runner import Runner
from ..sandbox.sandbox import Sandbox
from ..sandbox.setup import make_sandbox
from ..sessions.registry import SessionRegistry
from .key_proxy import KeyProxy
from .providers import KEY_VARIABLES
from .session_keys import Holder, SessionKeys


class Gateways:
    """The sandbox of a server and the gateways out of it.

    Attributes:
        keys: the key proxy; None if it is off.
        environ: the server's environment, without the keys that the proxy inserts.
        agent_environ: the part of it for the processes that start agents.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        agent_environ: Mapping[str, str],
        sandbox: Sandbox,
    ) -> None:
        self.sandbox = sandbox
        self.keys: KeyProxy | None = None
        self.environ, self.agent_environ = environ, agent_environ
        if needs_key_proxy(settings, agent_environ):
            tokens = SessionKeys(sandbox.user_home)
            self.keys = KeyProxy(tokens, environ)
            sandbox.given.replace_keys = tokens.replace
            self.environ, self.agent_environ = map(_without_keys, (environ, agent_environ))

    @classmethod
    async def open(
        cls,
        stack: contextlib.AsyncExitStack,
        settings: Settings,
        environ: Mapping[str, str],
        agent_environ: Mapping[str, str],
    ) -> Gateways:
        """Make the sandbox, and start the gateways. *stack* stops them.

        Args:
            agent_environ: the part of the server's environment that agents would get.

        Raises:
            SettingError: the level that the settings name does not work on this machine.
            OSError: a port cannot be opened.
        """
        sandbox = await asyncio.to_thread(make_sandbox, settings, environ, agent_environ)
        gateways = cls(settings, environ, agent_environ, sandbox)
        if gateways.keys is not None:
            stack.push_async_callback(gateways.keys.stop)
            await gateways.keys.start()
        return gateways

    def connect(self, sessions: SessionRegistry, runner: Runner) -> None:
        """Let the sessions and runs of the server use the gateways."""
        if self.keys is None:
            return

        def find_holder(key: str) -> Holder | None:
            session = sessions.loaded(key)
            if session is not None:
                is_ended = session.is_closed or not session.agent.is_live
                is_running = session.state_name == "running"
                return None if is_ended else Holder(session.row.app_name, is_running)
            owner = runner.owner_of(key)
            if owner is not None:
                return Holder(owner, is_working=True)
            is_prewarmed = any(one.id == key for one in sessions.prewarmer.agents)
            return Holder("", is_working=False) if is_prewarmed else None

        def count(key: str, _: str, usage: Usage) -> None:
            session = sessions.loaded(key)
            if session is None or session.state_name == "running":
                sessions.accounts.proxied.add(key, usage)
            else:
                session.usage.count_between_turns(usage)

        def may_spend(holder: Holder) -> str | None:
            if holder.is_working:  # a running turn is not interrupted
                return None
            refusal = sessions.accounts.refusal(holder.owner)
            return refusal.message if refusal is not None else None

        self.keys.keys.find_holder, self.keys.count_usage = find_holder, count
        self.keys.may_spend = may_spend


def _without_keys(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in KEY_VARIABLES}


def needs_key_proxy(settings: Settings, agent_environ: Mapping[str, str]) -> bool:
    """Whether the key proxy is on: as the setting says, else if a provider's key is set."""
    if settings.key_proxy is not None:
        return settings.key_proxy == "on"
    environs = [agent_environ, *(command.env for command in settings.agents.values())]
    return any(environ.get(name) for environ in environs for name in KEY_VARIABLES)
