"""The settings of a session for the relay, and those that the agent reports through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...validation import OptionValue
from .. import acp_methods, reported_settings
from ..agent_settings import NO_SETTINGS, AgentSettings
from ..base import WantedSettings
from ..setting_steps import SettingStep, needed_steps, requested_setting


class RelaySettings(msgspec.Struct, frozen=True):
    """The settings of a session for this program.

    Attributes:
        former: what the agent reported when it last ran, as :meth:`AgentSettings.to_dict` returns.
        mark: a random text by which the server recognises what this program writes.
        secs: in which the agent must respond to a request.
    """

    wanted: WantedSettings
    former: dict[str, Any]
    mark: str
    secs: float


class RelayedSettings:
    """The settings that the agent reports in the messages that pass."""

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.reported = NO_SETTINGS
        self._former = NO_SETTINGS
        self._mode_was_reported = False
        self._replayed: list[tuple[str, OptionValue]] | None = None
        self._synonyms: dict[tuple[str, OptionValue], OptionValue] = {}
        self._tracked: dict[Any, tuple[str, Mapping[str, Any]]] = {}

    @property
    def is_awaiting(self) -> bool:
        """Whether a request of acpx that opens a session or changes a setting has no response."""
        return bool(self._tracked)

    def note_request(self, message: Mapping[str, Any]) -> None:
        """Note a request of acpx."""
        method, params = message.get("method"), message.get("params")
        known = params if isinstance(params, dict) else {}
        if method in acp_methods.SESSION_METHODS or method in acp_methods.SETTERS:
            self._tracked[message.get("id")] = method, known
            self.begin_set()
        if method in acp_methods.SESSION_METHODS:
            self._note_id(known)

    def note_response(self, message: Mapping[str, Any]) -> str:
        """Note a response of the agent to acpx. Return the method of the request if it worked."""
        method, params = self._tracked.pop(message.get("id"), ("", {}))
        result = message.get("result")
        if not method or not isinstance(result, dict):
            return ""
        if method in acp_methods.SETTERS:
            if self._replayed is not None:
                self._replayed.append(requested_setting(self.reported, method, params))
            self.note_set(method, params, result)
            return method
        self._replayed = []
        self._note_id(result)
        if self.reported != NO_SETTINGS:
            self._former = self.reported
        self.reported = reported_settings.with_session_result(self.reported, result)
        return method

    def note_update(self, message: Mapping[str, Any]) -> None:
        """Note a notification of the agent."""
        params = message.get("params")
        if not isinstance(params, dict) or params.get("sessionId") not in (None, self.session_id):
            return
        update = params.get("update")
        if isinstance(update, dict) and isinstance(kind := update.get("sessionUpdate"), str):
            self.reported = reported_settings.with_update(self.reported, self._former, kind, update)
            self._mode_was_reported |= kind == "current_mode_update"

    def take_replayed(self) -> list[tuple[str, OptionValue]]:
        """Return what acpx has set since the agent opened the session, before its first prompt."""
        replayed, self._replayed = self._replayed, None
        return replayed or []

    def begin_set(self) -> None:
        """Note that the agent is about to get a request that sets something."""
        self._mode_was_reported = False

    def note_set(self, method: str, params: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Note that the agent set something. A mode that it reported itself takes precedence."""
        if method != acp_methods.SET_MODE or not self._mode_was_reported:
            self.reported = reported_settings.with_result(
                self.reported, self._former, method, params, result
            )

    def note_synonym(self, step: SettingStep) -> None:
        """Note the agent's own name of the model to which it was set."""
        now = reported_settings.current_value(self.reported, step.setting)
        if step.setting == "model" and now is not None:
            self._synonyms[step.key] = now

    def steps(self, settings: RelaySettings, first: Mapping[str, Any]) -> list[SettingStep]:
        """The requests that bring the agent into what its session wants.

        Args:
            first: what the agent reported when its session was made.
        """
        if self._former == NO_SETTINGS:
            self._former = AgentSettings.from_dict(settings.former)
        if self._former == NO_SETTINGS:
            self._former = AgentSettings.from_dict(first)
        return needed_steps(settings.wanted, self.reported, self._former, self._synonyms)

    def was_in_force(self, step: SettingStep, settings: RelaySettings) -> bool:
        former = AgentSettings.from_dict(settings.former)
        return reported_settings.current_value(former, step.setting) == step.value

    def _note_id(self, params: Mapping[str, Any]) -> None:
        if isinstance(session_id := params.get("sessionId"), str):
            self.session_id = session_id
