"""The observer of a session's agent: passes each report to the object that handles it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..agents.agent_settings import AgentSettings
from ..agents.base import AgentObserver, Conversation, WantedSettings
from ..agents.subagents import Subagent
from ..tracing import Tracer
from ..validation import OptionValue
from . import entries
from .agent_requests import WaitingRequests
from .core import SessionCore
from .details import SessionDetails
from .forked_conversation import note_forked
from .session_agent import SessionAgent
from .session_settings import SessionSettings
from .turn_runner import TurnRunner
from .turns import CurrentTurn
from .usage import SessionUsage


class SessionObserver(AgentObserver):
    """Receives the reports of one session's agent."""

    def __init__(
        self,
        core: SessionCore,
        current: CurrentTurn,
        *,
        agent: SessionAgent,
        settings: SessionSettings,
        requests: WaitingRequests,
        runner: TurnRunner,
        details: SessionDetails,
        usage: SessionUsage,
    ) -> None:
        self._core = core
        self._log = core.log
        self._current = current
        self._agent = agent
        self._settings = settings
        self._requests = requests
        self._runner = runner
        self._details = details
        self._usage = usage
        if (tracer := core.context.metrics.tracer) is not None:
            self._trace_tool_calls(tracer)

    def _trace_tool_calls(self, tracer: Tracer) -> None:
        note = self.tool_call_updated

        def note_and_trace(update: Mapping[str, Any]) -> None:
            note(update)
            tracer.note_tool_call(self._core.id, update)

        # Replaced only if there is a tracer: without one, an update costs nothing here.
        self.tool_call_updated = note_and_trace  # type: ignore[method-assign]

    @property
    def wanted(self) -> WantedSettings:
        return self._settings.wanted

    @property
    def needs_preface(self) -> bool:
        return self._settings.needs_preface

    @needs_preface.setter
    def needs_preface(self, needs: bool) -> None:
        self._settings.needs_preface = needs

    def setting_restored(self, setting: str, value: OptionValue) -> None:
        self._settings.note_restored(setting, value)

    def settings_changed(self, before: AgentSettings, after: AgentSettings) -> None:
        self._settings.note_own_change(before, after)

    def info_updated(self, update: Mapping[str, Any]) -> None:
        if "title" in update:
            self._details.note_agent_title(update["title"])

    def usage_updated(self, update: Mapping[str, Any], *, replayed: bool) -> None:
        self._usage.note_update(update, replayed=replayed)

    def tool_call_updated(self, update: Mapping[str, Any]) -> None:
        self._requests.permissions.calls.note(update)

    def prompt_sent(self, conversation: Conversation) -> None:
        self._runner.prompt_sent(conversation)

    def notification_received(self, message: bytes, subagent: Subagent | None = None) -> None:
        if self._core.is_log_complete:
            return
        fields = entries.event_fields(message, subagent)
        self._log.append("event", self._current.entry_turn_index(), fields)
        turn = self._current.turn
        if turn is not None and not turn.first_update_at and turn.is_sent:
            turn.first_update_at = time.monotonic()

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None:
        self._runner.response_received(message, response)

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        if self._core.is_log_complete:
            return
        self._settings.note_asked()
        index = self._current.entry_turn_index()
        self._requests.permissions.add_request(raw_id, params, index, is_ending=self._is_ending)

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None:
        if not self._core.is_log_complete:
            index = self._current.entry_turn_index()
            self._requests.permissions.note_decided(params, outcome, index)

    def elicitation_requested(self, raw_id: Any, params: Any) -> None:
        if self._core.is_log_complete:
            return
        index = self._current.entry_turn_index()
        self._requests.elicitations.add_request(raw_id, params, index, is_ending=self._is_ending)

    def conversation_forked(self) -> None:
        self._core.context.writer.add([note_forked(self._core.row)])

    def request_withdrawn(self, raw_id: Any) -> None:
        if self._requests:
            self._requests.withdraw(raw_id)

    @property
    def _is_ending(self) -> bool:
        """Whether the current turn is being cancelled."""
        turn = self._current.turn
        return turn is not None and turn.cancel_cause is not None

    def agent_ended(self) -> None:
        self._requests.cancel()
        self._agent.note_ended()
