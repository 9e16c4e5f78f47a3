"""One session's agent through the acpx host: the way of a prompt, and what its seam reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ...errors import Error, bad_request, internal
from ...tasks import Semaphores, Tasks
from .. import settings
from ..base import (
    AGENT_GONE,
    GRACE_SECS,
    NO_SETTINGS,
    AgentObserver,
    AgentSettings,
    AgentSpec,
    PromptHandle,
    PromptState,
    Wanted,
    agent_failed,
    agent_unavailable,
    misplaced,
)
from ..failures import asks_for_login, details_of, login_required, needs_login, words_of
from ..process import process_tree
from ..program_output import plain, redact
from ..settings import Step
from .handover import StdioHandover
from .outline import outline, parse_blocks
from .process import CallError, HostGoneError, HostProcess
from .stdio_proxy import StdioProxy

logger = logging.getLogger(__name__)

CLOSE_SECS = GRACE_SECS
"""What acpx has at most to close an agent."""
CONTROL_SECS = 20
LAST_WORDS_SECS = 0.3
"""For the rest of a dead agent's stderr, which a process that it has left may hold open."""
MAX_TRIES = 2
"""How often one setting is set before a prompt: setting another may have changed it back."""


class _HostPrompt(PromptHandle):
    """A prompt on its way through acpx.

    Attributes:
        outline: the blocks as acpx gets them.
        losing: reads the last output of an agent that ended in the middle of the turn.
    """

    def __init__(self, blocks: bytes, *, is_held: bool, cancel_sent: Callable[[], None]) -> None:
        super().__init__(blocks, is_held=is_held, cancel_sent=cancel_sent)
        self.outline = outline(blocks)
        self.losing: asyncio.Task[None] | None = None

    def mark_sent(self) -> None:
        super().mark_sent()
        self.outline = b""


