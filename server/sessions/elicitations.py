"""The questions of a session's agent: forms and links, which a client answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..codec import dumps, loads_bounded
from ..config import Settings
from ..errors import bad_request
from ..storage.schema import SessionRow
from ..storage.writer import DatabaseWriter
from .elicitation_form import check_form_content, is_form
from .event_log import SessionLog
from .pending_requests import CarriedRequest, PendingRequest, PendingRequests

Action = Literal["accept", "decline", "cancel"]


class PendingElicitation(PendingRequest):
    """A question that has no outcome yet.

    Attributes:
        size: bytes of its params.
    """

    size = 0


class Elicitations(PendingRequests[PendingElicitation]):
    """The questions of one session's agent. Its length is the number that wait.

    Args:
        timeout: returns the seconds in which a client must respond.
        respond: sends an outcome to the agent, by the agent's id of the request.
    """

    kind = "elicitation"
    cancelled: Mapping[str, Any] = {"action": "cancel"}

    def __init__(
        self,
        row: SessionRow,
        log: SessionLog,
        writer: DatabaseWriter,
        settings: Settings,
        timeout: Callable[[], float],
        respond: Callable[[Any, Mapping[str, Any]], None],
    ) -> None:
        super().__init__(row, log, writer, timeout, respond)
        self._settings = settings

    def _log_request(self, turn_index: int, fields: bytes) -> None:
        self._log.append("elicitation_request", turn_index, fields)

    def _log_outcome(self, turn_index: int, fields: bytes) -> None:
        self._log.append("elicitation_resolved", turn_index, fields)

    def _restored(self, carried: CarriedRequest) -> PendingElicitation:
        pending = PendingElicitation(
            carried.raw_id, carried.request, carried.turn_index, carried.expires_at
        )
        pending.size = len(dumps(carried.request))
        return pending

    def _on_timeout(self, pending: PendingElicitation) -> Mapping[str, Any]:
        return self.cancelled

    def pending(self) -> list[dict[str, Any]]:
        """The waiting questions, as clients see them."""
        return [
            {
                "request_id": pending.request_id,
                "request": pending.request,
                "expires_at": pending.expires_at,
                "turn_index": pending.turn_index,
            }
            for pending in self._pending.values()
        ]

    def add_request(self, raw_id: Any, params: Any, turn_index: int, *, is_ending: bool) -> None:
        """Log a question of the agent, and let clients respond. Cancel it if that is impossible.

        Args:
            params: of ``elicitation/create``, as the agent sent them; not validated.
            is_ending: the turn is being ended, so the question is cancelled.
        """
        request = params if isinstance(params, dict) else {}
        pending = PendingElicitation(raw_id, request, turn_index, self._expires_at())
        try:
            encoded = dumps(request)
        except (ValueError, RecursionError):  # nested too deeply to be logged
            self._respond(raw_id, self.cancelled)
            return
        pending.size = len(encoded)
        can_wait = not is_ending and self._has_capacity(pending.size)
        can_wait = can_wait and _is_answerable(request) and _is_shallow(encoded)
        self._add(pending)
        if can_wait:
            self._wait(pending)
        else:
            self._finish(pending, self.cancelled, "cancel")

    def _has_capacity(self, size: int) -> bool:
        held = sum(pending.size for pending in self._pending.values())
        return (
            len(self._pending) < self._settings.max_pending_elicitations
            and held + size <= self._settings.max_elicitation_bytes
        )

    def resolve(self, request_id: str, action: Action, content: Any = None) -> None:
        """Resolve a question for a client.

        Args:
            content: of an accepted form, by the names of its fields.

        Raises:
            Error: ``not_found`` if no such question waits; ``bad_request`` if *content* does not
                match the form. The question continues to wait.
        """
        pending = self._find(request_id)
        outcome: dict[str, Any] = {"action": action}
        if action == "accept" and mode_of(pending.request) == "form":
            content = {} if content is None else content
            check_form_content(pending.request["requestedSchema"], content)
            outcome["content"] = content
        elif content:
            raise bad_request("content: only an accepted form has content")
        self._finish(pending, outcome, "client")


def _is_shallow(encoded: bytes) -> bool:
    """Whether the request can be part of the session's state, which is encoded again."""
    try:
        loads_bounded(encoded)
    except ValueError:
        return False
    return True


def mode_of(request: Mapping[str, Any]) -> Any:
    """The mode of a question: ``form``, ``url``, or one that ACP does not define."""
    return request.get("mode", "form")  # as in MCP, from which ACP's forms come


def _is_answerable(request: Mapping[str, Any]) -> bool:
    """Whether clients can answer: the request is a form or a link, as ACP defines them."""
    if mode_of(request) == "url":
        return isinstance(request.get("url"), str)
    return mode_of(request) == "form" and is_form(request.get("requestedSchema"))
