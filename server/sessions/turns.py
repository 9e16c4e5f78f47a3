"""One turn: a prompt from its acceptance to its end."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..agents.prompt_handle import PromptHandle
from ..codec import loads, parse_message
from ..errors import Error, ErrorCode
from ..limits import ByteQuota
from ..states import StateMachine, Transitions
from ..storage.schema import TurnRow
from .settings import SettingChange

PREVIEW_LENGTH = 1000
"""Characters of a waiting prompt that clients see."""


class CancelCause(enum.Enum):
    """The reason for which the server, and not the agent, ends a turn."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    RESTART = "restart"
    REFUSED = "refused"
    """The app used up its budget before the agent received the prompt, or its disk space."""


class TurnState(enum.Enum):
    """The states of a turn."""

    ACCEPTING = "accepting"
    """Its prompt is being stored. Until then, clients cannot find it."""
    REFUSED = "refused"
    """Its prompt could not be stored. It never existed for clients."""
    QUEUED = "queued"
    """Stored; it waits for earlier turns of the session."""
    PREPARING = "preparing"
    """The session's current turn. It waits for settings, for a slot, or for the agent to get it."""
    STARTED = "started"
    """``turn_start`` is in the log."""
    ENDED = "ended"
    """``turn_end`` is in the log."""


TURN_TRANSITIONS: Transitions[TurnState] = {
    TurnState.ACCEPTING: {TurnState.REFUSED, TurnState.QUEUED, TurnState.PREPARING},
    TurnState.REFUSED: set(),
    # A turn that ends while it waits is started and ended at once, so the log has both entries.
    TurnState.QUEUED: {TurnState.PREPARING, TurnState.STARTED},
    # To QUEUED: the server is reloaded, and its next version runs the turn.
    TurnState.PREPARING: {TurnState.STARTED, TurnState.QUEUED},
    TurnState.STARTED: {TurnState.ENDED},
    TurnState.ENDED: set(),
}


