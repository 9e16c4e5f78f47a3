"""The permission requests of a session's agent, resolved by a policy or by a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..agents.agent_settings import bounded
from ..agents.base import Backend
from ..codec import dumps
from ..errors import bad_request, not_supported
from ..storage.schema import SessionRow
from ..storage.writer import DatabaseWriter
from .event_log import SessionLog
from .pending_requests import CarriedRequest, PendingRequest, PendingRequests

MAX_PENDING = 32
"""Requests of a session that may wait for a client. The next one is rejected."""
HELD_BYTES = 64 << 10
"""Bytes of a waiting request; a longer one is shortened. The log has all of it."""
MAX_VIEW_BYTES = 128 << 10
"""Bytes of all waiting requests in the state and in `ready`; above it each is shortened."""
SHORT_BYTES = 4 << 10
"""Bytes of each request that is shortened for that reason."""
READ_KINDS = frozenset({"read", "search"})
MAX_CALLS = 500
MAX_CALL_ID = 256
MAX_CALL_TEXT = 1024
"""Limits on the tool calls that are remembered during a turn: about 1 MiB in total."""
CALL_FIELDS = ("toolCallId", "title", "kind", "status")


def shortened(request: Mapping[str, Any], limit: int) -> Mapping[str, Any]:
    """Return *request* with at most about *limit* bytes; its options have priority."""
    rest = dict(request)
    if bounded(rest, limit) == rest:
        return rest
    offered = bounded(rest.pop("options", None), limit // 2)
    rest = bounded(rest, limit // 2) or {}
    meta = rest.get("_meta")
    mark = {"clawdforge": {"shortened": True}}
    rest["_meta"] = {**meta, **mark} if isinstance(meta, dict) else mark
    return {**rest, "options": offered}


def check_permission(permission: str, backend: Backend, agent: str) -> None:
    """Check that sessions with that agent can have the policy *permission*.

    Raises:
        Error: ``not_supported`` or ``bad_request``.
    """
    if permission == "ask" and not backend.can_ask:
        raise not_supported('permission: "ask" is not supported by the cli backend')
    if permission == "deny-all" and backend.traits(agent).never_asks:
        raise bad_request(f"permission: the agent {agent!r} does not ask, so nothing can be denied")


class PendingPermission(PendingRequest):
    """A permission request that has no outcome yet."""

    def __init__(
        self,
        raw_id: Any,
        request: Mapping[str, Any],
        call: Mapping[str, Any],
        turn_index: int,
        expires_at: int,
    ) -> None:
        super().__init__(raw_id, request, turn_index, expires_at)
        self.call = call

    def _complete_request(self) -> Mapping[str, Any]:
        """The request, with the fields of its tool call that were reported before."""
        own = self.request.get("toolCall")
        if not isinstance(own, dict):
            return self.request
        given = {name: value for name, value in own.items() if value is not None}
        return {**self.request, "toolCall": {**own, **self.call, **given}}

    def view(self, limit: int = HELD_BYTES) -> dict[str, Any]:
        """The request as clients see it, with at most *limit* bytes."""
        return {
            "request_id": self.request_id,
            "request": shortened(self._complete_request(), limit),
            "expires_at": self.expires_at,
            "turn_index": self.turn_index,
        }


def _options(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The options of *request* that have an id."""
    offered = request.get("options")
    if not isinstance(offered, list):
        return []
    return [option for option in offered if isinstance(option, dict) and "optionId" in option]


