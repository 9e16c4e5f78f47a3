"""What an agent asks leave for: who answers it, a policy or a client, and how that is told."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..agents.base import bounded
from ..codec import dumps
from ..errors import bad_request, not_found
from ..storage import statements
from ..storage.schema import SessionRow
from ..storage.writer import DatabaseWriter
from . import entries
from .event_log import SessionLog

MAX_PENDING = 32
"""One more that an agent asks leave for is rejected, until one has its outcome."""
HELD_BYTES = 64 << 10
"""A longer request is shortened while it waits; the log has the whole."""
SHOWN_BYTES = 128 << 10
"""Of all that waits in a session; beyond it the state and `ready` show each one shortened."""
SHORT_BYTES = 4 << 10
READ_KINDS = frozenset({"read", "search"})
MAX_CALLS = 500
MAX_CALL_ID = 256
MAX_CALL_TEXT = 1024
"""What is remembered of an agent's tool calls in a turn: about 1 MiB."""
CALL_FIELDS = ("toolCallId", "title", "kind", "status")


def shortened(request: Mapping[str, Any], limit: int) -> Mapping[str, Any]:
    """*request* with at most about *limit* bytes; its options come first."""
    whole = dict(request)
    if (kept := bounded(whole, limit)) == whole:
        return whole
    offered = bounded(whole.pop("options", None), limit // 2)
    kept = bounded(whole, limit // 2) or {}
    meta = kept.get("_meta")
    mark = {"clawdforge": {"shortened": True}}
    kept["_meta"] = {**meta, **mark} if isinstance(meta, dict) else mark
    return {**kept, "options": offered}


class Pending:
    """A permission request that has no outcome yet."""

    def __init__(
        self,
        raw_id: Any,
        request: Mapping[str, Any],
        call: Mapping[str, Any],
        turn_index: int,
        expires_at: int,
    ) -> None:
        self.request_id = str(uuid.uuid4())
        self.raw_id = raw_id
        self.request = request
        self.call = call
        self.turn_index = turn_index
        self.expires_at = expires_at
        self.timer: asyncio.TimerHandle | None = None

    def _complete_request(self) -> Mapping[str, Any]:
        """The request, with what was reported earlier of its tool call."""
        own = self.request.get("toolCall")
        if not isinstance(own, dict):
            return self.request
        said = {name: value for name, value in own.items() if value is not None}
        return {**self.request, "toolCall": {**own, **self.call, **said}}

    def view(self, limit: int = HELD_BYTES) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "request": shortened(self._complete_request(), limit),
            "expires_at": self.expires_at,
            "turn_index": self.turn_index,
        }


def options(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What *request* (``session/request_permission``'s params) lets one choose from."""
    offered = request.get("options")
    if not isinstance(offered, list):
        return []
    return [option for option in offered if isinstance(option, dict) and "optionId" in option]


def choose(request: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """The outcome that allows or rejects *request*, this once where that is offered."""
    for kind in (f"{verb}_once", f"{verb}_always"):
        for option in options(request):
            if option.get("kind") == kind:
                return {"outcome": "selected", "optionId": option["optionId"]}
    return {"outcome": "cancelled"}


def by_policy(policy: str, request: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome that a session's *policy* (any but ``ask``) gives *request*.

    Args:
        call: its tool call, with all that is known of it.
    """
    if policy == "approve-all":
        return choose(request, "allow")
    if policy == "approve-reads":
        return choose(request, "allow" if _is_read(call.get("kind")) else "reject")
    return choose(request, "reject")


def _is_read(kind: Any) -> bool:
    return isinstance(kind, str) and kind in READ_KINDS


class ToolCalls:
    """What an agent has reported of its tool calls, by their ids: the newest of them."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[str, str]] = {}

    def note(self, update: Mapping[str, Any]) -> None:
        """A ``tool_call`` or ``tool_call_update``, or the ``toolCall`` of a request."""
        call_id = update.get("toolCallId")
        if not isinstance(call_id, str) or len(call_id) > MAX_CALL_ID:
            return
        told = {
            name: value[:MAX_CALL_TEXT]
            for name in CALL_FIELDS
            if isinstance(value := update.get(name), str)
        }
        known = self._calls.pop(call_id, {})
        is_new = update.get("sessionUpdate") == "tool_call"  # whatever had that id before
        self._calls[call_id] = told if is_new else {**known, **told}
        if len(self._calls) > MAX_CALLS:
            del self._calls[next(iter(self._calls))]

    def merged(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request's ``toolCall``, with what it does not say itself but was said before."""
        call = request.get("toolCall")
        if not isinstance(call, dict):
            return {}
        call_id = call.get("toolCallId")
        known = self._calls.get(call_id, {}) if isinstance(call_id, str) else {}
        told = {name: call[name] for name in CALL_FIELDS if call.get(name) is not None}
        return {**known, **told}

    def clear(self) -> None:
        self._calls.clear()


class Permissions:
    """What the agent of one session asks leave for, each until it has its outcome.

    Args:
        timeout: seconds that clients have, where they are asked.
        answer: tells the agent an outcome, by the id that it asked with.
    """

    def __init__(
        self,
        row: SessionRow,
        log: SessionLog,
        writer: DatabaseWriter,
        timeout: float,
        answer: Callable[[Any, Mapping[str, Any]], None],
    ) -> None:
        self._row = row
        self._log = log
        self._writer = writer
        self._timeout = timeout
        self._tell_agent = answer
        self._pending: dict[str, Pending] = {}
        self.calls = ToolCalls()

    def __len__(self) -> int:
        return len(self._pending)

    def pending(self) -> list[dict[str, Any]]:
        """Those that wait, as they are held."""
        return [pending.view() for pending in self._pending.values()]

    def shown(self) -> list[dict[str, Any]]:
        """Those that wait, as the state and `ready` show them: few bytes, however many wait."""
        whole = self.pending()
        if len(whole) < 2 or len(dumps(whole)) <= SHOWN_BYTES:
            return whole
        return [pending.view(SHORT_BYTES) for pending in self._pending.values()]

    def ask(self, raw_id: Any, params: Any, turn_index: int, *, is_ending: bool) -> None:
        """The agent asks.

        Args:
            params: ``session/request_permission``'s, whatever the agent sent as such.
            is_ending: its turn is being cancelled, so nobody is asked.
        """
        pending = self._note(raw_id, params, turn_index)
        if is_ending:
            self._resolve(pending, {"outcome": "cancelled"}, "cancel")
        elif self._row.permission == "ask" and len(self._pending) > MAX_PENDING:
            self._resolve(pending, choose(pending.request, "reject"), "policy")
        elif self._row.permission == "ask":
            pending.request = shortened(pending.request, HELD_BYTES)
            # Durable with its entry: a killed server leaves none without an outcome.
            self._writer.add(
                [statements.insert_permission_request(self._row.n, pending.request_id, turn_index)]
            )
            rejection = choose(pending.request, "reject")
            pending.timer = asyncio.get_running_loop().call_later(
                self._timeout, self._resolve, pending, rejection, "timeout"
            )
        else:
            decided = by_policy(self._row.permission, pending.request, pending.call)
            self._resolve(pending, decided, "policy")

    def note_decided(self, params: Any, outcome: Mapping[str, Any], turn_index: int) -> None:
        """The agent has asked, and had the policy's answer already."""
        self._resolve(self._note(None, params, turn_index), outcome, "policy")

    def answer(self, request_id: str, *, option_id: str | None = None) -> None:
        """A client's answer; without an option the request is cancelled.

        Raises:
            Error: ``not_found`` where it is not (or no longer) pending,
                ``bad_request`` where it has no such option.
        """
        pending = self._pending.get(request_id)
        if pending is None:
            raise not_found("permission request that waits")
        if option_id is None:
            self._resolve(pending, {"outcome": "cancelled"}, "client")
            return
        if option_id not in [option["optionId"] for option in options(pending.request)]:
            raise bad_request("the permission request has no such option")
        self._resolve(pending, {"outcome": "selected", "optionId": option_id}, "client")

    def cancel(self, turn_index: int | None = None) -> None:
        """Cancel those that wait, of one turn or of all."""
        for pending in tuple(self._pending.values()):
            if turn_index in (None, pending.turn_index):
                self._resolve(pending, {"outcome": "cancelled"}, "cancel")

    def cancel_left(self, asked: Iterable[tuple[str, int]]) -> None:
        """Cancel those that an earlier server left: each one's id, and the index of its turn."""
        for request_id, turn_index in asked:
            self._log_outcome(request_id, turn_index, {"outcome": "cancelled"}, "cancel")

    def _note(self, raw_id: Any, params: Any, turn_index: int) -> Pending:
        request = params if isinstance(params, dict) else {}
        expires_at = int((time.time() + self._timeout) * 1000)
        call = self.calls.merged(request)
        self.calls.note(call)
        pending = Pending(raw_id, request, call, turn_index, expires_at)
        self._pending[pending.request_id] = pending
        self._log.append(
            "permission_request",
            turn_index,
            entries.permission_request_fields(pending.request_id, dumps(request), expires_at),
        )
        return pending

    def _resolve(self, pending: Pending, outcome: Mapping[str, Any], by: str) -> None:
        if self._pending.pop(pending.request_id, None) is None:
            return
        if pending.timer is not None:
            pending.timer.cancel()
        self._tell_agent(pending.raw_id, outcome)
        self._log_outcome(pending.request_id, pending.turn_index, outcome, by)

    def _log_outcome(
        self, request_id: str, turn_index: int, outcome: Mapping[str, Any], by: str
    ) -> None:
        self._log.append(
            "permission_resolved",
            turn_index,
            entries.encode_fields(request_id=request_id, outcome=outcome, by=by),
        )
        if self._row.permission == "ask":
            self._writer.add([statements.delete_permission_request(self._row.n, request_id)])