class HostAgent:
    """One session's agent; see :class:`base.Agent`. Also what its seam reports to.

    Args:
        starts, closes: bound how many agents of one app start, and end, at once.
    """

    def __init__(
        self,
        host: HostProcess,
        attachments: StdioHandover,
        tasks: Tasks,
        spec: AgentSpec,
        observer: AgentObserver,
        state: AgentSettings,
        *,
        starts: Semaphores,
        closes: Semaphores,
    ) -> None:
        self.spec = spec
        self._host = host
        self._attachments = attachments
        self._tasks = tasks
        self._starts = starts
        self._closes = closes
        self._observer = observer
        self._seam: StdioProxy | None = None
        self._dead: StdioProxy | None = None
        self._awake = False
        self._opened = 0
        self._refusal: Any = None
        self._opening = asyncio.Lock()
        self._busy = 0
        self._waiting: deque[_HostPrompt] = deque()
        self._current: _HostPrompt | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._ending = False
        self._is_misplaced = False
        self._state = state
        self._former = NO_SETTINGS
        self._in_force: dict[str, str] = {}
        self._synonyms: dict[tuple[str, str], str] = {}
        self._found = NO_SETTINGS
        self._restored: set[str] = set()
        self._has_told_mode = False
        self._settling: asyncio.Future[Error | None] | None = None
        self._setting = asyncio.Lock()
        self._replies: dict[str, dict[str, Any]] = {}
        self._unanswered: asyncio.Future[Any] | None = None

    @property
    def is_live(self) -> bool:
        return self._seam is not None or self._busy > 0

    @property
    def is_starting(self) -> bool:
        return self.is_live and not self._awake

    @property
    def settings(self) -> AgentSettings:
        return self._state

    def rebind(self, spec: AgentSpec, observer: AgentObserver) -> None:
        self.spec, self._observer = spec, observer

    # What the session asks for.

    async def start(self) -> None:
        await self._guard(self._open())
        if self._awake and (failure := await self._begin_settling()) is not None:
            raise failure

    def prompt(self, blocks: bytes, *, is_held: bool = False) -> PromptHandle:
        prompt = self._current = _HostPrompt(blocks, is_held=is_held, cancel_sent=self._cancel_sent)
        # acpx can have it now: it takes longer than all that comes in between.
        call = self._pass_on(prompt) if self._is_open else None
        self._tasks.spawn(self._send(prompt, call), f"prompt-{self.spec.key}")
        return prompt

    def _cancel_sent(self) -> None:
        if self._seam is not None:
            self._seam.cancel()

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        if self._seam is not None:
            self._seam.answer(raw_id, {"outcome": outcome})

    async def set_mode(self, mode: str) -> Mapping[str, Any]:
        return await self._control("set_mode", mode=mode)

    async def set_model(self, model: str) -> Mapping[str, Any]:
        return await self._control("set_model", model=model)

    async def set_config_option(self, key: str, value: str) -> Mapping[str, Any]:
        return await self._control("set_config_option", option=key, value=value)

    async def kill(self) -> None:
        seam = self._seam
        if seam is not None:
            seam.kill()
            await seam.over.wait()
        if self._sweeping is not None:
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def hibernate(self, grace: float = GRACE_SECS) -> None:
        self._ending = True  # one that is still starting is not waited for
        if self._opening.locked() and self._seam is not None:
            self._seam.kill()
        try:
            await self._hibernate(grace)
        finally:
            self._ending = False

    async def _hibernate(self, grace: float) -> None:
        async with self._opening:
            if self._opened and self._opened == self._host.generation:
                await self._close(grace)
            self._opened = 0
            await self.kill()
            self._attachments.unregister(self)

    async def _close(self, grace: float) -> None:
        """Let acpx end the agent and write its record."""
        async with self._closes.of(self.spec.owner):
            try:
                async with asyncio.timeout(min(grace, CLOSE_SECS)):
                    await self._call("close")
            except (TimeoutError, HostGoneError, CallError, Error) as error:
                logger.info("session %s: acpx does not close it: %r", self.spec.key, error)

    # The way of a prompt.

    def _pass_on(self, prompt: _HostPrompt) -> asyncio.Future[Any]:
        self._waiting.append(prompt)
        self._dead = None
        return self._host.send(
            "prompt", key=self.spec.key, generation=self._opened, raw={"blocks": prompt.outline}
        )

    async def _send(self, prompt: _HostPrompt, call: asyncio.Future[Any] | None) -> None:
        self._busy += 1
        try:
            await self._send_through(prompt, call)
        except Error as error:
            prompt.finish(error)
        except asyncio.CancelledError:
            prompt.finish(agent_failed("the server is stopping"))
            raise
        finally:
            self._busy -= 1
            if prompt in self._waiting:
                self._waiting.remove(prompt)
            if self._current is prompt:
                self._current = None
        self._tell_if_gone()

    def _tell_if_gone(self) -> None:
        """Tell of an agent that went, or never came, while acpx was at work: it was live still."""
        if not self.is_live:
            self._observer.agent_ended()

    async def _send_through(self, prompt: _HostPrompt, call: asyncio.Future[Any] | None) -> None:
        fresh = False
        if call is None:
            await prompt.admitted
            if not await self._answers():
                await self._end_stuck()
        for last_try in (False, True):
            if call is None:
                await prompt.admitted
                if not prompt.is_withdrawn:
                    await self._guard(self._open(fresh=fresh))
                if prompt.is_withdrawn:
                    return
            try:
                await (call or self._pass_on(prompt))
                prompt.finish()
                return
            except HostGoneError:
                # Its agents die with it; what was never sent is sent again.
                if prompt.is_sent or last_try:
                    await self._end_lost(prompt, "the acpx host ended")
                    return
            except CallError as error:
                if prompt.is_sent:
                    await self._end_lost(prompt, _plain(error))
                    return
                if last_try or not (_was_gone(error) or self._cannot_load(error)):
                    raise await self._start_error(error) from None
                fresh = self._cannot_load(error)
            finally:
                call = None
                if prompt in self._waiting:
                    self._waiting.remove(prompt)

    async def _end_lost(self, prompt: _HostPrompt, reason: str) -> None:
        """The turn has no answer; give what the agent wrote before its end time to arrive.

        An agent that lives on would write into the next turn: it is ended, too.
        """
        seam = self._seam
        if seam is not None and not prompt.done.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await seam.over.wait()
            if not prompt.done.done():
                await self.kill()
        if prompt.losing is not None:
            await asyncio.wait({prompt.losing})
        prompt.finish(agent_failed(reason))

    async def _lose(self, prompt: _HostPrompt, seam: StdioProxy) -> None:
        """The agent has ended in the middle of the turn: tell what it wrote last."""
        said = await self._attachments.stderr.last_words(
            self.spec.key, seam.noise, timeout=LAST_WORDS_SECS
        )
        prompt.finish(agent_failed(f"{AGENT_GONE}: {said}" if said else AGENT_GONE))

    def _cannot_load(self, error: CallError) -> bool:
        if needs_login(self._refusal):  # it may load it after the login
            return False
        return error.code == "SESSION_RESUME_REQUIRED" and (
            self._refusal is not None or "does not support session/resume" in str(error)
        )

    @property
    def _is_open(self) -> bool:
        """Whether the host that runs now knows the session, and nothing is changing that."""
        is_known = self._host.is_ready and self._opened == self._host.generation
        is_stuck = self._unanswered is not None and not self._unanswered.done()
        return is_known and not (is_stuck or self._opening.locked())

    async def _open(self, *, fresh: bool = False) -> None:
        """Make the session known to the host that runs now."""
        async with self._opening:
            await self._host.ready()
            if self._opened == self._host.generation and not fresh:
                return
            self._attachments.register(self)
            self._dead = None
            # The model is set like every other setting, before the first prompt.
            options = {"systemPrompt": self.spec.system}
            async with self._starts.of(self.spec.owner):
                self._busy += 1
                try:
                    await self._host.call(
                        "open",
                        key=self.spec.key,
                        agent=self.spec.agent,
                        cwd=self.spec.cwd,
                        options={k: v for k, v in options.items() if v is not None},
                        fresh=fresh,
                    )
                finally:
                    self._busy -= 1
            self._opened = self._host.generation
            self._refusal = None

    async def _control(self, op: str, **fields: Any) -> Mapping[str, Any]:
        """Change a setting; the agent's own result, as it passed by at the seam."""
        result: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._tasks.spawn(self._see_to(result, op, fields), f"{op}-{self.spec.key}")
        return await result

    async def _see_to(
        self, result: asyncio.Future[Mapping[str, Any]], op: str, fields: Mapping[str, Any]
    ) -> None:
        """Change it, even if nobody waits for *result* any more.

        acpx goes on, too, and may be starting the agent: it must count as live.
        """
        failure = agent_failed("the server is stopping")
        self._busy += 1
        try:
            value = await self._change(op, fields)
            if not result.done():
                result.set_result(value)
        except Error as error:
            failure = error
        except Exception:
            failure = internal()
            raise  # to the log
        finally:
            self._busy -= 1
            if not result.done():
                result.set_exception(failure)
        self._tell_if_gone()

    async def _change(self, op: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._guard(self._open())
        async with self._setting:
            self._replies.clear()
            self._dead = self._refusal = None
            self._has_told_mode = False
            option = settings.option_of(self._state, "mode")
            if op == "set_mode" and option is not None and not self._state.modes:
                # It has this form alone.
                op, fields = "set_config_option", {"option": option["id"], "value": fields["mode"]}
            self._unanswered = asyncio.ensure_future(self._call(op, **fields))
            try:
                if not await self._answers():
                    if self._current is None:  # in a turn, it may answer after it
                        await self._end_stuck()
                    *_, value = fields.values()
                    raise agent_failed(f"{op}: the agent did not answer when told {value!r}")
                await self._unanswered
            except CallError as error:
                if self._did_not_start(error):
                    raise await self._start_error(error) from None
                raise bad_request(f"the agent refused: {_plain(error)}") from None
            except HostGoneError:
                raise agent_failed("the agent did not answer") from None
            # An agent that had to start first may have been told other settings before this one.
            return self._replies.get(f"session/{op}", {})

    async def _answers(self) -> bool:
        """Wait until the agent has answered what it was told to set; False: it does not."""
        if (unanswered := self._unanswered) is None:
            return True
        answer = asyncio.gather(unanswered, return_exceptions=True)
        await asyncio.wait({answer}, timeout=CONTROL_SECS)
        return unanswered.done()

    async def _end_stuck(self) -> None:
        """End an agent that does not answer: acpx does nothing else for it until it has."""
        logger.warning("session %s: the agent does not answer; killing it", self.spec.key)
        await self.kill()
        await self._answers()

    async def _call(self, op: str, **fields: Any) -> Any:
        """A call to the host in which the session was opened, and to no later one."""
        return await self._host.call(op, key=self.spec.key, generation=self._opened, **fields)

    async def _guard(self, opening: Awaitable[None]) -> None:
        """Await *opening*; raise what a client may see."""
        try:
            await opening
        except HostGoneError:
            raise agent_failed("the acpx host ended while the agent started") from None
        except CallError as error:
            raise await self._start_error(error) from None

    async def _start_error(self, error: CallError) -> Error:
        if self._is_misplaced:
            self._is_misplaced = False
            return misplaced()
        if error.code == "UNSUPPORTED_PROMPT_CONTENT":  # it did start
            return bad_request(f"the agent does not take this prompt: {_plain(error)}")
        if needs_login(self._refusal) or error.code == "AUTH_REQUIRED":
            return self._login_required(words_of(self._refusal) or _plain(error))
        said = details_of(self._refusal)
        if error.code == "AGENT_STARTUP_FAILED" or self._dead is not None:
            said = said or await self._last_words()
            if asks_for_login(said):
                return self._login_required(said)
        why = f"the agent does not start: {_plain(error)}"
        return agent_unavailable(why if said in why else f"{why}: {said}")

    def _did_not_start(self, error: CallError) -> bool:
        """Whether a setting failed because the agent, which had to start first, did not."""
        return (
            error.code in ("AGENT_STARTUP_FAILED", "AUTH_REQUIRED")
            or self._dead is not None
            or needs_login(self._refusal)
        )

    async def _last_words(self) -> str:
        """What an agent that did not start wrote, all of it."""
        if (seam := self._seam) is not None:  # acpx has noticed its end first
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECS):
                    await seam.over.wait()
        noise = self._dead.noise if self._dead is not None else b""
        return await self._attachments.stderr.last_words(self.spec.key, noise)

    def _login_required(self, said: str) -> Error:
        return login_required(self.spec.agent, said, self._state.auth_methods)

    # What the seam reports.

    def misplaced(self) -> None:
        self._is_misplaced = True

    def attached(self, seam: StdioProxy) -> None:
        self._is_misplaced = False
        self._seam = seam
        self._awake = False
        if self._ending:
            seam.kill()

    def prompt_waits_for(self) -> asyncio.Future[Any] | None:
        prompt = self._waiting[0] if self._waiting else None
        if prompt is None or prompt.is_withdrawn:
            return None
        if prompt.state is PromptState.HELD:
            return prompt.admitted
        if self._settling is None:
            wanted = self._observer.wanted
            if wanted.is_empty or not self._steps(wanted):
                return None
        settling = self._begin_settling()
        settling.add_done_callback(partial(_hold_back_if_failed, prompt))
        return settling

    def admit_prompt(self) -> bool:
        prompt = self._waiting.popleft() if self._waiting else None
        if prompt is None or prompt.is_withdrawn:
            return False
        prompt.mark_sent()
        return True

    def whole_prompt(self, passed: Any) -> bytes | None:
        prompt = self._waiting[0] if self._waiting else None
        if prompt is None or prompt.outline == prompt.blocks:
            return None
        if passed == parse_blocks(prompt.outline):
            return prompt.blocks
        logger.error("session %s: acpx has changed a prompt; it is not sent", self.spec.key)
        prompt.finish(internal())
        return None

    def _begin_settling(self) -> asyncio.Future[Error | None]:
        """Put the agent into the settings that are wanted; gives why that cannot be done."""
        if self._settling is None:
            self._settling = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._see_to_settling(self._settling), f"settle-{self.spec.key}")
        return self._settling

    async def _see_to_settling(self, settled: asyncio.Future[Error | None]) -> None:
        failure: Error | None = agent_failed("the server is stopping")
        try:
            if self._seam is not None:
                await self._settle(self._seam)
            failure = None
        except ConnectionError:  # acpx notices, too, and the prompt is sent to the next process
            failure = None
        except Error as error:
            failure = error
        except Exception:
            failure = internal()
            raise  # to the log
        finally:
            self._settling = None
            settled.set_result(failure)

    async def _settle(self, seam: StdioProxy) -> None:
        """Set what is wanted.

        Raises:
            Error: the agent refuses a setting, or does not have it.
            ConnectionError: it has ended.
        """
        wanted = self._observer.wanted
        tried: Counter[tuple[str, str]] = Counter()
        while left := self._steps(wanted):
            step = left[0]
            if step.method is None:
                raise self._not_set(step, "it offers no such value")
            if tried[step.key] == MAX_TRIES:
                raise self._not_set(step, "it says that it is in another")
            tried[step.key] += 1
            await self._set(seam, step)

    def _steps(self, wanted: Wanted) -> list[Step]:
        return settings.steps(wanted, self._state, self._former, self._synonyms)

    def _not_set(self, step: Step, why: str) -> Error:
        what = f"{step.setting}: the agent cannot be put into {step.value!r}: {why}"
        was_in_force = self._in_force.get(step.setting) == step.value
        return agent_failed(what) if was_in_force else bad_request(what)

    async def _set(self, seam: StdioProxy, step: Step) -> None:
        assert step.method is not None
        self._has_told_mode = False
        try:
            async with asyncio.timeout(CONTROL_SECS):
                response = await seam.ask(step.method, step.params)
        except TimeoutError:
            raise agent_failed(
                f"{step.setting}: the agent did not answer when it was set to {step.value!r}"
            ) from None
        result = response.get("result")
        if "error" in response or not isinstance(result, dict):
            raise self._not_set(step, words_of(response.get("error")) or "it refused")
        before = settings.current(self._state, step.setting)
        self._note_set(step.setting, step.value, step.method, step.params, result)
        after = settings.current(self._state, step.setting)
        if step.setting == "model" and after not in (None, before, step.value):
            self._synonyms[step.key] = after  # the agent's own name for it

    def _note_set(
        self,
        setting: str,
        value: str,
        method: str,
        params: Mapping[str, Any],
        result: Mapping[str, Any],
    ) -> None:
        """The agent has answered that it is in another setting; what it told itself counts more."""
        if method != settings.SET_MODE or not self._has_told_mode:
            self._state = settings.answered(self._state, self._former, method, params, result)
        after = settings.current(self._state, setting)
        was_in_force = value in (
            self._in_force.get(setting),
            settings.current(self._former, setting),
        )
        if after != value:
            return
        self._in_force[setting] = value
        was_lost = settings.current(self._found, setting) != value
        is_news = setting not in self._restored and self._is_wanted(setting, value)
        if was_in_force and was_lost and is_news:
            self._restored.add(setting)
            self._observer.setting_restored(setting, value)

    def _is_wanted(self, setting: str, value: str) -> bool:
        wanted = self._observer.wanted
        if setting in ("mode", "model"):
            return value == (wanted.mode if setting == "mode" else wanted.model)
        return wanted.config_options.get(setting) == value

    def preface(self, blocks: Any, *, fresh: bool) -> str | None:
        if not (fresh or self._observer.owes_preface):
            return None
        return settings.preface_of(blocks, self.spec, self._state, self._observer)

    def prompt_sent(self, fresh: bool) -> None:
        self._observer.prompt_sent("fresh" if fresh else "kept")

    def notified(self, line: bytes, message: dict[str, Any], *, replayed: bool) -> None:
        if message["method"] == "session/update":
            self._note_update(message.get("params"), replayed=replayed)
        if not replayed:
            self._observer.notification_received(line)

    def _note_update(self, params: Any, *, replayed: bool) -> None:
        update = params.get("update") if isinstance(params, dict) else None
        kind = update.get("sessionUpdate") if isinstance(update, dict) else None
        if isinstance(update, dict) and kind in ("tool_call", "tool_call_update"):
            if not replayed:
                self._observer.tool_call_updated(update)
            return
        state = settings.updated(self._state, self._former, kind, update)
        if state is self._state:
            return
        before, self._state = self._state, state
        if kind == "current_mode_update":
            self._has_told_mode = True
        # What follows a change that a client or the server asked for is not the agent's own.
        if not (replayed or self._settling is not None or self._setting.locked()):
            self._note_own_change(before, state)

    def _note_own_change(self, before: AgentSettings, after: AgentSettings) -> None:
        mode = self._observer.wanted.mode
        if mode is not None and mode == settings.current(before, "mode"):
            self._in_force["mode"] = mode
            if mode != settings.current(after, "mode"):  # it may be put back
                self._found = after
                self._restored.discard("mode")
        self._observer.settings_changed(before, after)

    def answered(self, line: bytes, message: dict[str, Any]) -> None:
        prompt = self._current
        self._observer.response_received(line, message)
        if prompt is not None:
            prompt.finish()

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        self._observer.permission_requested(raw_id, params)

    def opened(self, result: dict[str, Any] | None, error: Any) -> None:
        self._refusal = None if result is not None else error or {}
        if result is None:
            return
        self._awake = True
        self._former = self._state
        self._state = self._found = settings.opened(self._state, result)
        self._restored.clear()

    def replied(self, method: str, params: Mapping[str, Any], result: dict[str, Any]) -> None:
        self._replies[method] = result
        if method == "initialize":
            self._state = replace(
                self._state,
                capabilities=result.get("agentCapabilities"),
                auth_methods=result.get("authMethods"),
            )
        else:
            setting, value = settings.named(self._state, method, params)
            self._note_set(setting, value, method, params, result)

    def gone(self, seam: StdioProxy) -> None:
        self._attachments.living.remove(seam.rlimit_tag, seam.env_tag)
        # What it started and left behind goes with it.
        self._sweeping = self._tasks.spawn(self._sweep(), f"sweep-{self.spec.key}")
        if self._seam is not seam:
            return
        self._seam = None
        self._dead = seam
        self._awake = False
        prompt = self._current
        if prompt is not None and prompt.is_sent and not prompt.done.done():
            if seam.is_killed:
                prompt.finish(agent_failed(AGENT_GONE))
            else:
                prompt.losing = self._tasks.spawn(self._lose(prompt, seam), f"lost-{self.spec.key}")
        self._observer.agent_ended()

    async def _sweep(self) -> None:
        if (pids := self._host.pids) is None:
            return  # with the host ends all below its supervisor
        ended = await asyncio.to_thread(process_tree.end_strays, *pids, self._attachments.living)
        if ended:
            logger.info("session %s: ended %d processes", self.spec.key, ended)


def _hold_back_if_failed(prompt: _HostPrompt, settling: asyncio.Future[Error | None]) -> None:
    """The agent does not get a prompt that it would carry out in other settings."""
    if (failure := settling.result()) is not None:
        prompt.finish(failure)


def _was_gone(error: CallError) -> bool:
    """Whether acpx had not noticed yet that the agent was dead; the next time it starts another."""
    return error.code == "AGENT_DISCONNECTED" or "ACP client not started" in str(error)


def _plain(error: CallError) -> str:
    return f"{redact(plain(str(error)))[:500]} ({error.code})"