def select_option(request: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """Return the outcome that allows or rejects *request*, only once if that is offered.

    Args:
        verb: ``allow`` or ``reject``.
    """
    for kind in (f"{verb}_once", f"{verb}_always"):
        for option in _options(request):
            if option.get("kind") == kind:
                return {"outcome": "selected", "optionId": option["optionId"]}
    return {"outcome": "cancelled"}


def outcome_by_policy(
    policy: str, request: Mapping[str, Any], call: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the outcome of *request* by a session's policy.

    Args:
        policy: any but ``ask``.
        call: the request's tool call, with the fields that were reported before.
    """
    if policy == "approve-all":
        return select_option(request, "allow")
    if policy == "approve-reads":
        return select_option(request, "allow" if _is_read(call.get("kind")) else "reject")
    return select_option(request, "reject")


def _is_read(kind: Any) -> bool:
    return isinstance(kind, str) and kind in READ_KINDS


class ToolCalls:
    """The newest tool calls that an agent has reported, by their ids."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[str, str]] = {}

    def note(self, update: Mapping[str, Any]) -> None:
        """Store fields of a ``tool_call``, a ``tool_call_update`` or a request's ``toolCall``."""
        call_id = update.get("toolCallId")
        if not isinstance(call_id, str) or len(call_id) > MAX_CALL_ID:
            return
        reported = {
            name: value[:MAX_CALL_TEXT]
            for name in CALL_FIELDS
            if isinstance(value := update.get(name), str)
        }
        known = self._calls.pop(call_id, {})
        is_new = update.get("sessionUpdate") == "tool_call"  # an earlier call may have had the id
        self._calls[call_id] = reported if is_new else {**known, **reported}
        if len(self._calls) > MAX_CALLS:
            del self._calls[next(iter(self._calls))]

    def merged(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request's ``toolCall``, completed with fields that were reported earlier."""
        call = request.get("toolCall")
        if not isinstance(call, dict):
            return {}
        call_id = call.get("toolCallId")
        known = self._calls.get(call_id, {}) if isinstance(call_id, str) else {}
        given = {name: call[name] for name in CALL_FIELDS if call.get(name) is not None}
        return {**known, **given}

    def clear(self) -> None:
        self._calls.clear()

    def pack(self) -> dict[str, dict[str, str]]:
        return self._calls

    def restore(self, calls: dict[str, dict[str, str]]) -> None:
        """Continue with the calls of an earlier version of the server."""
        self._calls = calls


class Permissions(PendingRequests[PendingPermission]):
    """The permission requests of one session's agent. Its length is the number that wait.

    Args:
        timeout: returns the seconds in which a client must respond.
        respond: sends an outcome to the agent, by the agent's id of the request.

    Attributes:
        calls: the tool calls of the current turn.
    """

    kind = "permission"
    cancelled: Mapping[str, Any] = {"outcome": "cancelled"}

    def __init__(
        self,
        row: SessionRow,
        log: SessionLog,
        writer: DatabaseWriter,
        timeout: Callable[[], float],
        respond: Callable[[Any, Mapping[str, Any]], None],
    ) -> None:
        super().__init__(row, log, writer, timeout, respond)
        self.calls = ToolCalls()

    def _log_request(self, turn_index: int, fields: bytes) -> None:
        self._log.append("permission_request", turn_index, fields)

    def _log_outcome(self, turn_index: int, fields: bytes) -> None:
        self._log.append("permission_resolved", turn_index, fields)

    def _restored(self, carried: CarriedRequest) -> PendingPermission:
        of_turn = carried.turn_index, carried.expires_at
        return PendingPermission(carried.raw_id, carried.request, carried.call, *of_turn)

    def _on_timeout(self, pending: PendingPermission) -> Mapping[str, Any]:
        return select_option(pending.request, "reject")

    def pending(self) -> list[dict[str, Any]]:
        """The waiting requests, as clients see them."""
        return [pending.view() for pending in self._pending.values()]

    def view(self) -> list[dict[str, Any]]:
        """The waiting requests for the state and `ready`; each is shortened if all are too long."""
        whole = self.pending()
        if len(whole) < 2 or len(dumps(whole)) <= MAX_VIEW_BYTES:
            return whole
        return [pending.view(SHORT_BYTES) for pending in self._pending.values()]

    def add_request(self, raw_id: Any, params: Any, turn_index: int, *, is_ending: bool) -> None:
        """Log a request of the agent. Resolve it by the policy, or let clients respond.

        Args:
            params: of ``session/request_permission``, as the agent sent them; not validated.
            is_ending: the turn is being ended, so the request is cancelled.
        """
        pending = self._add_request(raw_id, params, turn_index)
        if is_ending:
            self._finish(pending, self.cancelled, "cancel")
        elif self._row.permission == "ask" and len(self._pending) > MAX_PENDING:
            self._finish(pending, select_option(pending.request, "reject"), "policy")
        elif self._row.permission == "ask":
            pending.request = shortened(pending.request, HELD_BYTES)
            self._wait(pending)
        else:
            decided = outcome_by_policy(self._row.permission, pending.request, pending.call)
            self._finish(pending, decided, "policy")

    def note_decided(self, params: Any, outcome: Mapping[str, Any], turn_index: int) -> None:
        """Log a request that the backend has resolved by the policy already."""
        self._finish(self._add_request(None, params, turn_index), outcome, "policy")

    def resolve(self, request_id: str, *, option_id: str | None = None) -> None:
        """Resolve a request for a client; without an option it is cancelled.

        Raises:
            Error: ``not_found`` if no such request waits; ``bad_request`` if it has no such option.
        """
        pending = self._find(request_id)
        if option_id is None:
            self._finish(pending, self.cancelled, "client")
            return
        if option_id not in [option["optionId"] for option in _options(pending.request)]:
            raise bad_request("the permission request has no such option")
        self._finish(pending, {"outcome": "selected", "optionId": option_id}, "client")

    def _add_request(self, raw_id: Any, params: Any, turn_index: int) -> PendingPermission:
        request = params if isinstance(params, dict) else {}
        call = self.calls.merged(request)
        self.calls.note(call)
        pending = PendingPermission(raw_id, request, call, turn_index, self._expires_at())
        self._add(pending)
        return pending
