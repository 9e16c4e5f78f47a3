"""Writes the start and the end of a turn to the log and the database."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from ..agents.usage import Usage
from ..codec import dumps
from ..errors import Error
from ..storage import statements
from ..tracing import Tracer
from . import entries
from .agent_requests import WaitingRequests
from .core import SessionCore
from .session_agent import SessionAgent
from .session_settings import SessionSettings
from .turns import Turn, resolve_end
from .usage import SessionUsage

logger = logging.getLogger(__name__)


class TurnRecorder:
    """Writes one ``turn_start`` and one ``turn_end`` for each turn of a session.

    Attributes:
        last_started_index: the newest turn whose start is in the log.
    """

    def __init__(
        self,
        core: SessionCore,
        agent: SessionAgent,
        settings: SessionSettings,
        requests: WaitingRequests,
        usage: SessionUsage,
        last_turn_index: int,
    ) -> None:
        self.last_started_index = last_turn_index
        self._core = core
        self._agent = agent
        self._settings = settings
        self._requests = requests
        self._usage = usage

    def start(self, turn: Turn, context: str) -> None:
        """Log ``turn_start``.

        Args:
            context: whether the agent's conversation is ``new``, ``kept``, ``told`` or ``lost``.
        """
        row, log = self._core.row, self._core.log
        self.last_started_index = max(self.last_started_index, turn.index)
        fields = entries.turn_start_fields(turn.blocks, turn.client_id, context)
        first_seq = log.append("turn_start", turn.index, fields)
        turn.start(first_seq)
        self.release_prompt(turn)
        self._settings.log_restored(turn.index)
        self._settings.log_asks()
        now = self._core.context.clock()
        row.turn_count += 1
        row.last_turn_at = now
        row.has_context = max(row.has_context, int(turn.is_sent))
        is_told = turn.history is not None and turn.is_sent
        if is_told:
            row.needs_history = 0
        self._core.context.writer.add(
            statements.start_turn(
                row.n,
                turn.index,
                first_seq=first_seq,
                at=now,
                sent=turn.is_sent,
                told=is_told,
            )
        )

    def end(
        self,
        turn: Turn,
        *,
        stop_reason: str | None = None,
        error: Error | None = None,
        usage: Any = None,
    ) -> None:
        """Log ``turn_end``, unless the turn has ended.

        Args:
            stop_reason: of the agent's response; None if the server ends the turn.
            error: the reason for which there is no response.
            usage: the ``usage`` of the agent's response.
        """
        if turn.has_ended:
            return
        turn.stop_timers()
        if turn.is_sent:
            self._core.snapshots.after_turn(turn.index)
        reason, error = resolve_end(turn, stop_reason, error)
        self._requests.cancel(turn.index)
        if not turn.has_started:
            self.start(turn, self._context_without_agent())
        elapsed = time.monotonic() - turn.dispatched_at if turn.dispatched_at else 0
        turn.duration_ms = int(elapsed * 1000)
        fields = entries.error_fields(error) if error is not None else None
        used = self._log_end(turn, reason, fields, usage)
        if (tracer := self._core.context.metrics.tracer) is not None:
            self._trace_end(tracer, turn, elapsed, used)
        self._measure_end(turn, elapsed, error.code if error is not None else None)

    def _context_without_agent(self) -> str:
        """The ``context`` of a turn that the agent has not received."""
        if self._core.row.needs_history:
            return "told"  # as the next turn is that the agent receives
        return "kept" if self._core.row.has_context else "new"

    def _log_end(
        self, turn: Turn, reason: str, error: dict[str, Any] | None, reported: Any
    ) -> Usage | None:
        """Log ``turn_end``. Return the usage of the turn if the agent has received its prompt."""
        now = self._core.context.clock()
        usage, counted = (
            self._usage.end_turn(turn.index, reported, now) if turn.is_sent else (None, [])
        )
        error_json = dumps(error) if error is not None else None
        is_withdrawn = reason == "cancelled" and not turn.is_sent
        fields = entries.turn_end_fields(
            reason,
            turn.duration_ms,
            error_json,
            withdrawn=is_withdrawn,
            usage=dumps(msgspec.to_builtins(usage)) if counted else b"",
        )
        last_seq = self._core.log.append("turn_end", turn.index, fields)
        self._agent.store_reported()
        self._core.row.last_turn_at = now
        detail = {
            "turn_index": turn.index,
            "stop_reason": reason,
            "duration_ms": turn.duration_ms,
            "error": error["code"] if error is not None else None,
        }
        ending = statements.end_turn(
            self._core.row.n,
            turn.index,
            last_seq=last_seq,
            stop_reason=reason,
            error=error_json,
            duration_ms=turn.duration_ms,
            at=now,
        )
        audit = self._core.audit("turn", now, **detail)
        self._core.context.writer.add([*ending, *counted, audit])
        self._core.alert(
            "turn_ended",
            last_seq,
            turn.index,
            stop_reason=reason,
            duration_ms=turn.duration_ms,
            error=error,
            **({"withdrawn": True} if is_withdrawn else {}),
            **({"usage": msgspec.to_builtins(usage)} if counted else {}),
        )
        turn.end(last_seq, reason, error)
        return usage

    def _trace_end(self, tracer: Tracer, turn: Turn, elapsed: float, usage: Any) -> None:
        row = self._core.row
        tracer.end_work(
            request_id=turn.request_id or "",
            session_id=row.id,
            elapsed=elapsed,
            attributes={
                "gen_ai.agent.name": row.agent,
                "gen_ai.request.model": row.model,
                "gen_ai.response.finish_reasons": [turn.stop_reason or ""],
                "clawdforge.app": row.app_name,
                "clawdforge.turn_index": turn.index,
                "clawdforge.queued_ms": int(1000 * (turn.dispatched_at - turn.accepted_at))
                if turn.dispatched_at
                else None,
            },
            usage=msgspec.to_builtins(usage) if usage is not None else {},
            error=turn.error["code"] if turn.error is not None else None,
        )

    def _measure_end(self, turn: Turn, elapsed: float, code: str | None) -> None:
        metrics, reason = self._core.context.metrics, turn.stop_reason or ""
        metrics.count_turn(code or reason)
        if turn.dispatched_at:
            metrics.turn.observe(elapsed)
        if turn.first_update_at:
            metrics.first_update.observe(turn.first_update_at - turn.dispatched_at)
        logger.info(
            "turn ended: %s",
            f"{reason}: {code}" if code is not None else reason,
            extra=self.log_extra(turn),
        )

    def release_prompt(self, turn: Turn) -> None:
        """Release the prompt's memory and its share of the limit, once it is logged or refused."""
        self._core.context.quotas.waiting_bytes.release(
            self._core.row.app_name, turn.reserved_bytes
        )
        turn.reserved_bytes = 0
        turn.blocks = b""

    def log_extra(self, turn: Turn) -> dict[str, Any]:
        """The fields of a line in the server's log that identify *turn*."""
        return {
            **self._core.log_extra(),
            "request_id": turn.request_id,
            "turn": turn.index,
            "duration_ms": turn.duration_ms or None,
        }
