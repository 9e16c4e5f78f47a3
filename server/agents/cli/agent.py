"""One session's agent through acpx's command line: its prompts, cancels and changes of settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ...codec import dumps, loads
from ...errors import Error, ErrorCode, bad_request, not_supported
from ...tasks import Tasks
from ...validation import OptionValue
from .. import acp_methods, reported_settings
from ..agent_settings import AgentSettings
from ..agent_state import AgentState
from ..base import (
    AGENT_GONE,
    GRACE_SECS,
    AgentObserver,
    AgentSpec,
    AgentTimeouts,
    agent_failed,
    agent_unavailable,
)
from ..failures import needs_login
from ..line_reader import LineReader
from ..login_states import LoginStates
from ..output_limits import Backpressure
from ..preface import preface_of
from ..process.programs import Program
from ..program_output import last_output
from ..prompt_handle import PromptHandle, PromptState
from ..steering import WithoutOwnRequests
from .commands import ENDED, JOURNAL_CORRUPT, AcpxCommandError, error_in, read_end
from .process_watch import ProcessWatch
from .prompt import CliPrompt
from .reports import CliReports
from .session import CliSession, FindCommands
from .transcript import Transcript

logger = logging.getLogger(__name__)


class CliAgent(WithoutOwnRequests):
    """One session's agent; see :class:`base.Agent`.

    Args:
        reported: the settings that the agent reported when it last ran.
        find_commands: returns the session's acpx commands; raises :class:`Error` if its agent is
            not installed any more.
        start_timeout: seconds for an agent to start and load its session.
        backpressure: the capacity of the log.
        max_message_bytes: the limit of one line; a longer one ends the agent.

    Attributes:
        reports: what acpx and the agent report during prompts.
        has_started: a process has received a prompt.
        process: watches that process.
    """

    def __init__(
        self,
        spec: AgentSpec,
        observer: AgentObserver,
        reported: AgentSettings,
        *,
        find_commands: FindCommands,
        tasks: Tasks,
        start_timeout: float,
        timeouts: AgentTimeouts,
        backpressure: Backpressure,
        max_message_bytes: int,
        logins: LoginStates,
    ) -> None:
        self.spec = spec
        self.observer = observer
        self._tasks = tasks
        self._start_timeout = start_timeout
        self._timeouts = timeouts
        self._backpressure = backpressure
        self._max_message_bytes = max_message_bytes
        self._session = CliSession(
            spec,
            reported,
            find_commands=find_commands,
            wanted=lambda: self.observer.wanted,
            start_timeout=start_timeout,
            setting_timeout=timeouts.setting,
            logins=logins,
        )
        self.has_started = False
        self._prompt: CliPrompt | None = None
        self.reports = CliReports(self, self._session)
        self._changes = 0
        self.process = ProcessWatch(tasks, self._session.open_agent, self._process_ended)

    @property
    def state(self) -> AgentState:
        """The state, derived: acpx starts and ends the process without a report."""
        session = self._session
        if not (session.is_in_use or session.is_running):
            return AgentState.STOPPED
        if session.is_ending:
            return AgentState.STOPPING
        if session.is_in_use and not self.has_started:
            return AgentState.STARTING
        return AgentState.PROMPTING if self._is_working else AgentState.READY

    @property
    def _is_working(self) -> bool:
        return self._prompt is not None and self._prompt.state is PromptState.SENT

    @property
    def is_prompting(self) -> bool:
        """Whether the agent has received the last prompt."""
        return self._prompt is not None and self._prompt.is_sent

    @property
    def is_changing(self) -> bool:
        """Whether acpx changes a setting for a client."""
        return self._changes > 0

    @property
    def settings(self) -> AgentSettings:
        return self._session.settings

    @property
    def is_outdated(self) -> bool:
        return self._session.is_outdated

    def rebind(self, spec: AgentSpec, observer: AgentObserver) -> None:
        self.spec, self.observer = spec, observer
        self._session.rebind(spec)

    # Called by the session.

    async def start(self) -> None:
        async with self._session.commands():
            pass

    def prompt(self, blocks: bytes, *, is_held: bool = False) -> PromptHandle:
        prompt = self._prompt = CliPrompt(self, blocks, is_held=is_held)
        self._tasks.spawn(self._run_prompt(prompt), f"prompt-{self.spec.key}")
        return prompt

    def cancel_prompt(self) -> None:
        """Have acpx cancel the turn that its ``acpx prompt`` runs."""
        self._tasks.spawn(self._cancel(), f"cancel-{self.spec.key}")

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        """Do nothing: acpx decides permission requests by the session's policy."""

    answer_elicitation = answer_permission  # acpx cancels every question

    async def set_mode(self, mode: str) -> Mapping[str, Any]:
        option = reported_settings.option_of(self.settings, "mode")
        if option is not None and not self.settings.modes:  # it offers its modes in this form only
            return await self.set_config_option(option["id"], mode)
        try:
            await self._control("set-mode", mode)
        except Error as error:
            known = self.settings.modes or self.settings.config_options
            if known or error.code is not ErrorCode.BAD_REQUEST:
                raise
            return await self.set_config_option("mode", mode)
        self.reports.note_set(acp_methods.SET_MODE, {"modeId": mode}, {})
        return {}

    async def set_model(self, model: str) -> Mapping[str, Any]:
        result = await self._control("set", "model", model)
        option = reported_settings.option_of(self.settings, "model")
        if option is None:
            self.reports.note_set(acp_methods.SET_MODEL, {"modelId": model}, {})
        else:
            params = {"configId": option["id"], "value": model}
            self.reports.note_set(acp_methods.SET_OPTION, params, result)
        return {}

    async def set_config_option(self, key: str, value: OptionValue) -> Mapping[str, Any]:
        if isinstance(value, bool):
            raise not_supported("acpx's commands cannot set an option that is true or false")
        # acpx's result wraps the agent's.
        result = await self._control("set", key, value)
        self.reports.note_set(acp_methods.SET_OPTION, {"configId": key, "value": value}, result)
        return {"configOptions": self._session.settings.config_options or []}

    async def kill(self) -> None:
        await self._end()

    async def hibernate(self, grace: float = GRACE_SECS) -> None:
        await self._end(min(grace, self._timeouts.close))

    def _process_ended(self) -> None:
        """End acpx's processes, too, unless they are in use: after that the watch begins again."""
        is_used = self._session.is_in_use or (self._prompt and not self._prompt.done.done())
        if not is_used:
            self._tasks.spawn(self.kill(), f"kill-{self.spec.key}")

    async def _end(self, grace: float = 0) -> None:
        """End all processes of the session, and kill those that are left after *grace* seconds."""
        self.process.close()
        if not await self._session.end(grace):
            return
        self.has_started = False
        if self._prompt is not None and self._prompt.is_sent:
            self._prompt.finish(agent_failed(AGENT_GONE))
        self.observer.agent_ended()

    # A prompt, from its admission to the end of its turn.

    async def _run_prompt(self, prompt: CliPrompt) -> None:
        await prompt.admitted
        if prompt.is_withdrawn:
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._start_timeout, self._fail_start, prompt)
        try:
            if not await self._send(prompt):
                await self._session.renew()
                await self._send(prompt)
        except Error as error:
            prompt.finish(error)
        finally:
            timer.cancel()
            self.reports.has_run = self.reports.has_run or prompt.is_sent
            prompt.finish(agent_failed("the turn was given up"))  # no effect on a finished prompt
            self.process.begin()

    async def _send(self, prompt: CliPrompt) -> bool:
        """Send the prompt with ``acpx prompt``, and read its output to the end.

        Returns:
            False if the agent did not receive the prompt, because it could not load the session.

        Raises:
            Error: the turn ended without a response.
        """
        session = self._session
        transcript = Transcript(prompt)
        text, blocks = None, prompt.blocks
        async with session.commands() as acpx:
            if prompt.done.done():
                return True
            if session.is_fresh or self.observer.needs_preface:
                own = loads(blocks)
                text = preface_of(own, self.spec, session.settings, self.observer)
                if text is not None:
                    blocks = dumps([{"type": "text", "text": text}, *own])
            program = await acpx.start("prompt", *session.name_option, "-f", "-", stdin=blocks)
            prompt.begin(program)
        try:
            stderr = await self._read_output(program, transcript)
        finally:
            await program.close()
        if prompt.done.done():
            return True
        error = error_in(transcript.failure, stderr, acpx.secrets)
        if prompt.is_sent:
            reason = str(error)
            if error.code == "AGENT_DISCONNECTED":
                output = last_output([stderr], acpx.secrets)
                reason = f"{AGENT_GONE}: {output}" if output else AGENT_GONE
            prompt.finish(agent_failed(reason))
            await self.kill()  # also the processes that the agent has left
            return True
        if text is not None:
            self.observer.needs_preface = True
        if error.code == JOURNAL_CORRUPT and not prompt.is_repaired:
            prompt.is_repaired = True
            await self.kill()
            await asyncio.to_thread(acpx.delete_journal)
            return await self._send(prompt)
        if transcript.refused and not session.is_fresh and not needs_login(transcript.refusal):
            return False
        raise session.start_error(error, transcript.refusal)

    def _fail_start(self, prompt: CliPrompt) -> None:
        """End an agent that has not received its prompt in time."""
        if not prompt.is_sent and not prompt.done.done():
            self._tasks.spawn(self.kill(), f"kill-{self.spec.key}")
            prompt.finish(agent_unavailable("the agent did not start in time"))

    async def _read_output(self, program: Program, transcript: Transcript) -> bytes:
        """Read the program's output to its end, and return the last part of its stderr."""
        stderr = asyncio.create_task(read_end(program.stderr))
        lines = LineReader(self._max_message_bytes)
        try:
            while data := await program.stdout.read(1 << 16):
                try:
                    for line in lines.feed(data):
                        transcript.read(line)
                except OverflowError as error:
                    raise agent_failed(f"the agent wrote {error}") from None
                if not self._backpressure.has_capacity:
                    await self._backpressure.wait_for_capacity()
            return await stderr
        finally:
            stderr.cancel()
            await asyncio.gather(stderr, return_exceptions=True)

    async def _cancel(self) -> None:
        try:
            async with self._session.commands() as acpx:
                await acpx.run("cancel", *self._session.name_option)
        except Error as error:
            logger.info("session %s: not cancelled: %s", self.spec.key, error.message)

    async def _control(self, verb: str, *operands: str) -> dict[str, Any]:
        """Run a command that changes a setting, and return its result."""
        self._changes += 1
        try:
            async with self._session.commands() as acpx, asyncio.timeout(self._timeouts.setting):
                try:
                    return await acpx.run(verb, *self._session.name_option, "--", *operands)
                except AcpxCommandError as error:
                    if needs_login(error.failure) or error.code in ENDED:
                        raise
                    raise bad_request(f"the agent refused: {error}") from None
        except TimeoutError:
            raise agent_failed("the agent did not answer") from None
        finally:
            self._changes -= 1
            self.process.begin()
