"""The session that an agent works for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..base import AgentObserver, AgentSpec
from ..login_states import LoginStates


class Binding(msgspec.Struct):
    """The session that an agent works for; a prewarmed agent is bound to another one later."""

    spec: AgentSpec
    observer: AgentObserver
    logins: LoginStates

    def note_response(self, response: Mapping[str, Any]) -> None:
        """Note whether the agent refused a request because of its login."""
        self.logins.note_response(self.spec.agent, self.spec.owner, response)

    @property
    def key(self) -> str:
        """The session's id, which is also acpx's session key."""
        return self.spec.key
