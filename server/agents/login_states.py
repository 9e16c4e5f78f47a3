"""The agents' reports about logins: their methods, and whether they require one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .agent_settings import bounded
from .failures import needs_login

MAX_METHODS_BYTES = 16 << 10
MAX_STATES = 10_000
"""The number of agents and apps for which a state is remembered."""


class LoginStates:
    """The newest reports. They are lost when the server stops."""

    def __init__(self) -> None:
        self._methods: dict[str, list[Any]] = {}
        self._required: dict[tuple[str, str], bool] = {}

    def note_methods(self, agent: str, initialized: Mapping[str, Any]) -> None:
        """Note the methods in an agent's result of ``initialize``."""
        methods = initialized.get("authMethods")
        kept = bounded(methods if isinstance(methods, list) else [], MAX_METHODS_BYTES)
        self._methods[agent] = kept if isinstance(kept, list) else []

    def note_required(self, agent: str, owner: str, *, is_required: bool) -> None:
        """Note that an agent of an app needs a login, or works without one."""
        if len(self._required) >= MAX_STATES and (agent, owner) not in self._required:
            self._required.clear()
        self._required[agent, owner] = is_required

    def note_response(self, agent: str, owner: str, response: Mapping[str, Any]) -> None:
        """Note whether an agent refused a request because of its login."""
        if "error" not in response:
            self.note_required(agent, owner, is_required=False)
        elif needs_login(response["error"]):
            self.note_required(agent, owner, is_required=True)

    def methods(self, agent: str) -> list[Any] | None:
        """An agent's ``authMethods``; None if it was not started yet."""
        return self._methods.get(agent)

    def is_required(self, agent: str, owner: str) -> bool | None:
        """Whether an agent of that app needs a login; None if it is not known."""
        return self._required.get((agent, owner))

    def forget_requirements(self, agent: str) -> None:
        """Forget whether an agent needs a login, because that has just changed."""
        self._required = {key: value for key, value in self._required.items() if key[0] != agent}
