"""Sends prompts through acpx to an agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from ...errors import Error, internal
from ...tasks import Tasks
from ..base import agent_failed
from ..prompt_handle import PromptHandle, PromptState
from .acpx_session import AcpxSession, message_of, was_disconnected
from .agent_process import AgentProcess
from .binding import Binding
from .calls import CallError, HostGoneError
from .outline import outline, parse_blocks
from .setting_changes import SettingChanges
from .settings_sync import SettingsSync

logger = logging.getLogger(__name__)

END_SECS = 1.0
"""The time for a process to end after acpx has reported the end of its connection."""


class HostPrompt(PromptHandle):
    """A prompt that is sent through acpx.

    Attributes:
        outline: the blocks as acpx receives them.
        call: the result of acpx's newest call for it.
        reading_output: reads the last output of a process that ended during the turn.
    """

    def __init__(self, blocks: bytes, *, is_held: bool, cancel_sent: Callable[[], None]) -> None:
        super().__init__(blocks, is_held=is_held, cancel_sent=cancel_sent)
        self.outline = outline(blocks)
        self.call: asyncio.Future[Any] | None = None
        self.reading_output: asyncio.Task[None] | None = None

    def mark_sent(self) -> None:
        super().mark_sent()
        self.outline = b""


class PromptQueue:
    """The prompts that acpx has, and the agent does not.

    Attributes:
        current: the newest prompt whose turn is not over.
    """

    def __init__(self, binding: Binding, process: AgentProcess, sync: SettingsSync) -> None:
        self.current: HostPrompt | None = None
        self._binding = binding
        self._process = process
        self._sync = sync
        self._waiting: deque[HostPrompt] = deque()

    def add(self, prompt: HostPrompt) -> None:
        self._waiting.append(prompt)

    def remove(self, prompt: HostPrompt) -> None:
        if prompt in self._waiting:
            self._waiting.remove(prompt)

    @property
    def _next(self) -> HostPrompt | None:
        return self._waiting[0] if self._waiting else None

    def blocker(self) -> asyncio.Future[Any] | None:
        """Return a future that must be done before the next prompt may pass the proxy."""
        prompt = self._next
        if prompt is None or prompt.is_withdrawn:
            return None
        if prompt.state is PromptState.HELD:
            return prompt.admitted
        applied = self._sync.apply_if_needed()
        if applied is not None:
            applied.add_done_callback(lambda done: _finish_if_failed(prompt, done.result()))
        return applied

    def full_prompt(self, blocks: Any) -> bytes | None:
        """Return the blocks of the next prompt if acpx has only its outline."""
        prompt = self._next
        if prompt is None or prompt.outline == prompt.blocks:
            return None
        if blocks == parse_blocks(prompt.outline):
            return prompt.blocks
        logger.error("session %s: acpx has changed a prompt; it is not sent", self._binding.key)
        prompt.finish(internal())
        return None

    def mark_next_sent(self) -> bool:
        """Mark the next prompt as sent. Return False if it must not pass the proxy."""
        prompt = self._waiting.popleft() if self._waiting else None
        if prompt is None or prompt.is_withdrawn:
            return False
        prompt.mark_sent()
        self._process.prompt_sent()
        return True


def _finish_if_failed(prompt: HostPrompt, failure: Error | None) -> None:
    """Withdraw a prompt that the agent would carry out in other settings."""
    if failure is not None:
        prompt.finish(failure)


class PromptSender:
    """Sends prompts through acpx, and ends turns to which the agent does not respond."""

    def __init__(
        self,
        binding: Binding,
        process: AgentProcess,
        queue: PromptQueue,
        session: AcpxSession,
        changes: SettingChanges,
        tasks: Tasks,
    ) -> None:
        self._binding = binding
        self._process = process
        self._queue = queue
        self._session = session
        self._changes = changes
        self._tasks = tasks

    def start(self, blocks: bytes, *, is_held: bool) -> HostPrompt:
        """Start to send a prompt; see :meth:`base.Agent.prompt`."""
        prompt = HostPrompt(blocks, is_held=is_held, cancel_sent=self._cancel_sent)
        self._queue.current = prompt
        # acpx takes longer than all other steps, so it receives the prompt as early as possible.
        is_open = self._session.is_open and not self._changes.is_unanswered
        call = self._pass_to_acpx(prompt) if is_open else None
        self._tasks.spawn(self._run(prompt, call), f"prompt-{self._binding.key}")
        return prompt

    def restore(self, call: asyncio.Future[Any]) -> HostPrompt:
        """Continue with a prompt that an earlier version of the server has sent.

        Args:
            call: the result of its call to acpx.
        """
        prompt = HostPrompt(b"[]", is_held=False, cancel_sent=self._cancel_sent)
        prompt.mark_sent()
        prompt.call = call
        self._queue.current = prompt
        self._tasks.spawn(self._run(prompt, call), f"prompt-{self._binding.key}")
        return prompt

    def _cancel_sent(self) -> None:
        if self._process.proxy is not None:
            self._process.proxy.own_requests.cancel()

    def _pass_to_acpx(self, prompt: HostPrompt) -> asyncio.Future[Any]:
        self._queue.add(prompt)
        prompt.call = self._session.send_prompt(prompt.outline)
        return prompt.call

    async def _run(self, prompt: HostPrompt, call: asyncio.Future[Any] | None) -> None:
        try:
            with self._process.acpx_call():
                try:
                    await self._send(prompt, call)
                except Error as error:
                    prompt.finish(error)
                except asyncio.CancelledError:
                    prompt.finish(agent_failed("the server is stopping"))
                    raise
        finally:
            self._queue.remove(prompt)
            if self._queue.current is prompt:
                self._queue.current = None
        self._process.report_if_stopped()

    async def _send(self, prompt: HostPrompt, call: asyncio.Future[Any] | None) -> None:
        """Send the prompt, again if the agent could not receive it, and wait for acpx's result.

        Args:
            call: the result of the first try, if that was begun already.
        """
        fresh = False
        if call is None:
            await prompt.admitted
            if not await self._changes.wait_answered():
                await self._changes.kill_unresponsive()
        for is_last_try in (False, True):
            if call is None:
                await prompt.admitted
                if not prompt.is_withdrawn:
                    await self._session.open(fresh=fresh)
                if prompt.is_withdrawn:
                    return
            try:
                await (call or self._pass_to_acpx(prompt))
                prompt.finish()
                return
            except HostGoneError:
                # The agents have ended with the host. A prompt that was not sent is sent again.
                if prompt.is_sent or is_last_try:
                    await self._end_lost(prompt, "the acpx host ended")
                    return
            except CallError as error:
                if prompt.is_sent:
                    await self._end_lost(prompt, message_of(error))
                    return
                cannot_load = self._session.cannot_load(error)
                if is_last_try or not (was_disconnected(error) or cannot_load):
                    raise await self._session.start_error(error) from None
                fresh = cannot_load
            finally:
                call = None
                self._queue.remove(prompt)

    async def _end_lost(self, prompt: HostPrompt, reason: str) -> None:
        """End a turn without a response, after the process has ended and its output has arrived.

        A process that does not end would write into the next turn, so it is killed.
        """
        proxy = self._process.proxy
        if proxy is not None and not prompt.done.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECS):
                    await proxy.ended.wait()
            if not prompt.done.done():
                await self._process.kill()
        if prompt.reading_output is not None:
            await asyncio.wait({prompt.reading_output})
        prompt.finish(agent_failed(reason))
