"""One session during a reload: suspended, packed, and continued by the next version."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..storage.queries import Queries
from .agent_requests import WaitingRequests
from .core import SessionCore
from .pending_requests import CarriedRequest
from .session_agent import CarriedAgent, SessionAgent
from .session_settings import CarriedSettings, SessionSettings
from .turn_continuation import CarriedTurns
from .turn_queue import TurnQueue
from .turn_recorder import TurnRecorder
from .turns import CurrentTurn, Turn
from .usage import CarriedUsage, SessionUsage


class CarriedSession(msgspec.Struct, kw_only=True):
    """The state of one session that the database lacks, for the next version of the server.

    Attributes:
        last_sent: the newest turn whose prompt the agent has received.
        last_started: the newest turn whose start is in the log.
        calls: the tool calls of the current turn.
        closing: the reason for which it is being closed, if it is.
    """

    id: str
    agent: CarriedAgent
    turns: CarriedTurns
    settings: CarriedSettings
    usage: CarriedUsage
    permissions: list[CarriedRequest]
    elicitations: list[CarriedRequest]
    calls: dict[str, dict[str, str]]
    last_sent: int
    last_started: int
    closing: str | None


class SessionContinuation:
    """Packs one session for a reload, and restores it in the next version of the server.

    Args:
        closing: returns the reason for which the session is being closed, if it is.
    """

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        agent: SessionAgent,
        settings: SessionSettings,
        requests: WaitingRequests,
        recorder: TurnRecorder,
        turns: TurnQueue,
        usage: SessionUsage,
        closing: Callable[[], str | None],
    ) -> None:
        self._core = core
        self._current = current
        self._agent = agent
        self._settings = settings
        self._requests = requests
        self._recorder = recorder
        self._turns = turns
        self._usage = usage
        self._closing = closing
        self._was_starting = False

    @property
    def _queries(self) -> Queries:
        return self._core.context.queries

    # A reload of the server

    @property
    def is_settled(self) -> bool:
        """Whether no short step, such as a commit, is in progress."""
        is_half_done = self._turns.continuation.is_half_done or self._settings.is_changing
        return not (is_half_done or self._closing() is not None)

    def suspend(self) -> None:
        """Begin nothing more, and give up the steps that the next version can begin again."""
        self._was_starting = self._agent.suspend()
        self._turns.continuation.suspend()

    @property
    def is_suspended(self) -> bool:
        """Whether the server has finished its own steps, so that only the agent works."""
        return self._turns.continuation.is_suspended

    def resume(self) -> None:
        """Continue after a reload that was given up."""
        if self._was_starting:
            self._was_starting = False
            self._agent.start()
        self._turns.continuation.resume()

    @property
    def is_needed(self) -> bool:
        """Whether the next version needs more of the session than the database has."""
        is_idle = not (self._agent.is_live or self._was_starting or self._turns.is_busy)
        return not (is_idle and self.is_settled and not self._requests)

    def pack(self) -> CarriedSession:
        return CarriedSession(
            id=self._core.id,
            agent=self._agent.pack(starts=self._was_starting),
            turns=self._turns.continuation.pack(),
            settings=self._settings.pack(),
            usage=self._usage.pack(),
            permissions=self._requests.permissions.pack(),
            elicitations=self._requests.elicitations.pack(),
            calls=self._requests.permissions.calls.pack(),
            last_sent=self._current.last_sent_index,
            last_started=self._recorder.last_started_index,
            closing=self._closing(),
        )

    async def restore(self, carried: CarriedSession) -> None:
        """Restore the session of an earlier version of the server."""
        self._current.last_sent_index = carried.last_sent
        self._recorder.last_started_index = carried.last_started
        self._usage.restore(carried.usage)
        turns = await self._unfinished(carried.turns)
        handle = await self._agent.restore(carried.agent)
        self._requests.permissions.calls.restore(carried.calls)
        self._requests.permissions.restore(carried.permissions)
        self._requests.elicitations.restore(carried.elicitations)
        changes = self._settings.restore(carried.settings)
        self._turns.continuation.restore(carried.turns, turns, handle, changes)
        self._turns.continuation.resume()

    async def _unfinished(self, carried: CarriedTurns) -> dict[int, Turn]:
        """The turns of the session that have not ended, by their indexes."""
        n = self._core.row.n
        rows = await self._queries.unfinished_turns(n)
        current = carried.current.index if carried.current is not None else None
        is_over = current is not None and current not in [row.turn_index for row in rows]
        if is_over and (ended := await self._queries.turn(n, current or 0)) is not None:
            rows.append(ended)  # the agent has not decided all of its prompts
        return {row.turn_index: Turn.from_row(row) for row in rows}
