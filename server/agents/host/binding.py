"""The session that an agent works for."""

from __future__ import annotations

import dataclasses

from ..base import AgentObserver, AgentSpec


@dataclasses.dataclass(slots=True)
class Binding:
    """The session that an agent works for; a prewarmed agent is bound to another one later."""

    spec: AgentSpec
    observer: AgentObserver

    @property
    def key(self) -> str:
        """The session's id, which is also acpx's session key."""
        return self.spec.key