class Turn:
    """One prompt, from its acceptance to its end.

    Attributes:
        index: its number in the session, from 1.
        client_id: the client's id of the prompt, which makes it idempotent in the session.
        blocks: JSON of the ACP content blocks; empty once the log has them.
        reserved_bytes: the prompt's share of its app's limit on waiting prompts.
        timeout: seconds that it may run, if less than the setting.
        request_id: the id of the HTTP request that sent the prompt, for the server's log.
        changes: the changes of settings that were requested before it and must be made first.
        accepted_at: the time of its acceptance. Times are from ``time.monotonic()``.
        dispatched_at: the time at which it was given to the agent, or began to wait for a slot;
            0.0 before that.
        first_update_at: the time of the agent's first update; 0.0 before that.
        runs_since: the time from which its time limit counts; 0.0 before that.
        is_suspended: the next version of the server runs it, unless the agent has its prompt.
        snapshot: takes the snapshot before the turn; None if there is none.
        handle: the prompt on its way to the agent; None until :meth:`TurnRunner.send`.
        interrupt: stops the current wait: for settings, for a slot, or for the agent.
        cancel_cause: the reason for which the server ends the turn; None if it does not.
        refusal: the error of a turn that was refused after its acceptance.
        is_sent: the agent has received the prompt.
        history: the text of the conversation so far that precedes the prompt; None without one.
        first_seq, last_seq: log positions of ``turn_start`` and ``turn_end``, if they exist.
        stop_reason, error, duration_ms: the fields of ``turn_end``.
    """

    def __init__(
        self,
        index: int,
        client_id: str | None,
        blocks: bytes,
        timeout: float | None,
        request_id: str | None = None,
        *,
        state: TurnState = TurnState.ACCEPTING,
    ) -> None:
        self.index = index
        self.client_id = client_id
        self.blocks = blocks
        self.reserved_bytes = 0
        self.timeout = timeout
        self.request_id = request_id
        self.changes: Sequence[SettingChange] = ()
        self.accepted_at = time.monotonic()
        self.dispatched_at = 0.0
        self.first_update_at = 0.0
        self.runs_since = 0.0
        self.is_suspended = False
        self.snapshot: asyncio.Task[None] | None = None
        self.handle: PromptHandle | None = None
        self.interrupt: Callable[[], Any] | None = None
        self.cancel_cause: CancelCause | None = None
        self.refusal: Error | None = None
        self.is_sent = False
        self.history: str | None = None
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        self.stop_reason: str | None = None
        self.error: dict[str, Any] | None = None
        self.duration_ms = 0
        self._state = StateMachine(TURN_TRANSITIONS, state)
        self._preview: list[dict[str, str]] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._decided = asyncio.Event()
        self._started = asyncio.Event()
        self._ended = asyncio.Event()

    @classmethod
    def from_row(cls, row: TurnRow) -> Turn:
        """Return a turn that has ended, or that an earlier server left unfinished."""
        if row.last_seq is not None:
            state = TurnState.ENDED
        else:
            state = TurnState.QUEUED if row.first_seq is None else TurnState.STARTED
        turn = cls(row.turn_index, row.client_id, row.prompt, row.timeout_secs, state=state)
        turn.first_seq, turn.last_seq = row.first_seq, row.last_seq
        turn._decided.set()
        if row.first_seq is not None:
            turn._started.set()
        if row.last_seq is not None:
            turn.stop_reason = row.stop_reason
            turn.error = parse_message(row.error) if row.error else None
            turn.duration_ms = row.duration_ms or 0
            turn._ended.set()
        return turn

    def to_row(self, session: int) -> TurnRow:
        """Return the row of a turn that has not started, in the session of that number."""
        return TurnRow(session, self.index, self.client_id, self.blocks, self.timeout)

    @property
    def state(self) -> TurnState:
        return self._state.current

    @property
    def is_stored(self) -> bool:
        return self.state not in (TurnState.ACCEPTING, TurnState.REFUSED)

    @property
    def has_started(self) -> bool:
        """Whether ``turn_start`` is in the log."""
        return self.first_seq is not None

    @property
    def has_ended(self) -> bool:
        """Whether ``turn_end`` is in the log. The database has it a moment later."""
        return self.state is TurnState.ENDED

    @property
    def preview(self) -> list[dict[str, str]]:
        """The prompt's first characters, as content blocks; other blocks are only named."""
        if self._preview is None:
            self._preview = _preview_of(loads(self.blocks)) if self.blocks else []
        return self._preview

    def reserve(self, quota: ByteQuota, app_name: str) -> None:
        """Reserve the prompt's share of its app's limit.

        Raises:
            Error: ``queue_full``.
        """
        quota.acquire(app_name, len(self.blocks))
        self.reserved_bytes = len(self.blocks)

    def replace_prompt(self, blocks: bytes) -> None:
        """Replace the prompt of a waiting turn, and its share of the limit."""
        self.blocks, self.reserved_bytes, self._preview = blocks, len(blocks), None

    # Transitions

    def mark_stored(self, *, is_queued: bool) -> None:
        """Note that the database has the turn; without *is_queued* it is the current one."""
        self._state.move_to(TurnState.QUEUED if is_queued else TurnState.PREPARING)
        self._decided.set()

    def refuse(self) -> None:
        """Note that the turn could not be stored."""
        self._state.move_to(TurnState.REFUSED)
        self._decided.set()

    def prepare(self) -> None:
        """Make the turn the current one."""
        self._state.move_to(TurnState.PREPARING)

    @property
    def is_interrupted(self) -> bool:
        """Whether it must not be given to the agent any more."""
        return self.cancel_cause is not None or self.is_suspended

    def suspend(self) -> None:
        """Withdraw the prompt from the agent, which has not received it, for a later version."""
        self.is_suspended = True
        if self.interrupt is not None:
            self.interrupt()

    def requeue(self) -> None:
        """Let a suspended turn wait again, as if it had never been the current one."""
        self._state.move_to(TurnState.QUEUED)
        self.handle = self.snapshot = self.interrupt = None
        self.is_suspended = False
        self.dispatched_at = 0.0

    def start(self, first_seq: int) -> None:
        """Note that ``turn_start`` is in the log."""
        self._state.move_to(TurnState.STARTED)
        self.first_seq = first_seq
        self._started.set()

    def end(self, last_seq: int, stop_reason: str, error: dict[str, Any] | None) -> None:
        """Note that ``turn_end`` is in the log."""
        self._state.move_to(TurnState.ENDED)
        self.last_seq = last_seq
        self.stop_reason = stop_reason
        self.error = error
        self._ended.set()

    # Waiting

    async def wait_stored(self) -> bool:
        """Wait until the turn is stored (True) or refused (False)."""
        await self._decided.wait()
        return self.is_stored

    async def wait_started(self) -> None:
        """Wait until ``turn_start`` is in the log."""
        await self._started.wait()

    async def wait_ended(self) -> int:
        """Wait until ``turn_end`` is in the log, and return its position."""
        await self._ended.wait()
        assert self.last_seq is not None
        return self.last_seq

    # Ending

    def withdraw(self, cause: CancelCause) -> None:
        """Prevent a turn that is being accepted from reaching the agent."""
        self.cancel_cause = cause
        if self.interrupt is not None:
            self.interrupt()

    def refuse_start(self, error: Error) -> None:
        """Prevent an accepted turn from reaching the agent; it ends with *error*."""
        if self.cancel_cause is None:
            self.refusal = error
            self.withdraw(CancelCause.REFUSED)

    def call_later(self, delay: float, call: Callable[[], Any]) -> None:
        """Call *call* in *delay* seconds, unless :meth:`stop_timers` is called first."""
        self._timers.append(asyncio.get_running_loop().call_later(delay, call))

    def stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()


