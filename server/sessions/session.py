"""One conversation with an agent: its identity, its state and its end.

The objects of a session, in the order in which they use each other (each knows only earlier ones):

``core``              the row, the log and the state that they share
``requests``          the agent's permission requests and questions
``session_agent``     the agent's process and its slot
``session_settings``  mode, model and options
``turn_recorder``     ``turn_start`` and ``turn_end`` in the log
``turn_runner``       the current turn
``waiting_turns``     the turns that wait for earlier ones
``client_ids``        finds prompts by the ids that clients gave them
``steering``          prompts that are added to the running turn
``turn_loop``         runs one turn after the other
``turn_continuation`` the turns during a reload
``turn_queue``        accepts prompts, finds and cancels turns
``succession``        the work of an earlier server, and for a later one
``details``           ``meta`` with the title, the times, and what was read
``observer``          the reports of the agent
``editor``            changes what clients may change of the session's row
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ..errors import Error, ErrorCode, not_found
from ..storage import statements
from ..storage.schema import SessionRow
from . import entries
from .agent_requests import WaitingRequests
from .agent_spec import system_delivery
from .context import SessionContext
from .core import SessionCore, SessionState
from .details import SessionDetails
from .observer import SessionObserver
from .option_views import options_view
from .options import SessionOptions
from .pending_requests import RequestKind
from .prewarm import PrewarmedAgent
from .session_agent import SessionAgent
from .session_continuation import SessionContinuation
from .session_editor import SessionEditor
from .session_settings import SessionSettings
from .settings import Setting, SettingChange
from .steering import SteerRequest
from .succession import Succession
from .turn_queue import TurnQueue
from .turn_recorder import TurnRecorder
from .turn_runner import TurnRunner
from .turns import Acceptance, CancelCause, CurrentTurn, Turn
from .usage import SessionUsage

logger = logging.getLogger(__name__)

CLOSE_GRACE_SECS = 1.0
"""The time that a running turn has to end by itself when its session is closed."""


class Session:
    """A session in memory. A closed session can only be read, reopened and deleted.

    Args:
        head: the last stored position of its log.
        last_turn_index: the index of the newest accepted turn; 0 if there is none.

    Attributes:
        turns: accepts, finds and cancels turns.
        settings: the settings of the agent.
        permissions: the agent's permission requests.
        elicitations: its questions.
        agent: the agent's process.
        snapshots: of the session's folder.
        succession: ends or continues the work of an earlier server, and leaves it to a later one.
        details: what the app notes about the session.
        editor: changes the session's times, permission policy, options and ``meta``.
        is_reopening: it is about to be open again.
        fork_lock: held while the session is being forked.
        subscribers: the number of connections that follow the log.
        tenure: whether this node of a cluster still has the session.
        continuation: packs the session for a reload, and restores it after it.
    """

    def __init__(
        self, context: SessionContext, row: SessionRow, *, head: int, last_turn_index: int
    ) -> None:
        self._context = context
        self._core = core = SessionCore(context, row, head, self._changed)
        self._current = current = CurrentTurn(last_turn_index)
        self._close_task: asyncio.Task[None] | None = None
        self._closing: str | None = None
        self.is_reopening = False
        self.fork_lock = asyncio.Lock()
        self.details = SessionDetails(core)
        self.usage = SessionUsage(core)
        self.row = row
        self.log, self.snapshots, self.tenure = core.log, core.snapshots, core.tenure
        self.subscribers = 0
        self._requests = requests = WaitingRequests.create(core, self._send_outcome)
        self.permissions, self.elicitations = requests.permissions, requests.elicitations
        self.agent = SessionAgent(core, current, requests, self._is_working)
        self.settings = SessionSettings(core, self.agent, current)
        self._recorder = TurnRecorder(
            core, self.agent, self.settings, requests, self.usage, last_turn_index
        )
        self._runner = TurnRunner(core, current, self.agent, requests, self._recorder)
        self.turns = TurnQueue(
            core,
            current,
            agent=self.agent,
            settings=self.settings,
            requests=requests,
            recorder=self._recorder,
            runner=self._runner,
            last_turn_index=last_turn_index,
        )
        self.succession = Succession(
            core, current, requests, recorder=self._recorder, runner=self._runner, turns=self.turns
        )
        self._observer = SessionObserver(
            core,
            current,
            agent=self.agent,
            settings=self.settings,
            requests=requests,
            runner=self._runner,
            details=self.details,
            usage=self.usage,
        )
        self.editor = SessionEditor(
            core, self.details, self.agent, self.settings, observer=self._observer
        )
        turns, usage = self.turns, self.usage
        parts = self.agent, self.settings, requests, self._recorder, turns, usage
        self.continuation = SessionContinuation(
            core, current, *parts, closing=lambda: self._closing
        )
        if core.is_open:
            self.agent.create(self._observer)

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def options(self) -> SessionOptions:
        return self._core.options

    @property
    def is_closed(self) -> bool:
        """Whether its close has begun. The log may not have ``session_closed`` yet."""
        return not self._core.is_open

    @property
    def is_log_complete(self) -> bool:
        """Whether ``session_closed`` is in the log, so that no entry will follow."""
        return self._core.is_log_complete

    @property
    def is_stored(self) -> bool:
        """Whether the database has every entry of the log."""
        return self.log.head == self.log.last

    @property
    def is_busy(self) -> bool:
        """Whether a turn runs or waits."""
        return self.turns.is_busy

    @property
    def state_name(self) -> str:
        """The state that clients see: ``idle``, ``running`` or ``closed``."""
        is_running = self._current.running is not None
        return "closed" if self.is_closed else "running" if is_running else "idle"

    def agent_view(self) -> dict[str, Any]:
        """Whether the agent runs, its settings, and what it offers, in ACP's shapes."""
        return {"agent_state": self.agent.presence, **self.settings.view()}

    def view(self) -> dict[str, Any]:
        """The session as REST returns it; times are unix seconds or None."""
        row, running = self.row, self._current.running
        return {
            "session_id": row.id,
            "agent": row.agent,
            "model": row.model,
            "system": row.system,
            "system_delivery": system_delivery(self._core),
            "permission": row.permission,
            "cwd": row.cwd,
            "created_at": int(row.created_at),
            "last_turn_at": None if row.last_turn_at is None else int(row.last_turn_at),
            "turn_count": row.turn_count,
            "closed_at": None if row.closed_at is None else int(row.closed_at),
            "close_reason": row.close_reason,
            "state": self.state_name,
            "head": self.log.head,
            "turn_index": running.index if running is not None else None,
            "queued": self.turns.waiting.view(),
            "pending_permissions": self.permissions.view(),
            "pending_elicitations": self.elicitations.pending(),
            "sockets": self.subscribers,
            "sandbox": self._context.backend.sandbox.of(row.app_name).level,
            **options_view(self._core.options, self._context.settings),
            **self.details.view(),
            "usage": self.usage.view(),
            **self.agent_view(),
        }

    def start_agent(self, prewarmed: PrewarmedAgent | None) -> None:
        """Take over *prewarmed*, or start an agent in the background if a slot is free."""
        self.settings.log_asks()
        if prewarmed is None:
            self.agent.start()
            return
        self.agent.adopt(prewarmed, self._observer)
        if not self.settings.wanted.is_empty and self._context.slots.has_slot(self.agent):
            self.agent.start_in_slot()

    async def prompt(
        self,
        blocks: bytes,
        *,
        request_id: str | None = None,
        client_id: str | None = None,
        timeout: float | None = None,
        steer: SteerRequest | None = None,
    ) -> Acceptance:
        """Accept a prompt; it is stored when the call returns.

        Args:
            blocks: JSON of checked content blocks.
            request_id: the id of the HTTP request, for the server's log.
            client_id: makes the prompt idempotent in this session.
            timeout: seconds that the turn may run, if less than the setting.
            steer: add the prompt to the running turn if possible.

        Raises:
            Error: the prompt is not accepted.
            NotSteeredError: it must not become an ordinary prompt.
        """
        return await self.turns.accept(
            blocks, request_id=request_id, client_id=client_id, timeout=timeout, steer=steer
        )

    def cancel(self, turn_index: int | None = None) -> bool:
        """Cancel a turn; see :meth:`TurnQueue.cancel`."""
        return self.turns.cancel(turn_index)

    def request_change(self, setting: Setting) -> SettingChange:
        """Change a setting of the agent; see :meth:`SessionSettings.request`."""
        return self.settings.request(setting)

    async def wait_ended(self, turn: Turn) -> None:
        """Wait until *turn* has ended and its end is durable."""
        await self.log.reach(await turn.wait_ended())

    # Ending

    async def close(self, reason: str) -> None:
        """End the turns, log the close and end the agent. A second call waits for the first.

        Args:
            reason: ``client``, ``idle`` or ``admin``.
        """
        if self._core.is_open:
            self._core.move_to(SessionState.CLOSING)
            self._close_task = self._context.closing.spawn(self._close(reason), f"close-{self.id}")
        if self._close_task is not None:
            await asyncio.shield(self._close_task)

    async def _close(self, reason: str) -> None:
        self._closing = reason
        await self.turns.end_waiting(CancelCause.CANCEL)
        turn = self._current.running
        if turn is not None:
            grace = min(CLOSE_GRACE_SECS, self._context.settings.cancel_grace_secs)
            self._runner.interrupt(turn, CancelCause.CANCEL, grace)
            await turn.wait_ended()
        await self.turns.steering.finish(CLOSE_GRACE_SECS)
        self._requests.cancel()  # the agent may have requested one after the end of the turn
        now = self._context.clock()
        fields = entries.encode_fields(reason=reason)
        seq = self.log.append("session_closed", self._recorder.last_started_index, fields)
        self._core.move_to(SessionState.CLOSED)
        self.row.closed_at, self.row.close_reason = now, reason
        event = "sweep_close" if reason == "idle" else "close"
        self._context.writer.add(
            [
                statements.close_session(self.row.n, reason, now),
                self._core.audit(event, now, reason=reason, turn_count=self.row.turn_count),
            ]
        )
        self._core.alert("session_closed", seq, self._recorder.last_started_index, reason=reason)
        logger.info("session closed: %s", reason, extra=self._core.log_extra())
        await self.agent.end()
        self._closing = None
        await self.log.reach(seq)  # last: on a full disk it waits for space

    async def reopen(self) -> None:
        """Open the session again. The registry has checked the limits.

        Raises:
            Error: ``conflict`` if it is open, ``not_found`` if it is being deleted.
        """
        if self._close_task is not None:
            await asyncio.shield(self._close_task)
        if self.row.removed_at is not None:
            raise not_found()
        if self._core.is_open:
            raise Error(ErrorCode.CONFLICT, "the session is open")
        self._close_task = None
        now = self._context.clock()
        row = self.row
        fields = entries.encode_fields(reason="client")
        seq = self.log.append("session_reopened", self._recorder.last_started_index, fields)
        self._core.move_to(SessionState.OPEN)
        row.closed_at = row.close_reason = None
        row.reopened_at = now
        self._context.writer.add(
            [statements.open_session(row.n, now), self._core.audit("reopen", now)]
        )
        self.agent.create(self._observer)
        self._changed()
        logger.info("session reopened", extra=self._core.log_extra())
        await self.log.reach(seq)

    # Used by the session's objects

    def _changed(self) -> None:
        self._context.changes.add(self)

    def _is_working(self) -> bool:
        return self.turns.is_busy or self.settings.is_changing

    def _send_outcome(self, kind: RequestKind, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        agent = self.agent.backend_agent
        answer = agent.answer_permission if kind == "permission" else agent.answer_elicitation
        answer(raw_id, outcome)
        # If no turn runs, only this request kept the agent from hibernating.
        self._context.slots.reconsider()
