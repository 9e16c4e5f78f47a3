"""The services of the server for its sessions, and the core that a session's objects share."""

from __future__ import annotations

import dataclasses
import enum
import operator
from collections.abc import Callable
from typing import Any

from ..agents.base import Backend
from ..codec import dumps
from ..config import Settings
from ..limits import DiskReserve
from ..metrics import Metrics
from ..states import StateMachine, Transitions
from ..storage import statements
from ..storage.queries import Queries
from ..storage.schema import SessionRow, Statement
from ..storage.writer import DatabaseWriter
from ..tasks import Tasks
from .agent_slots import AgentSlots
from .event_log import EventLogs
from .quotas import SessionQuotas


@dataclasses.dataclass(slots=True)
class SessionContext:
    """The services of the server that every session uses.

    Attributes:
        tasks: cancelled when the server stops.
        closing: closes of sessions, which the server finishes before it stops.
        clock: returns unix seconds.
        is_draining: the server is stopping; no prompt is accepted.
    """

    settings: Settings
    backend: Backend
    queries: Queries
    logs: EventLogs
    writer: DatabaseWriter
    metrics: Metrics
    slots: AgentSlots
    disk: DiskReserve
    quotas: SessionQuotas
    tasks: Tasks
    closing: Tasks
    clock: Callable[[], float]
    is_draining: bool = False

    @classmethod
    def create(
        cls,
        settings: Settings,
        backend: Backend,
        queries: Queries,
        writer: DatabaseWriter,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> SessionContext:
        """Create the services that only sessions use, and add them to the given ones."""
        tasks = Tasks()
        slots = AgentSlots(
            settings.max_live_agents,
            tasks,
            reserve=settings.reserved_agents,
            each=settings.max_live_agents_per_app,
            app_of=operator.attrgetter("app_name"),
        )
        return cls(
            settings=settings,
            backend=backend,
            queries=queries,
            logs=EventLogs(writer, queries),
            writer=writer,
            metrics=metrics,
            slots=slots,
            disk=DiskReserve(settings.data_dir, settings.min_free_bytes),
            quotas=SessionQuotas(settings),
            tasks=tasks,
            closing=Tasks(),
            clock=clock,
        )


class SessionState(enum.Enum):
    """The life of a session. A session that is loaded after its close starts as CLOSED."""

    OPEN = "open"
    """Accepts prompts and changes of settings."""
    CLOSING = "closing"
    """Accepts nothing. Its turns and its agent are being ended."""
    CLOSED = "closed"
    """``session_closed`` is in the log and nothing follows it."""


SESSION_TRANSITIONS: Transitions[SessionState] = {
    SessionState.OPEN: {SessionState.CLOSING},
    SessionState.CLOSING: {SessionState.CLOSED},
    SessionState.CLOSED: set(),
}


class SessionCore:
    """The parts of one session that all its objects share: its row, its log and its state.

    Args:
        head: the newest position of the log.
    """

    def __init__(self, context: SessionContext, row: SessionRow, head: int) -> None:
        self.context = context
        self.row = row
        self.log = context.logs.open(row.n, head)
        initial = SessionState.OPEN if row.close_reason is None else SessionState.CLOSED
        self._state = StateMachine(SESSION_TRANSITIONS, initial)

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def state(self) -> SessionState:
        return self._state.current

    @property
    def is_open(self) -> bool:
        return self._state.current is SessionState.OPEN

    @property
    def is_log_complete(self) -> bool:
        """Whether nothing will be logged any more."""
        return self._state.current is SessionState.CLOSED

    def move_to(self, state: SessionState) -> None:
        self._state.move_to(state)

    def log_extra(self) -> dict[str, Any]:
        """The fields of a line in the server's log that identify the session."""
        return {"session": self.id, "app": self.row.app_name}

    def audit(self, event: str, at: float, **detail: Any) -> Statement:
        return statements.insert_audit_event(
            self.id, self.row.app_name, event, at, dumps(detail).decode()
        )
