"""Figures of the sessions for the operator."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .registry import SessionRegistry


class SessionFigures:
    """The figures of a registry."""

    def __init__(self, sessions: SessionRegistry) -> None:
        self._sessions = sessions

    def count_agents(self) -> Counter[str]:
        """The number of agents in each state; a session without one counts as hibernated.

        In a cluster these are the agents of this node, and the sessions without one on any node.
        """
        sessions = self._sessions
        counts = sessions.slots.count_states()
        del counts["hibernated"]  # a hibernated holder is about to start its agent
        total = sessions.quotas.open_sessions + len(sessions.prewarmer)
        agents = counts.total() + sessions.cluster.agents_on_other_nodes
        counts["hibernated"] = max(0, total - agents)
        return counts

    @property
    def running_turns(self) -> int:
        return sum(session.state_name == "running" for session in self._sessions.memory.all())

    @property
    def queued_turns(self) -> int:
        return sum(len(session.turns) for session in self._sessions.memory.all())
