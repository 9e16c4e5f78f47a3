"""The row, the log and the state of a session, which all of its objects share."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from ..codec import dumps
from ..errors import Error, ErrorCode, draining, session_closed
from ..states import StateMachine, Transitions
from ..storage import statements
from ..storage.schema import SessionRow, Statement
from .alerts import AlertKind
from .context import SessionContext
from .options import SessionOptions
from .tenure import TENURE_TRANSITIONS, TenureState


class SessionState(enum.Enum):
    """The states of a session. One that was closed before it was loaded begins as CLOSED."""

    OPEN = "open"
    """Accepts prompts and changes of settings."""
    CLOSING = "closing"
    """Accepts nothing. Its turns and its agent are being ended. Clients see it as closed."""
    CLOSED = "closed"
    """``session_closed`` is in the log. Nothing follows it unless the session is reopened."""


SESSION_TRANSITIONS: Transitions[SessionState] = {
    SessionState.OPEN: {SessionState.CLOSING},
    SessionState.CLOSING: {SessionState.CLOSED},
    SessionState.CLOSED: {SessionState.OPEN},
}


class SessionCore:
    """The parts of one session that all its objects share: its row, its log and its state.

    Args:
        head: the last stored position of the log.
        on_change: called when the state that clients see may have changed.

    Attributes:
        options: what the client chose at the session's creation, and has changed since.
        notify_changed: *on_change*.
        snapshots: of the session's folder.
        tenure: whether this node of a cluster still has the session.
    """

    def __init__(
        self,
        context: SessionContext,
        row: SessionRow,
        head: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.context = context
        self.row = row
        self.options = SessionOptions.decode(row.options)
        self.notify_changed = on_change
        self.snapshots = context.snapshots.of(
            row.id, row.app_name, row.cwd, is_new=not row.turn_count
        )
        self.log = context.logs.open(row.n, head, on_change)
        initial = SessionState.OPEN if row.close_reason is None else SessionState.CLOSED
        self._state = StateMachine(SESSION_TRANSITIONS, initial)
        self.tenure = StateMachine(TENURE_TRANSITIONS, TenureState.OWNED)

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
        """Whether ``session_closed`` is in the log, so that no entry will follow for now."""
        if (source := self.log.source) is not None:  # another node may have the session
            return source.is_complete
        return self._state.current is SessionState.CLOSED

    async def check_accepts_prompts(self) -> None:
        """Check that the session accepts a prompt, and count it.

        Raises:
            Error: ``session_closed``, ``draining``, ``budget_exceeded``, ``rate_limited`` or
                ``internal``.
        """
        context, app_name = self.context, self.row.app_name
        await context.disk.check(app_name)
        self._check_open()
        if context.quotas.shared is None:
            context.accounts.check(app_name)
            context.quotas.check_prompt_rate(app_name)
            return
        await context.accounts.update(app_name)
        context.accounts.check(app_name)
        await context.quotas.check_shared_prompt_rate(app_name)
        self._check_open()
        context.accounts.check(app_name)

    def check_owned(self) -> None:
        """Check that no other node of a cluster may have the session.

        Raises:
            Error: ``draining``; a new look-up finds the node that has it.
        """
        if self.tenure.current is not TenureState.OWNED:
            message = "the session has moved to another node; retry"
            raise Error(ErrorCode.DRAINING, message, retry_after=1)

    def _check_open(self) -> None:
        self.check_owned()
        if not self.is_open:
            raise session_closed()
        if self.context.is_draining:
            raise draining()

    def move_to(self, state: SessionState) -> None:
        """Change the state. Only the owner of a session does.

        Raises:
            Error: ``draining``; another node may have the session.
        """
        self.check_owned()
        self._state.move_to(state)

    def log_extra(self) -> dict[str, Any]:
        """The fields of a line in the server's log that identify the session."""
        return {"session": self.id, "app": self.row.app_name}

    def audit(self, event: str, at: float, **detail: Any) -> Statement:
        """Return the statement that stores an audit record of the session."""
        return statements.insert_audit_event(
            self.id, self.row.app_name, event, at, dumps(detail).decode()
        )

    def alert(self, kind: AlertKind, seq: int, turn_index: int, **fields: Any) -> None:
        """Raise an alert about the entry at *seq*, which was appended in this step."""
        self.context.alerts.of_session(self.row, kind, seq, turn_index, fields)
