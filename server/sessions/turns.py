"""One prompt, from its acceptance to its end, and how that end is told."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..agents.base import PromptHandle
from ..codec import loads, parse_message
from ..errors import Error
from ..storage.schema import TurnRow
from .settings import Change


class CancelCause(enum.Enum):
    """Why the server ends a turn that its agent has not ended."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    RESTART = "restart"


PREVIEW_LENGTH = 1000


class Turn:
    """One prompt, from its acceptance to its end.

    Attributes:
        index: its number in the session, from 1.
        blocks: JSON of the ACP content blocks, until the log has it.
        reserved: bytes that it holds of what its app's waiting prompts may have.
        first_seq, last_seq: log positions of its start and its end, when there.
        stop_reason, error, duration_ms: how it ended; ``error`` as in ``turn_end``.
        accepted_at, began, updated: when it was accepted, when it had its agent, and when that
            told something first (0: never).
        request_id: of the request that asked for it.
        sent: its prompt has reached the agent.
        handle: the prompt on its way to the agent, once the agent has been passed it.
        stored: done once it is decided whether there is such a turn: it is in the database
            (True), or could not be stored (False).
        changes: of settings, which must be made before it may run.
        finished: set once it has ended, a moment before its end is durable.
    """

    def __init__(
        self,
        index: int,
        client_id: str | None,
        blocks: bytes,
        timeout: float | None,
        request_id: str | None = None,
    ) -> None:
        self.index = index
        self.client_id = client_id
        self.blocks = blocks
        self.reserved = 0
        self._preview: list[dict[str, str]] | None = None
        self.timeout = timeout
        self.request_id = request_id
        self.accepted_at = time.monotonic()
        self.began = 0.0
        self.sent = False
        self.updated = 0.0
        self.ending: CancelCause | None = None
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        self.stop_reason: str | None = None
        self.error: dict[str, Any] | None = None
        self.duration_ms = 0
        self.stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.started = asyncio.Event()
        self.finished = asyncio.Event()
        self.handle: PromptHandle | None = None
        self.interrupt: Callable[[], Any] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.changes: Sequence[Change] = ()

    @property
    def preview(self) -> list[dict[str, str]]:
        """The prompt's first characters, as content blocks; what is not text is only named."""
        if self._preview is None:
            self._preview = _preview_of(loads(self.blocks)) if self.blocks else []
        return self._preview

    @property
    def is_stored(self) -> bool:
        return self.stored.done() and self.stored.result()

    @classmethod
    def of(cls, row: TurnRow) -> Turn:
        """A turn that ended earlier, or that an earlier server left unfinished."""
        turn = cls(row.turn_index, row.client_id, row.prompt, row.timeout_secs)
        turn.first_seq, turn.last_seq = row.first_seq, row.last_seq
        turn.stored.set_result(True)
        if row.first_seq is not None:
            turn.started.set()
        if row.last_seq is not None:
            turn.stop_reason = row.stop_reason
            turn.error = parse_message(row.error) if row.error else None
            turn.duration_ms = row.duration_ms or 0
            turn.finished.set()
        return turn

    def stop_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()


def _preview_of(blocks: list[dict[str, Any]]) -> list[dict[str, str]]:
    shown: list[dict[str, str]] = []
    left = PREVIEW_LENGTH
    for block in blocks:
        text = block["text"] if block["type"] == "text" else f"[{block['type']}]"
        if left and text:
            shown.append({"type": "text", "text": text[:left]})
            left = max(0, left - len(text))
    return shown


def verdict(turn: Turn, stop_reason: str | None, error: Error | None) -> tuple[str, Error | None]:
    """A turn's stop reason and error, of what the agent said and why it was interrupted."""
    if turn.ending is CancelCause.CANCEL:
        return "cancelled", None
    if turn.ending is CancelCause.TIMEOUT:
        return "error", Error("agent_timeout", "the turn took longer than it may")
    if turn.ending is CancelCause.RESTART and stop_reason in (None, "cancelled"):
        return "error", Error("server_restarted", "the server was restarted; ask again")
    if stop_reason is None:
        return "error", error or Error("agent_failed", "the agent ended the turn without an answer")
    return stop_reason, None