class Acceptance(NamedTuple):
    """The turn of an accepted prompt.

    Attributes:
        is_duplicate: an earlier prompt with the same client id had been accepted.
        is_steered: the prompt was added to the turn, which another prompt began.
    """

    turn: Turn
    is_duplicate: bool = False
    is_steered: bool = False


class CurrentTurn:
    """The turn of a session that has the agent, and the index that a new log entry gets.

    Attributes:
        turn: None between turns. Its prompt may still be on its way to the database.
        last_sent_index: the newest turn whose prompt the agent has received; 0 if there is none.
    """

    def __init__(self, last_turn_index: int) -> None:
        self.turn: Turn | None = None
        self.last_sent_index = last_turn_index

    @property
    def running(self) -> Turn | None:
        """The current turn, if it is stored and has not ended."""
        turn = self.turn
        return turn if turn is not None and turn.is_stored and not turn.has_ended else None

    def refuse_unsent(self, error: Error) -> None:
        """End the turn with *error* if the agent has not received its prompt."""
        turn = self.turn
        if turn is not None and not (turn.is_sent or turn.has_ended):
            turn.refuse_start(error)

    def entry_turn_index(self) -> int:
        """The turn index of a new entry: an update after a turn's end belongs to that turn."""
        turn = self.turn
        if turn is not None and turn.first_seq is not None:
            return turn.index
        return self.last_sent_index


def resolve_end(
    turn: Turn, stop_reason: str | None, error: Error | None
) -> tuple[str, Error | None]:
    """Return the stop reason and the error that clients receive at the end of *turn*.

    Args:
        stop_reason: of the agent's response; None if there is none.
        error: the reason for which there is none.
    """
    if turn.cancel_cause is CancelCause.CANCEL:
        return "cancelled", None
    if turn.cancel_cause is CancelCause.REFUSED and turn.refusal is not None:
        return "error", turn.refusal
    if turn.cancel_cause is CancelCause.TIMEOUT:
        return "error", Error(ErrorCode.AGENT_TIMEOUT, "the turn reached its time limit")
    if turn.cancel_cause is CancelCause.RESTART and stop_reason in (None, "cancelled"):
        return "error", Error(
            ErrorCode.SERVER_RESTARTED,
            "the server restarted during the turn; send the prompt again",
        )
    if stop_reason is None:
        message = "the agent ended the turn without a response"
        return "error", error or Error(ErrorCode.AGENT_FAILED, message)
    return stop_reason, None


def _preview_of(blocks: list[dict[str, Any]]) -> list[dict[str, str]]:
    preview: list[dict[str, str]] = []
    left = PREVIEW_LENGTH
    for block in blocks:
        text = block["text"] if block["type"] == "text" else f"[{block['type']}]"
        if left and text:
            preview.append({"type": "text", "text": text[:left]})
            left = max(0, left - len(text))
    return preview
