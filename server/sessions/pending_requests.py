"""Requests of a session's agent that wait for a client. Each is logged and gets one outcome."""

from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Literal, TypeVar

import msgspec

from ..codec import dumps
from ..errors import not_found
from ..storage import statements
from ..storage.schema import SessionRow
from ..storage.writer import DatabaseWriter
from . import entries
from .event_log import SessionLog

RequestKind = Literal["permission", "elicitation"]


class CarriedRequest(msgspec.Struct, kw_only=True):
    """A waiting request for the next version of the server; see :class:`PendingRequest`.

    Attributes:
        call: of a permission request.
    """

    request_id: str
    raw_id: Any
    request: dict[str, Any]
    turn_index: int
    expires_at: int
    call: dict[str, Any] = {}


class PendingRequest:
    """A request of the agent that has no outcome yet.

    Attributes:
        request_id: the id for clients.
        raw_id: the agent's id.
        request: the params of the agent's request.
        call: the tool call of a permission request, with the fields that were reported before.
        expires_at: unix milliseconds.
        is_stored: the database has it, so that the next server can cancel it.
    """

    def __init__(
        self, raw_id: Any, request: Mapping[str, Any], turn_index: int, expires_at: int
    ) -> None:
        self.request_id = str(uuid.uuid4())
        self.raw_id = raw_id
        self.request = request
        self.call: Mapping[str, Any] = {}
        self.turn_index = turn_index
        self.expires_at = expires_at
        self.timer: asyncio.TimerHandle | None = None
        self.is_stored = False


Pending = TypeVar("Pending", bound=PendingRequest)


class PendingRequests(ABC, Generic[Pending]):
    """The requests of one kind of one session's agent. Its length is the number that wait.

    Args:
        timeout: returns the seconds in which a client must respond.
        respond: sends an outcome to the agent, by the agent's id of the request.

    Attributes:
        kind: by which the database distinguishes them.
        cancelled: the outcome of a request that is cancelled.
        on_waiting: called when a request begins to wait, whose entry was appended in this step.
    """

    kind: RequestKind
    cancelled: Mapping[str, Any]

    def __init__(
        self,
        row: SessionRow,
        log: SessionLog,
        writer: DatabaseWriter,
        timeout: Callable[[], float],
        respond: Callable[[Any, Mapping[str, Any]], None],
    ) -> None:
        self._row = row
        self._log = log
        self._writer = writer
        self._timeout = timeout
        self._respond = respond
        self.on_waiting: Callable[[Pending], None] = lambda pending: None
        self._pending: dict[str, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    @abstractmethod
    def pending(self) -> list[dict[str, Any]]:
        """The waiting requests, as clients see them."""

    @abstractmethod
    def _log_request(self, turn_index: int, fields: bytes) -> None:
        """Append the entry of a request to the log."""

    @abstractmethod
    def _log_outcome(self, turn_index: int, fields: bytes) -> None:
        """Append the entry of an outcome to the log."""

    @abstractmethod
    def _restored(self, carried: CarriedRequest) -> Pending:
        """Make a request of an earlier version of the server."""

    @abstractmethod
    def _on_timeout(self, pending: Pending) -> Mapping[str, Any]:
        """The outcome of a request to which no client responds in time."""

    def pack(self) -> list[CarriedRequest]:
        """Return the waiting requests for the next version of the server."""
        return [
            CarriedRequest(
                request_id=pending.request_id,
                raw_id=pending.raw_id,
                request=dict(pending.request),
                turn_index=pending.turn_index,
                expires_at=pending.expires_at,
                call=dict(pending.call),
            )
            for pending in self._pending.values()
        ]

    def restore(self, carried: Iterable[CarriedRequest]) -> None:
        """Let clients respond to the requests of an earlier version of the server."""
        for request in carried:
            pending = self._restored(request)
            pending.request_id, pending.is_stored = request.request_id, True
            self._pending[pending.request_id] = pending
            left = max(0.0, pending.expires_at / 1000 - self._log.time_ns() / 1e9)
            self._start_timer(pending, left)

    def cancel(self, turn_index: int | None = None) -> None:
        """Cancel the waiting requests of one turn, or all."""
        for pending in tuple(self._pending.values()):
            if turn_index in (None, pending.turn_index):
                self._finish(pending, self.cancelled, "cancel")

    def withdraw(self, raw_id: Any) -> None:
        """Cancel the waiting request to which the agent gave that id."""
        for pending in tuple(self._pending.values()):
            if pending.raw_id == raw_id and type(pending.raw_id) is type(raw_id):
                self._finish(pending, self.cancelled, "cancel")

    def cancel_unfinished(self, asked: Iterable[tuple[str, int]]) -> None:
        """Cancel the requests that an earlier server left.

        Args:
            asked: the id of each, and the index of its turn.
        """
        for request_id, turn_index in asked:
            fields = entries.encode_fields(
                request_id=request_id, outcome=self.cancelled, by="cancel"
            )
            self._log_outcome(turn_index, fields)
            self._forget(request_id)

    def _find(self, request_id: str) -> Pending:
        pending = self._pending.get(request_id)
        if pending is None:
            raise not_found(f"pending {self.kind} request")
        return pending

    def _expires_at(self) -> int:
        return int(self._log.time_ns() / 1e6 + self._timeout() * 1000)

    def _add(self, pending: Pending) -> None:
        """Log a request."""
        self._pending[pending.request_id] = pending
        fields = entries.agent_request_fields(
            pending.request_id, dumps(pending.request), pending.expires_at
        )
        self._log_request(pending.turn_index, fields)

    def _wait(self, pending: Pending) -> None:
        """Let clients respond to a request."""
        pending.is_stored = True  # with its entry
        self._writer.add(
            [
                statements.insert_agent_request(
                    self._row.n, self.kind, pending.request_id, pending.turn_index
                )
            ]
        )
        self._start_timer(pending, self._timeout())

    def _start_timer(self, pending: Pending, secs: float) -> None:
        pending.timer = asyncio.get_running_loop().call_later(
            secs, self._finish, pending, self._on_timeout(pending), "timeout"
        )
        self.on_waiting(pending)

    def _finish(self, pending: Pending, outcome: Mapping[str, Any], by: str) -> None:
        if self._pending.pop(pending.request_id, None) is None:
            return
        if pending.timer is not None:
            pending.timer.cancel()
        self._respond(pending.raw_id, outcome)
        fields = entries.encode_fields(request_id=pending.request_id, outcome=outcome, by=by)
        self._log_outcome(pending.turn_index, fields)
        if pending.is_stored:
            self._forget(pending.request_id)

    def _forget(self, request_id: str) -> None:
        self._writer.add([statements.delete_agent_request(self._row.n, request_id)])
