"""Runs one turn: waits for its settings and a slot, gives it to the agent, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

from ..agents.base import Conversation
from ..agents.failures import agent_error
from ..agents.preface import is_command
from ..agents.prompt_handle import PromptHandle
from ..codec import loads
from ..errors import Error, internal
from . import entries
from .agent_requests import WaitingRequests
from .core import SessionCore
from .forked_conversation import fork_if_pending
from .history import conversation_so_far, with_history
from .session_agent import SessionAgent
from .turn_recorder import TurnRecorder
from .turns import CancelCause, CurrentTurn, Turn

logger = logging.getLogger(__name__)

MAX_STOP_REASON_CHARS = 64


class TurnRunner:
    """Runs the current turn of a session."""

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        agent: SessionAgent,
        requests: WaitingRequests,
        recorder: TurnRecorder,
    ) -> None:
        self._core = core
        self._current = current
        self._agent = agent
        self._requests = requests
        self._recorder = recorder

    def send(self, turn: Turn) -> None:
        """Give *turn* to the agent, which must have a slot.

        The prompt is held on its way until the turn is stored and the folder's snapshot is taken.
        """
        turn.dispatched_at = time.monotonic()
        turn.snapshot = self._core.snapshots.before_turn(turn.index)
        is_held = turn.snapshot is not None or not turn.is_stored
        blocks = turn.blocks
        if turn.history is not None:
            blocks = with_history(turn.history, blocks)
        turn.handle = self._agent.backend_agent.prompt(blocks, is_held=is_held)
        turn.interrupt = turn.handle.cancel
        if turn.snapshot is not None:
            turn.snapshot.add_done_callback(lambda _: self.admit(turn))

    def admit(self, turn: Turn) -> None:
        """Let the agent receive the prompt once the turn is stored and its snapshot is taken."""
        is_ready = turn.snapshot is None or turn.snapshot.done()
        if turn.handle is not None and turn.is_stored and is_ready and self._check_budget(turn):
            turn.handle.admit()

    def _check_budget(self, turn: Turn) -> bool:
        """Whether the app still has a budget, though it had one when the prompt was accepted."""
        refusal = self._core.context.accounts.refusal(self._core.row.app_name)
        if refusal is not None:
            turn.refuse_start(refusal)
        return refusal is None

    async def run(self, turn: Turn) -> None:
        """Run *turn* to its end. A failure ends this turn only."""
        try:
            await self._run(turn)
        except Exception:
            logger.exception("the turn failed unexpectedly", extra=self._recorder.log_extra(turn))
            turn.stop_timers()
            if turn.is_stored:
                self._recorder.end(turn, error=internal())

    async def _run(self, turn: Turn) -> None:
        if turn.handle is None:
            failure = await self._prepare(turn)
            if failure is not None or turn.is_interrupted or not self._check_budget(turn):
                await self._end_if_stored(turn, failure)
                return
            self.send(turn)
        assert turn.handle is not None
        if not turn.runs_since:
            self._core.context.metrics.turn_wait.observe(turn.dispatched_at - turn.accepted_at)
            turn.runs_since = time.monotonic()
        self._set_timeout(turn)
        error: Error | None = None
        try:
            await turn.handle.done
        except Error as failure:
            error = failure
        except Exception:
            logger.exception("the turn failed unexpectedly", extra=self._recorder.log_extra(turn))
            error = internal()
        await self._end_if_stored(turn, error)

    async def _prepare(self, turn: Turn) -> Error | None:
        """Wait for all that the prompt needs. The turn may be interrupted meanwhile.

        Returns:
            The failure of a change of a setting, after which the turn must not run.
        """
        self._check_budget(turn)  # a refused turn waits for nothing
        if turn.cancel_cause is None and turn.changes:
            failure = await self._wait_for_changes(turn)
            if failure is not None:
                return failure
        if not turn.is_interrupted and not self._core.context.slots.has_slot(self._agent):
            await self._wait_for_slot(turn)
        if not turn.is_interrupted and self._agent.backend_agent.is_outdated:
            await self._agent.reload()
        if self._core.row.needs_history and not turn.is_interrupted:
            await self._wait_for_fork(turn)
        if self._core.row.needs_history and not turn.is_interrupted:
            await self._read_history(turn)
        if not turn.is_interrupted:
            await self._update_budget()
        return None

    async def _update_budget(self) -> None:
        """Learn what other nodes have spent while the turn waited."""
        with contextlib.suppress(Error):  # the sum that was read last decides
            await self._core.context.accounts.update(self._core.row.app_name)

    async def _read_history(self, turn: Turn) -> None:
        """Read the conversation that the agent does not have. A command gets none."""
        if is_command(self._agent.reported, loads(turn.blocks)):
            return
        limit = self._core.context.settings.max_told_bytes
        turn.history = await conversation_so_far(self._core, limit)

    def _set_timeout(self, turn: Turn) -> None:
        settings = self._core.context.settings
        limit = min(turn.timeout or settings.turn_timeout_secs, settings.turn_timeout_secs)
        grace = settings.cancel_grace_secs
        left = max(0.0, turn.runs_since + limit - time.monotonic())
        turn.call_later(left, lambda: self.interrupt(turn, CancelCause.TIMEOUT, grace))

    async def _wait_for_changes(self, turn: Turn) -> Error | None:
        """Wait for the changes of settings that were requested before *turn*.

        Returns:
            The failure of one of them, or None. After a failure the turn must not run: its client
            expects the changed setting.
        """
        waiting = asyncio.ensure_future(asyncio.wait([change.done for change in turn.changes]))
        turn.interrupt = waiting.cancel
        await asyncio.wait({waiting})
        failures = (change.failure for change in turn.changes)
        return next((failure for failure in failures if failure is not None), None)

    async def _wait_for_slot(self, turn: Turn) -> None:
        """Wait until the agent has a slot, or *turn* is interrupted."""
        turn.dispatched_at = time.monotonic()
        acquiring = asyncio.ensure_future(self._core.context.slots.acquire(self._agent))
        turn.interrupt = acquiring.cancel
        try:
            await asyncio.wait({acquiring})
        except asyncio.CancelledError:
            acquiring.cancel()
            raise

    async def _wait_for_fork(self, turn: Turn) -> None:
        """Wait until the agent has forked the conversation, if one is pending."""
        forking = asyncio.ensure_future(fork_if_pending(self._agent.backend_agent))
        turn.interrupt = forking.cancel
        try:
            await asyncio.wait({forking})
        except asyncio.CancelledError:
            forking.cancel()
            raise

    async def _end_if_stored(self, turn: Turn, error: Error | None = None) -> None:
        is_stored = await turn.wait_stored()
        if is_stored and turn.is_suspended and not turn.is_sent and turn.cancel_cause is None:
            turn.stop_timers()  # the next version of the server runs it
        elif is_stored:
            self._recorder.end(turn, error=error)
        else:
            turn.stop_timers()

    def interrupt(self, turn: Turn, cause: CancelCause, grace: float) -> None:
        """Ask the agent to end *turn*. Kill it if it has not done so after *grace* seconds."""
        if turn.has_ended:
            return
        if turn.cancel_cause is None:
            turn.cancel_cause = cause
        self._requests.cancel()
        if turn.interrupt is not None:
            turn.interrupt()
        turn.call_later(grace, lambda: self._kill_agent(turn))

    def _kill_agent(self, turn: Turn) -> None:
        if not turn.has_ended:
            logger.warning(
                "the agent ignores the cancel; killed", extra=self._recorder.log_extra(turn)
            )
            self._agent.kill()

    def restore(self, turn: Turn, handle: PromptHandle) -> None:
        """Continue a turn whose prompt an earlier version of the server has sent."""
        turn.handle = handle
        turn.interrupt = handle.cancel
        if turn.cancel_cause is not None:  # the agent has received the cancel
            grace = self._core.context.settings.cancel_grace_secs
            turn.call_later(grace, lambda: self._kill_agent(turn))

    # Reports of the agent

    def prompt_sent(self, conversation: Conversation) -> None:
        """Start the current turn: the agent has received its prompt."""
        turn = self._current.turn
        if turn is None or turn.has_started:
            return
        turn.is_sent = True
        self._current.last_sent_index = turn.index
        self._requests.permissions.calls.clear()
        if turn.history is not None:
            self._recorder.start(turn, "told")
        elif not self._core.row.has_context:
            self._recorder.start(turn, "new")
        else:
            self._recorder.start(turn, "lost" if conversation == "fresh" else "kept")

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None:
        """End the current turn with the agent's response.

        Args:
            message: the response as the agent wrote it.
            response: the parsed *message*.
        """
        turn = self._current.turn
        if turn is None:
            return
        self._core.log.append("event", turn.index, entries.event_fields(message))
        result = response.get("result")
        reason = result.get("stopReason") if isinstance(result, dict) else None
        usage = result.get("usage") if isinstance(result, dict) else None
        if _is_stop_reason(reason):
            self._recorder.end(turn, stop_reason=reason, usage=usage)
        else:
            methods = self._agent.reported.auth_methods
            error = agent_error(response.get("error"), self._core.row.agent, methods)
            self._recorder.end(turn, error=error)


def _is_stop_reason(reason: Any) -> TypeGuard[str]:
    """Whether *reason* is a stop reason of an agent; only the server gives ``error``."""
    if not isinstance(reason, str) or not 0 < len(reason) <= MAX_STOP_REASON_CHARS:
        return False
    return reason.isprintable() and reason != "error"
