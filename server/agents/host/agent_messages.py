"""The server's own messages to an agent through the acpx host; acpx sees none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..agent_state import AgentState
from ..steering import SteerOutcome, outcome_of
from .agent_process import AgentProcess
from .binding import Binding
from .fork import delete_conversation
from .settings_sync import SettingsSync


class AgentMessages:
    """The part of an agent that sends them to its process, if one runs."""

    _binding: Binding
    _process: AgentProcess
    _sync: SettingsSync

    @property
    def can_steer(self) -> bool:
        is_prompting = self._process.state is AgentState.PROMPTING
        return is_prompting and self._sync.reported.steering is True

    def steer(self, blocks: bytes, decide: Callable[[SteerOutcome], None]) -> str | None:
        proxy = self._process.proxy
        if proxy is None:
            decide(SteerOutcome.REFUSED)
            return None
        return proxy.own_requests.steer(blocks, lambda response: decide(outcome_of(response)))

    def restore_steer(self, request_id: str | None, decide: Callable[[SteerOutcome], None]) -> None:
        """Decide a prompt that an earlier version of the server has added to the turn."""
        proxy = self._process.proxy
        if proxy is None or not proxy.own_requests.await_response(
            request_id, lambda response: decide(outcome_of(response))
        ):
            decide(SteerOutcome.LOST)

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        if self._process.proxy is not None:
            self._process.proxy.own_requests.respond(raw_id, {"outcome": outcome})

    def answer_elicitation(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        if self._process.proxy is not None:
            self._process.proxy.own_requests.respond(raw_id, outcome)

    def cancel_subagent(self, session_id: str) -> None:
        if self._process.proxy is not None:
            self._process.proxy.own_requests.cancel(session_id)

    def delete_conversation(self) -> None:
        if self._process.proxy is not None and self._process.has_conversation:
            capabilities = self._sync.reported.capabilities
            requests = self._process.proxy.own_requests
            delete_conversation(requests, capabilities, self._binding.key)
