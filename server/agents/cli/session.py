"""The session as acpx's command line knows it: made, used by one command at a time, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ...errors import Error, bad_request
from ...sandbox.sandbox import Sandbox
from .. import reported_settings, setting_steps
from ..agent_settings import NO_SETTINGS, AgentSettings
from ..base import AgentSpec, WantedSettings, agent_failed, agent_unavailable
from ..failures import asks_for_login, error_text, login_required, needs_login
from ..login_states import LoginStates
from .commands import ENDED, AcpxCommandError, AcpxCommands
from .relayed_settings import RelaySettings

MAX_ARGUMENT_BYTES = 100 << 10

FindCommands = Callable[[AgentSpec], Awaitable[AcpxCommands]]


class CliSession:
    """One session of acpx, made by the first command that needs it.

    Args:
        find_commands: returns the session's acpx commands; raises :class:`Error` if its agent is
            not installed any more.
        wanted: returns the settings that the agent must be in before it gets a prompt.
        start_timeout: seconds for acpx to make the session.
        setting_timeout: seconds for the agent to change a setting.
        logins: what the agents report about logins.

    Attributes:
        settings: the settings that the agent reported last.
        former: those that it had reported when it opened the session last.
        is_fresh: acpx has made the session, and the agent has not received a prompt since.
    """

    def __init__(
        self,
        spec: AgentSpec,
        reported: AgentSettings,
        *,
        find_commands: FindCommands,
        wanted: Callable[[], WantedSettings],
        start_timeout: float,
        setting_timeout: float,
        logins: LoginStates,
    ) -> None:
        self.settings = self.former = reported
        self.mark = secrets.token_hex(16)
        self._wanted = wanted
        self._setting_timeout = setting_timeout
        self._started_in: Sandbox | None = None
        self._is_plain = False
        self._logins = logins
        self.is_fresh = False
        self._spec = spec
        self._find_commands = find_commands
        self._start_timeout = start_timeout
        self._acpx: AcpxCommands | None = None
        self._is_known = False
        self._users = 0
        self._ending = asyncio.Lock()
        self._end_count = 0
        # One command at a time: a late cancel must not reach the next turn.
        self._command = asyncio.Lock()

    @property
    def is_in_use(self) -> bool:
        """Whether a command runs or waits."""
        return self._users > 0

    @property
    def is_running(self) -> bool:
        """Whether a process of the session runs."""
        return self._acpx is not None and self._acpx.running

    @property
    def is_ending(self) -> bool:
        return self._ending.locked()

    @property
    def name_option(self) -> tuple[str, str]:
        """The option by which acpx's commands name the session."""
        return ("--session", self._spec.key)

    def rebind(self, spec: AgentSpec) -> None:
        """Use *spec* for later commands, which name its permission policy."""
        self._spec = spec
        if self._acpx is not None:
            self._acpx.rebind(spec)

    @contextlib.asynccontextmanager
    async def commands(self) -> AsyncIterator[AcpxCommands]:
        """Wait for the exclusive use of acpx's commands, and make the session if acpx lacks it.

        Raises:
            Error: acpx or the agent does not start, or the session was ended meanwhile. A failure
                of acpx within the context is converted, too.
        """
        self._users += 1
        try:
            end_count = self._end_count
            async with self._ending:
                pass
            async with self._command:
                acpx = self._acpx
                if acpx is None:
                    acpx = self._acpx = await self._find_commands(self._spec)
                if end_count != self._end_count:
                    raise agent_failed("the agent was stopped")
                acpx.settings = self._relay_settings()
                await self._ensure(acpx)
                self._note_start(acpx)
                yield acpx
        except AcpxCommandError as error:
            raise self.start_error(error) from None
        except OSError as error:
            raise agent_unavailable(f"acpx cannot be started: {error.strerror}") from None
        finally:
            self._users -= 1

    def _relay_settings(self) -> RelaySettings | None:
        wanted = self._wanted()
        if wanted.is_empty:
            return None
        return RelaySettings(wanted, self.settings.to_dict(), self.mark, self._setting_timeout)

    def _note_start(self, acpx: AcpxCommands) -> None:
        """Note how the next command starts the agent, unless a process runs already."""
        if self._started_in is None:
            self._started_in = acpx.agent_sandbox
        self._is_plain = self._is_plain or acpx.settings is None

    @property
    def has_relay(self) -> bool:
        """Whether each process of the agent was started with settings."""
        return self._started_in is not None and not self._is_plain

    @property
    def is_outdated(self) -> bool:
        """Whether the process is in another sandbox than its app's, or cannot be given settings."""
        acpx = self._acpx
        if acpx is None or not self.is_running:
            return False
        if self._started_in not in (None, acpx.agent_sandbox):
            return True
        steps = setting_steps.needed_steps(self._wanted(), self.settings, self.former)
        return self._is_plain and bool(steps)

    async def open_agent(self) -> int | None:
        """Open a descriptor of the agent's process; None if it has ended."""
        return None if self._acpx is None else await asyncio.to_thread(self._acpx.open_agent)

    async def renew(self) -> None:
        """Replace the session, which the agent cannot load, by a new one of the same name."""
        async with self.commands() as acpx:
            await self._make(acpx, "new")

    async def end(self, grace: float = 0) -> bool:
        """End all processes of the session, and kill those that are left after *grace* seconds.

        Commands that wait fail.

        Returns:
            Whether a process or a command ran.
        """
        self._end_count += 1
        async with self._ending:
            if self._acpx is None or not (self.is_in_use or self.is_running):
                return False
            await self._acpx.end(grace)
            async with self._command:  # a command that had begun has failed by now
                await self._acpx.end()
                self._started_in, self._is_plain = None, False
                self._acpx = None  # the next start may have other variables
        return True

    def start_error(self, error: AcpxCommandError, refusal: Any = None) -> Error:
        """Convert a failure of acpx or of the agent's start to an error for clients.

        Args:
            refusal: the JSON-RPC error with which the agent refused to load the session.
        """
        if needs_login(refusal):
            return self._login_required(error_text(refusal))
        has_ended = error.code in ENDED and asks_for_login(str(error))
        if needs_login(error.failure) or error.code == "AUTH_REQUIRED" or has_ended:
            return self._login_required(str(error))
        return agent_unavailable(f"the agent does not start: {error}")

    # The agent's reports, as the transcripts of turns contain them.

    def initialized(self, result: dict[str, Any]) -> None:
        """Store the result of ``initialize``."""
        self.settings = msgspec.structs.replace(
            self.settings, auth_methods=result.get("authMethods")
        )
        self._logins.note_methods(self._spec.agent, result)

    def opened(self, result: dict[str, Any]) -> None:
        """Store the result of session/new, session/load or session/resume."""
        if self.settings != NO_SETTINGS:
            self.former = self.settings
        self.settings = reported_settings.with_session_result(self.settings, result)

    def updated(self, kind: Any, update: Mapping[str, Any]) -> None:
        """Store the settings that a ``session/update`` of that *kind* reports."""
        self.settings = reported_settings.with_update(self.settings, NO_SETTINGS, kind, update)

    async def _ensure(self, acpx: AcpxCommands) -> None:
        """Make the session, unless acpx knows it. acpx starts and ends the agent for that."""
        if self._is_known:
            return
        try:
            await self._make(acpx, "ensure")
        except BaseException:
            await acpx.end()
            raise
        self._is_known = True

    async def _make(self, acpx: AcpxCommands, verb: str) -> None:
        command = ("sessions", verb, "--name", self._spec.key)
        try:
            async with asyncio.timeout(self._start_timeout):
                result = await acpx.run(*command, options=self._options())
        except TimeoutError:
            raise AcpxCommandError("acpx did not respond in time", "TIMEOUT") from None
        self.is_fresh = bool(result.get("created"))
        self._logins.note_required(self._spec.agent, self._spec.owner, is_required=False)

    def _options(self) -> list[str]:
        options: list[str] = []
        if system := self._spec.system:
            flag = "--system-prompt"
            if not isinstance(system, str):
                flag, system = "--append-system-prompt", system["append"]
            if len(system.encode()) > MAX_ARGUMENT_BYTES:
                raise bad_request("system: it is longer than acpx's command line takes")
            options.append(f"{flag}={system}")
        return options

    def _login_required(self, reason: str) -> Error:
        self._logins.note_required(self._spec.agent, self._spec.owner, is_required=True)
        methods = self.settings.auth_methods or self._logins.methods(self._spec.agent)
        return login_required(self._spec.agent, reason, methods)
