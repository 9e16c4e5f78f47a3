"""The session as the acpx host knows it: opened, called and closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ...errors import Error, bad_request
from ...tasks import Semaphores
from ..base import AgentTimeouts, agent_failed, agent_unavailable, unusable_folder
from ..failures import asks_for_login, details_of, error_text, login_required, needs_login
from ..program_output import redact, single_line
from .agent_process import AgentProcess
from .binding import Binding
from .calls import CallError, HostGoneError
from .handover import HandoverTarget, StdioHandover
from .process import HostProcess

logger = logging.getLogger(__name__)


class AcpxSession:
    """One session in the acpx host. Each host that is started must open it again.

    Args:
        target: the agent for which a process may hand over its stdio.
        starts, closes: limit how many agents of one app start, and end, at once.
        auth_methods: returns the ``authMethods`` that the agent reported.
    """

    def __init__(
        self,
        host: HostProcess,
        handover: StdioHandover,
        binding: Binding,
        process: AgentProcess,
        target: HandoverTarget,
        *,
        starts: Semaphores,
        closes: Semaphores,
        timeouts: AgentTimeouts,
        auth_methods: Callable[[], Any],
    ) -> None:
        self._host = host
        self._handover = handover
        self._binding = binding
        self._process = process
        self._target = target
        self._starts = starts
        self._closes = closes
        self._timeouts = timeouts
        self._auth_methods = auth_methods
        self._generation = 0
        self._opening = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the running host knows the session, and no task is changing that."""
        is_known = self._host.is_ready and self._generation == self._host.generation
        return is_known and not self._opening.locked()

    async def open(self, *, fresh: bool = False) -> None:
        """Make the session known to the running host.

        Args:
            fresh: begin a new conversation.

        Raises:
            Error: the host does not run, or the agent does not start.
        """
        try:
            await self._open(fresh=fresh)
        except HostGoneError:
            raise agent_failed("the acpx host ended while the agent started") from None
        except CallError as error:
            raise await self.start_error(error) from None

    async def _open(self, *, fresh: bool) -> None:
        spec = self._binding.spec
        async with self._opening:
            await self._host.wait_ready()
            if self._generation == self._host.generation and not fresh:
                return
            await self._host.calls.wait_for(spec.key)  # of an earlier version of the server
            self._handover.register(self._target)
            self._process.failed_proxy = self._process.rejection = None
            # Without the model, which is set before the first prompt like every other setting.
            options = spec.parameters.options_for_acpx()
            if spec.system is not None:
                options["systemPrompt"] = spec.system
            async with self._starts.of(spec.owner):
                with self._process.acpx_call():
                    await self._host.call(
                        "open",
                        key=spec.key,
                        agent=spec.agent,
                        cwd=spec.cwd,
                        options=options,
                        fresh=fresh,
                    )
            self._generation = self._host.generation
            self._process.refusal = None

    def restore(self) -> None:
        """Note that the host knows the session from an earlier version of the server."""
        self._generation = self._host.generation
        self._handover.register(self._target)

    def send_prompt(self, blocks: bytes) -> asyncio.Future[Any]:
        """Send a prompt to acpx. The future is done when acpx has ended the turn.

        Raises:
            HostGoneError: the host in which the session was opened does not run any more.
        """
        self._process.failed_proxy = None
        return self._host.send(
            "prompt", key=self._binding.key, generation=self._generation, raw={"blocks": blocks}
        )

    async def call(self, op: str, **fields: Any) -> Any:
        """Call the host in which the session was opened, and no later one."""
        key, generation = self._binding.key, self._generation
        return await self._host.call(op, key=key, generation=generation, **fields)

    async def close(self, grace: float) -> None:
        """End the agent's process, and let acpx write its record.

        Args:
            grace: seconds that the process has to end by itself.
        """
        with self._process.stopping():
            if self._opening.locked():
                self._process.kill_now()
            async with self._opening:
                if self._generation and self._generation == self._host.generation:
                    await self._close_in_acpx(grace)
                self._generation = 0
                await self._process.kill()
                self._handover.unregister(self._target)

    async def _close_in_acpx(self, grace: float) -> None:
        async with self._closes.of(self._binding.spec.owner):
            self._process.mark_stopping()
            try:
                async with asyncio.timeout(min(grace, self._timeouts.close)):
                    await self.call("close")
            except (TimeoutError, HostGoneError, CallError, Error) as error:
                key = self._binding.key
                logger.info("session %s: acpx did not close the agent: %r", key, error)

    # Errors of acpx.

    def cannot_load(self, error: CallError) -> bool:
        """Whether the agent cannot load its conversation, so that a new one must begin."""
        refusal = self._process.refusal
        if self._process.rejection is not None or needs_login(refusal):
            return False  # the agent may load it after the login
        return error.code == "SESSION_RESUME_REQUIRED" and (
            refusal is not None or "does not support session/resume" in str(error)
        )

    def did_not_start(self, error: CallError, *, has_refused: bool) -> bool:
        """Whether a call failed because the agent, which had to start first, did not start.

        Args:
            has_refused: the agent responded with an error, after which acpx may have ended it.
        """
        return (
            error.code in ("AGENT_STARTUP_FAILED", "AUTH_REQUIRED")
            or (self._process.failed_proxy is not None and not has_refused)
            or needs_login(self._process.refusal)
        )

    async def start_error(self, error: CallError) -> Error:
        """Return the error that a client receives if the agent did not start."""
        process = self._process
        if (reason := process.folder_problem) is not None:
            process.folder_problem = None
            return unusable_folder(reason)
        if process.rejection is not None:
            return process.rejection
        if error.code == "UNSUPPORTED_PROMPT_CONTENT":  # the agent did start
            return bad_request(f"the agent does not take this prompt: {message_of(error)}")
        if needs_login(process.refusal) or error.code == "AUTH_REQUIRED":
            return self._login_required(error_text(process.refusal) or message_of(error))
        details = details_of(process.refusal)
        if error.code == "AGENT_STARTUP_FAILED" or process.failed_proxy is not None:
            details = details or await process.output_of_failed_start()
            if asks_for_login(details):
                return self._login_required(details)
        message = f"the agent does not start: {message_of(error)}"
        return agent_unavailable(message if details in message else f"{message}: {details}")

    def _login_required(self, reason: str) -> Error:
        spec = self._binding.spec
        self._binding.logins.note_required(spec.agent, spec.owner, is_required=True)
        return login_required(spec.agent, reason, self._auth_methods())


def message_of(error: CallError) -> str:
    """Return acpx's message without secrets and control characters, and its code."""
    return f"{redact(single_line(str(error)))[:500]} ({error.code})"


def was_disconnected(error: CallError) -> bool:
    """Whether acpx had not noticed the end of the agent; on the next try it starts another."""
    return error.code == "AGENT_DISCONNECTED" or "ACP client not started" in str(error)
