"""All requests of a session's agent that wait for a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..storage.queries import Queries
from ..storage.schema import SessionRow
from .core import SessionCore
from .elicitations import Elicitations
from .options import ask_timeout
from .pending_requests import RequestKind
from .permissions import Permissions

Answer = Callable[[RequestKind, Any, Mapping[str, Any]], None]


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
    def create(cls, core: SessionCore, answer: Answer) -> WaitingRequests:
        """Create the objects of one session.

        Args:
            answer: sends an outcome to the agent, by the kind and the agent's id of the request.
        """
        context = core.context
        shared = core.row, core.log, context.writer
        settings = context.settings

        def timeout() -> float:
            return ask_timeout(core.options, settings)

        return cls(
            Permissions(*shared, timeout, partial(answer, "permission")),
            Elicitations(*shared, settings, timeout, partial(answer, "elicitation")),
        )

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
