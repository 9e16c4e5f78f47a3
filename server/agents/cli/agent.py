"""One session's agent through acpx's command line: the way of a prompt, and of a cancel."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from ...codec import dumps, loads
from ...errors import Error, bad_request
from ...tasks import Tasks
from .. import settings
from ..agent_settings import NO_SETTINGS, AgentSettings
from ..base import (
    AGENT_GONE,
    GRACE_SECS,
    AgentObserver,
    AgentSpec,
    AgentState,
    AgentTimeouts,
    Backpressure,
    agent_failed,
    agent_unavailable,
)
from ..failures import asks_for_login, login_required, needs_login, words_of
from ..line_reader import LineReader
from ..process.programs import Program
from ..program_output import last_output
from ..prompt_handle import PromptHandle, PromptState
from .commands import ENDED, AcpxCommandError, AcpxCommands, error_in, read_end
from .prompt import CliPrompt
from .transcript import Transcript

logger = logging.getLogger(__name__)

MAX_ARGUMENT_BYTES = 100 << 10


class CliAgent:
    """One session's agent; see :class:`base.Agent`.

    Args:
        find_commands: the session's acpx commands; it raises :class:`Error` where its
            agent is not installed any more.
        start_timeout: seconds for an agent to start and load its session.
        backpressure: whether the log has capacity for more messages.
        max_message_bytes: a longer line of the agent ends it.
    """

    def __init__(
        self,
        spec: AgentSpec,
        observer: AgentObserver,
        state: AgentSettings,
        *,
        find_commands: Callable[[AgentSpec], Awaitable[AcpxCommands]],
        tasks: Tasks,
        start_timeout: float,
        timeouts: AgentTimeouts,
        backpressure: Backpressure,
        max_message_bytes: int,
    ) -> None:
        self.spec = spec
        self.observer = observer
        self._find_commands = find_commands
        self._tasks = tasks
        self._start_timeout = start_timeout
        self._timeouts = timeouts
        self._backpressure = backpressure
        self._max_message_bytes = max_message_bytes
        self._acpx: AcpxCommands | None = None
        self._is_known = False
        self._is_awake = False
        self._ending = asyncio.Lock()
        self._era = 0
        # One at a time: a late cancel must not meet the next turn.
        self._command = asyncio.Lock()
        self._fresh = False
        self._busy = 0
        self._prompt: CliPrompt | None = None
        self._mode: str | None = None
        self._state = state

    @property
    def state(self) -> AgentState:
        """The state, derived: acpx starts and ends the process without telling."""
        if not (self._busy or (self._acpx is not None and self._acpx.running)):
            return AgentState.STOPPED
        if self._ending.locked():
            return AgentState.STOPPING
        if self._busy and not self._is_awake:
            return AgentState.STARTING
        prompt = self._prompt
        is_prompting = prompt is not None and prompt.state is PromptState.SENT
        return AgentState.PROMPTING if is_prompting else AgentState.READY

    @property
    def settings(self) -> AgentSettings:
        return self._state

    def rebind(self, spec: AgentSpec, observer: AgentObserver) -> None:
        self.spec, self.observer = spec, observer
        self._acpx = None  # its commands name the permission

    # What the session asks for.

    async def start(self) -> None:
        async with self._commanding():
            pass

    def prompt(self, blocks: bytes, *, is_held: bool = False) -> PromptHandle:
        prompt = self._prompt = CliPrompt(self, blocks, is_held=is_held)
        self._tasks.spawn(self._run_prompt(prompt), f"prompt-{self.spec.key}")
        return prompt

    def cancel_prompt(self) -> None:
        """Have acpx cancel the turn that its ``acpx prompt`` runs."""
        self._tasks.spawn(self._cancel(), f"cancel-{self.spec.key}")

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        """Nothing: acpx answers them itself."""

    async def set_mode(self, mode: str) -> Mapping[str, Any]:
        await self._control("set-mode", mode)
        self._state = settings.in_mode(self._state, mode)
        # Without an owner, the process that was told has ended already.
        self._mode = mode if self._acpx is not None and self._acpx.running else None
        return {}

    async def set_model(self, model: str) -> Mapping[str, Any]:
        await self._control("set", "model", model)
        return {}

    async def set_config_option(self, key: str, value: str) -> Mapping[str, Any]:
        # acpx's own words, of which these are the agent's.
        result = await self._control("set", key, value)
        asked = {"configId": key, "value": value}
        self._state = settings.with_result(
            self._state, NO_SETTINGS, settings.SET_OPTION, asked, result
        )
        return {"configOptions": self._state.config_options or []}

    async def kill(self) -> None:
        await self._end()

    async def hibernate(self, grace: float = GRACE_SECS) -> None:
        await self._end(min(grace, self._timeouts.close))

    async def _end(self, grace: float = 0) -> None:
        """End all processes of the session; what is left after *grace* seconds is killed."""
        self._era += 1
        async with self._ending:
            if self._acpx is None or not self.state.is_live:
                return
            await self._acpx.end(grace)
            async with self._command:  # what was under way has failed, if it had begun
                await self._acpx.end()
        self._is_awake = False
        self._mode = None
        if self._prompt is not None and self._prompt.is_sent:
            self._prompt.finish(agent_failed(AGENT_GONE))
        self.observer.agent_ended()

    # The way of a prompt.

    async def _run_prompt(self, prompt: CliPrompt) -> None:
        await prompt.admitted
        if prompt.is_withdrawn:
            return
        patience = asyncio.get_running_loop().call_later(self._start_timeout, self._give_up, prompt)
        try:
            if not await self._send(prompt):
                # The agent cannot load the session: begin a new one.
                async with self._commanding() as acpx:
                    await self._make_session(acpx, "new")
                await self._send(prompt)
        except Error as error:
            prompt.finish(error)
        finally:
            patience.cancel()
            prompt.finish(agent_failed("the turn was given up"))  # else it is over already

    async def _send(self, prompt: CliPrompt) -> bool:
        """Send the prompt, and follow its ``acpx prompt`` to the end.

        Returns:
            False where nothing was sent, for the agent could not load the session.

        Raises:
            Error: the turn has no answer.
        """
        transcript = Transcript(prompt)
        text, blocks = None, prompt.blocks
        async with self._commanding() as acpx:
            if prompt.done.done():
                return True
            self._check_mode(acpx)
            if self._fresh or self.observer.owes_preface:
                own = loads(blocks)
                text = settings.preface_of(own, self.spec, self._state, self.observer)
                if text is not None:
                    blocks = dumps([{"type": "text", "text": text}, *own])
            program = await acpx.start("prompt", *self._name, "-f", "-", stdin=blocks)
            prompt.begin(program)
        try:
            stderr = await self._follow(program, transcript)
        finally:
            await program.close()
        if prompt.done.done():
            return True
        error = error_in(transcript.failure, stderr, acpx.secrets)
        if prompt.is_sent:
            why = str(error)
            if error.code == "AGENT_DISCONNECTED":
                said = last_output([stderr], acpx.secrets)
                why = f"{AGENT_GONE}: {said}" if said else AGENT_GONE
            prompt.finish(agent_failed(why))
            await self.kill()  # so ends what the agent has left
            return True
        if text is not None:
            self.observer.owes_preface = True
        if transcript.refused and not self._fresh and not needs_login(transcript.refusal):
            return False
        raise self._start_error(error, transcript.refusal)

    def _check_mode(self, acpx: AcpxCommands) -> None:
        """Refuse a prompt that the agent would carry out in another mode.

        acpx does not set a mode again when it loads a session, and sends the prompt at once.
        """
        wanted = self.observer.wanted
        if wanted.mode is None or wanted.mode_is_optional:
            return
        if not acpx.running or self._mode != wanted.mode:
            raise bad_request(
                f"mode: the agent has ended, and cannot be put into {wanted.mode!r} again with"
                " CLAWDFORGE_AGENT_BACKEND=cli: open a new session"
            )

    def _give_up(self, prompt: CliPrompt) -> None:
        """The agent does not start in time."""
        if not prompt.is_sent and not prompt.done.done():
            self._tasks.spawn(self.kill(), f"kill-{self.spec.key}")
            prompt.finish(agent_unavailable("the agent does not start: it took too long"))

    async def _follow(self, program: Program, transcript: Transcript) -> bytes:
        """Read all that the program writes; the end of its stderr."""
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
            async with self._commanding() as acpx:
                await acpx.run("cancel", *self._name)
        except Error as error:
            logger.info("session %s: not cancelled: %s", self.spec.key, error.message)

    async def _control(self, verb: str, *operands: str) -> dict[str, Any]:
        async with self._commanding() as acpx:
            try:
                async with asyncio.timeout(self._timeouts.setting):
                    return await acpx.run(verb, *self._name, "--", *operands)
            except AcpxCommandError as error:
                if needs_login(error.failure) or error.code in ENDED:
                    raise
                raise bad_request(f"the agent refused: {error}") from None
            except TimeoutError:
                raise agent_failed("the agent did not answer") from None

    @property
    def _name(self) -> tuple[str, str]:
        return ("--session", self.spec.key)

    @contextlib.asynccontextmanager
    async def _commanding(self) -> AsyncIterator[AcpxCommands]:
        """The right to give commands, once acpx knows the session; raises what a client may see."""
        self._busy += 1
        try:
            era = self._era
            async with self._ending:
                pass
            async with self._command:
                if self._acpx is None:
                    self._acpx = await self._find_commands(self.spec)
                if era != self._era:
                    raise agent_failed("the agent was stopped")
                yield await self._ensured(self._acpx)
        except AcpxCommandError as error:
            raise self._start_error(error) from None
        except OSError as error:
            raise agent_unavailable(f"acpx cannot be started: {error.strerror}") from None
        finally:
            self._busy -= 1

    async def _ensured(self, acpx: AcpxCommands) -> AcpxCommands:
        """Make the session known to acpx. A new one's agent is started for that, and ended."""
        if not self._is_known:
            try:
                await self._make_session(acpx, "ensure")
            except BaseException:
                await acpx.end()
                raise
            self._is_known = True
        return acpx

    async def _make_session(self, acpx: AcpxCommands, verb: str) -> None:
        command = ("sessions", verb, "--name", self.spec.key)
        try:
            async with asyncio.timeout(self._start_timeout):
                result = await acpx.run(*command, options=self._session_options())
        except TimeoutError:
            raise AcpxCommandError("it took too long", "TIMEOUT") from None
        self._fresh = bool(result.get("created"))

    def _session_options(self) -> list[str]:
        options: list[str] = []
        if self.spec.model:
            options.append(f"--model={self.spec.model}")
        if system := self.spec.system:
            flag = "--system-prompt"
            if not isinstance(system, str):
                flag, system = "--append-system-prompt", system["append"]
            if len(system.encode()) > MAX_ARGUMENT_BYTES:
                raise bad_request("system: it is longer than acpx's command line takes")
            options.append(f"{flag}={system}")
        return options

    # What a turn's transcript tells.

    def prompt_sent(self, *, fresh: bool) -> None:
        self._is_awake = True
        self.observer.prompt_sent("fresh" if fresh or self._fresh else "kept")
        self._fresh = False

    def notified(self, line: bytes, message: dict[str, Any]) -> None:
        if message["method"] == "session/update":
            params = message.get("params")
            update = params.get("update") if isinstance(params, dict) else None
            kind = update.get("sessionUpdate") if isinstance(update, dict) else None
            self._state = settings.with_update(self._state, NO_SETTINGS, kind, update)
        self.observer.notification_received(line)

    def opened(self, result: dict[str, Any]) -> None:
        self._state = settings.with_session_result(self._state, result)

    def initialized(self, result: dict[str, Any]) -> None:
        self._state = dataclasses.replace(self._state, auth_methods=result.get("authMethods"))

    def _start_error(self, error: AcpxCommandError, refusal: Any = None) -> Error:
        if needs_login(refusal):
            return self._login_required(words_of(refusal))
        ended = error.code in ENDED and asks_for_login(str(error))
        if needs_login(error.failure) or error.code == "AUTH_REQUIRED" or ended:
            return self._login_required(str(error))
        return agent_unavailable(f"the agent does not start: {error}")

    def _login_required(self, said: str) -> Error:
        return login_required(self.spec.agent, said, self._state.auth_methods)
