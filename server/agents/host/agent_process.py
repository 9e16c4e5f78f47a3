"""The process of one session's agent: its state, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ...errors import Error
from ...states import StateMachine
from ...tasks import Tasks
from ..agent_state import AGENT_TRANSITIONS, AgentState
from ..process import process_tree
from ..program_output import MIN_SECRET
from .binding import Binding
from .handover import StdioHandover
from .process import HostProcess
from .stdio_proxy import StdioProxy

logger = logging.getLogger(__name__)

LAST_OUTPUT_SECS = 0.3
"""Time for the rest of a dead process's stderr, which a descendant of it may hold open."""


class AgentProcess:
    """The process of one session's agent; there is at most one at a time.

    acpx starts it while it carries out a call of the server.

    Attributes:
        proxy: the proxy of the running process.
        failed_proxy: the proxy of a process that has ended since the last call to acpx began.
        refusal: the error with which the process refused to open the conversation; None if it did
            not refuse.
        rejection: the error for which the conversation was not opened, because the process cannot
            take the session's parameters.
        folder_problem: the reason for which a process was refused, if the session's folder cannot
            be used; None otherwise.
        elicitation: the modes of ``elicitation/create`` that were announced to the running process;
            None if there is no process, or it has not been initialized.
    """

    def __init__(
        self, binding: Binding, host: HostProcess, handover: StdioHandover, tasks: Tasks
    ) -> None:
        self.proxy: StdioProxy | None = None
        self.failed_proxy: StdioProxy | None = None
        self.refusal: Any = None
        self.rejection: Error | None = None
        self.folder_problem: str | None = None
        self.elicitation: tuple[str, ...] | None = None
        self._binding = binding
        self._host = host
        self._handover = handover
        self._tasks = tasks
        self._calls = 0
        self._is_stopping = False
        self._state = StateMachine(AGENT_TRANSITIONS, AgentState.STOPPED)
        self._cleanup: asyncio.Task[None] | None = None

    @property
    def state(self) -> AgentState:
        return self._state.current

    @property
    def has_conversation(self) -> bool:
        """Whether the process has opened the session's conversation."""
        return self.state in (AgentState.READY, AgentState.PROMPTING)

    @property
    def secrets(self) -> frozenset[str]:
        """The values of the session and of its app that no client may see in an output."""
        spec = self._binding.spec
        own = (*spec.parameters.secrets(), *self._handover.environ_of(spec.owner).values())
        return frozenset(value for value in own if len(value) >= MIN_SECRET)

    @contextlib.contextmanager
    def acpx_call(self) -> Iterator[None]:
        """Mark a call to acpx, which may start the process: meanwhile it counts as starting."""
        self._calls += 1
        if self.state is AgentState.STOPPED:
            self._move_to(AgentState.STARTING)
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls and self.proxy is None:
                self._move_to(AgentState.STOPPED)

    def report_if_stopped(self) -> None:
        """Tell the session about a process that ended, or never started, during a call to acpx."""
        if self.state is AgentState.STOPPED:
            self._binding.observer.agent_ended()

    # Events of the process.

    def connected(self, proxy: StdioProxy) -> None:
        """A new process runs, connected to *proxy*. It replaces a former one."""
        self.folder_problem = None
        self.rejection = None
        self.proxy = proxy
        self._move_to(AgentState.STARTING)
        if self._is_stopping:
            self.kill_now()

    def conversation_opened(self) -> None:
        """The process has opened the session's conversation."""
        if self.state is AgentState.STARTING and self.proxy is not None:
            self._move_to(AgentState.READY)

    def prompt_sent(self) -> None:
        """The process has received a prompt."""
        if self.state is AgentState.READY or (
            # An agent may respond to session/load without a result.
            self.state is AgentState.STARTING and self.proxy is not None
        ):
            self._move_to(AgentState.PROMPTING)

    def response_received(self) -> None:
        """The process has responded to the prompt."""
        if self.state is AgentState.PROMPTING:
            self._move_to(AgentState.READY)

    def ended(self, proxy: StdioProxy) -> bool:
        """The process of *proxy* has ended. Return whether it was the current one."""
        self._handover.living.remove(proxy.rlimit_tag, proxy.env_tag)
        self._cleanup = self._tasks.spawn(self._end_strays(), f"cleanup-{self._binding.key}")
        if self.proxy is not proxy:
            return False
        self.proxy = None
        self.elicitation = None
        self.failed_proxy = proxy
        self._move_to(AgentState.STARTING if self._calls else AgentState.STOPPED)
        return True

    def restore(
        self, proxy: StdioProxy, elicitation: tuple[str, ...] | None, *, is_prompting: bool
    ) -> None:
        """Continue with a process of an earlier version of the server, which has a conversation."""
        self.connected(proxy)
        self.elicitation = elicitation
        self._move_to(AgentState.READY)
        if is_prompting:
            self._move_to(AgentState.PROMPTING)

    # Ending it.

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Kill each process that connects meanwhile."""
        self._is_stopping = True
        try:
            yield
        finally:
            self._is_stopping = False

    def mark_stopping(self) -> None:
        """Note that acpx has been asked to end the process."""
        if self.proxy is not None:
            self._move_to(AgentState.STOPPING)

    def kill_now(self) -> None:
        """Send SIGKILL to the process."""
        if self.proxy is not None:
            self.proxy.kill()
            self._move_to(AgentState.STOPPING)

    async def kill(self) -> None:
        """Kill the process, and wait until it and all processes that it started have ended."""
        proxy = self.proxy
        if proxy is not None:
            self.kill_now()
            await proxy.ended.wait()
        if self._cleanup is not None:
            await asyncio.gather(self._cleanup, return_exceptions=True)

    async def _end_strays(self) -> None:
        if (pids := self._host.pids) is None:
            return  # the host has ended, and its supervisor ends all its descendants
        ended = await asyncio.to_thread(process_tree.end_strays, *pids, self._handover.living)
        if ended:
            logger.info("session %s: ended %d processes", self._binding.key, ended)

    # Its last output.

    async def output_of_failed_start(self) -> str:
        """Return the end of the output of a process that has ended, or is about to."""
        if self.proxy is not None:  # acpx noticed the end first
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_OUTPUT_SECS):
                    await self.proxy.ended.wait()
        stdout = self.failed_proxy.stray_output if self.failed_proxy is not None else b""
        return await self._handover.stderr.last_output(
            self._binding.key, stdout, secrets=self.secrets
        )

    async def output_of(self, proxy: StdioProxy) -> str:
        """Return the end of the output of the process of *proxy*, which has ended."""
        return await self._handover.stderr.last_output(
            self._binding.key,
            proxy.stray_output,
            timeout=LAST_OUTPUT_SECS,
            secrets=self.secrets,
        )

    def _move_to(self, state: AgentState) -> None:
        if self.state is not state:
            self._state.move_to(state)
