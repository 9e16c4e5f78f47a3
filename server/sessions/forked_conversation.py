"""A conversation that the agent of a new session has forked, or forks when it starts."""

from __future__ import annotations

import contextlib

from ..agents.base import Agent
from ..errors import Error
from ..storage import statements
from ..storage.schema import SessionRow, Statement


def note_forked(row: SessionRow) -> Statement:
    """Note that the agent has the conversation of the session's log. Return what stores it."""
    row.needs_history, row.has_context = 0, 1
    return statements.change_session(row.n, owes_history=0, has_context=1, usage=row.usage)


async def fork_if_pending(agent: Agent) -> None:
    """Start *agent* if it is to begin with a fork, which may fail."""
    if agent.will_fork:
        with contextlib.suppress(Error):  # the prompt fails, too, and reports it
            await agent.start()
