"""Passes on what an agent reports in the transcripts of its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import Error, bad_request
from ...validation import OptionValue
from .. import reported_settings, setting_steps
from ..agent_settings import NO_SETTINGS
from ..base import agent_failed
from ..subagents import subagent_of
from .session import CliSession

if TYPE_CHECKING:
    from .agent import CliAgent


class CliReports:
    """Notes the settings of one agent, and passes the rest on to the agent's session.

    Attributes:
        has_run: the agent has run a prompt, maybe for an earlier server. A setting that it loses
            before is set, and not restored.
    """

    def __init__(self, agent: CliAgent, session: CliSession) -> None:
        self._agent = agent
        self._session = session
        self.has_run = session.settings != NO_SETTINGS
        self._in_force: dict[str, OptionValue] = {}

    def note_set(self, method: str, params: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Note that the agent has carried out one of the requests that set something."""
        self._session.settings = reported_settings.with_result(
            self._session.settings, self._session.former, method, params, result
        )
        setting, value = setting_steps.requested_setting(self._session.settings, method, params)
        self._in_force[setting] = value

    def prompt_sent(self, *, fresh: bool) -> None:
        self._agent.has_started = True
        self._agent.process.begin()
        self._agent.observer.prompt_sent("fresh" if fresh or self._session.is_fresh else "kept")
        self._session.is_fresh = False

    def notification_received(self, line: bytes, message: dict[str, Any]) -> None:
        subagent, params = None, message.get("params")
        if message["method"] == "session/update":
            subagent = subagent_of(params, None)
            self._note_update(params)
        self._agent.observer.notification_received(line, subagent)

    def _note_update(self, params: Any) -> None:
        update = params.get("update") if isinstance(params, dict) else None
        kind = update.get("sessionUpdate") if isinstance(update, dict) else None
        if not isinstance(update, dict) or not isinstance(kind, str):
            return
        if kind in ("tool_call", "tool_call_update"):
            self._agent.observer.tool_call_updated(update)
        elif kind in reported_settings.SETTING_UPDATES:
            before = self._session.settings
            self._session.updated(kind, update)
            # acpx changes settings before it sends a prompt, and for clients.
            is_own = self._agent.is_prompting and not self._agent.is_changing
            if is_own and self._session.settings is not before:
                self._agent.observer.settings_changed(before, self._session.settings)
        elif kind == "usage_update":
            self._agent.observer.usage_updated(update, replayed=not self._agent.is_prompting)
        elif kind == "session_info_update":
            self._agent.observer.info_updated(update)

    def _is_of_relay(self, data: Any) -> bool:
        """Whether ``settings_relay.py`` wrote that message, and not the agent."""
        return isinstance(data, dict) and data.get("mark") == self._session.mark

    @property
    def has_relay(self) -> bool:
        """Whether ``settings_relay.py`` reports before it passes a prompt on."""
        return self._session.has_relay

    def settings_applied(self, params: Any) -> bool:
        """Note what was set before the agent receives its prompt.

        Args:
            params: of the report.

        Returns:
            False if the agent has written the report.
        """
        if not self._is_of_relay(params):
            return False
        session = self._session
        session.settings = msgspec.structs.replace(
            session.settings,
            modes=params["reported"]["modes"],
            models=params["reported"]["models"],
            config_options=params["reported"]["config_options"],
        )
        wanted = self._agent.observer.wanted
        settings = {"mode": wanted.mode, "model": wanted.model, **wanted.config_options}
        for setting in dict.fromkeys(setting for setting, _ in params["set"]):
            value = settings.get(setting)
            former = reported_settings.current_value(session.former, setting)
            if not self.has_run or value is None:
                continue
            if value in (self._in_force.get(setting), former):
                self._agent.observer.setting_restored(setting, value)
        for setting, value in settings.items():
            now = reported_settings.current_value(session.settings, setting)
            if value is not None and value == now:
                self._in_force[setting] = value
        return True

    def refusal_of(self, response: dict[str, Any]) -> Error | None:
        """The reason for which the agent did not receive the prompt with that *response*."""
        error = response.get("error")
        data = error.get("data") if isinstance(error, dict) else None
        if error is None or not isinstance(data, dict) or data.get("mark") != self._session.mark:
            return None
        message = str(error["message"])
        return bad_request(message) if data.get("code") == "bad_request" else agent_failed(message)

    def session_opened(self, result: dict[str, Any]) -> None:
        self._session.opened(result)

    def initialized(self, result: dict[str, Any]) -> None:
        self._session.initialized(result)
