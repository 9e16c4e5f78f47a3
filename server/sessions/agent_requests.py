"""All requests of a session's agent that wait for a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..agents.agent_settings import bounded
from ..storage.queries import Queries
from ..storage.schema import SessionRow
from .core import SessionCore
from .elicitations import Elicitations, PendingElicitation
from .options import ask_timeout
from .pending_requests import RequestKind
from .permissions import PendingPermission, Permissions

ALERT_BYTES = 16 << 10
"""Bytes of a request in an alert; a longer one is shortened. The log has all of it."""
SendOutcome = Callable[[RequestKind, Any, Mapping[str, Any]], None]


class WaitingRequests:
    """The permission requests and the questions of one agent. Its length is the number that wait.

    Attributes:
        permissions: its requests for permission.
        elicitations: its questions.
    """

    def __init__(self, permissions: Permissions, elicitations: Elicitations) -> None:
        self.permissions = permissions
        self.elicitations = elicitations

    @classmethod
    def create(cls, core: SessionCore, send_outcome: SendOutcome) -> WaitingRequests:
        """Create the objects of one session.

        Args:
            send_outcome: sends an outcome to the agent, by the kind and the agent's id of the
                request.
        """
        context = core.context
        shared = core.row, core.log, context.writer
        settings = context.settings

        def timeout() -> float:
            return ask_timeout(core.options, settings)

        permissions = Permissions(*shared, timeout, partial(send_outcome, "permission"))
        permissions.on_waiting = partial(_alert_permission, core)
        elicitations = Elicitations(
            *shared, settings, timeout, partial(send_outcome, "elicitation")
        )
        elicitations.on_waiting = partial(_alert_elicitation, core)
        return cls(permissions, elicitations)

    def __len__(self) -> int:
        return len(self.permissions) + len(self.elicitations)

    def cancel(self, turn_index: int | None = None) -> None:
        """Cancel the waiting requests of one turn, or all."""
        self.permissions.cancel(turn_index)
        self.elicitations.cancel(turn_index)

    def withdraw(self, raw_id: Any) -> None:
        """Cancel the waiting request to which the agent gave that id."""
        self.permissions.withdraw(raw_id)
        self.elicitations.withdraw(raw_id)

    async def recover(self, row: SessionRow, queries: Queries) -> None:
        """Cancel the requests that an earlier server left."""
        for requests in (self.permissions, self.elicitations):
            unfinished = await queries.pending_agent_requests(row.n, requests.kind)
            requests.cancel_unfinished(unfinished)


def _alert_permission(core: SessionCore, pending: PendingPermission) -> None:
    if core.context.alerts.is_wanted(core.row.app_name, "permission_requested"):
        view = pending.view(ALERT_BYTES)
        core.alert("permission_requested", core.log.last, view.pop("turn_index"), **view)


def _alert_elicitation(core: SessionCore, pending: PendingElicitation) -> None:
    if core.context.alerts.is_wanted(core.row.app_name, "elicitation_requested"):
        core.alert(
            "elicitation_requested",
            core.log.last,
            pending.turn_index,
            request_id=pending.request_id,
            request=bounded(pending.request, ALERT_BYTES),
            expires_at=pending.expires_at,
        )
