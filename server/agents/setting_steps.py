"""Which requests bring an agent's settings to the wanted values, and what such a request sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from ..validation import OptionValue
from .acp_methods import SET_MODE, SET_MODEL, SET_OPTION
from .agent_settings import AgentSettings
from .base import WantedSettings
from .reported_settings import current_value, offers_value, option_of, setting_of


class SettingStep(msgspec.Struct, frozen=True):
    """One request that sets one setting.

    Attributes:
        setting: ``mode``, ``model`` or the id of a config option.
        method: None if the agent does not offer the setting, or not with that value.
        params: the request's params without the session id.
    """

    setting: str
    value: OptionValue
    method: str | None = None
    params: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, OptionValue]:
        return self.setting, self.value


def needed_steps(
    wanted: WantedSettings,
    reported: AgentSettings,
    former: AgentSettings,
    synonyms: Mapping[tuple[str, OptionValue], OptionValue] = MappingProxyType({}),
) -> list[SettingStep]:
    """Return the requests that bring an agent from *reported* to *wanted*, in order.

    A new model may change the options and the mode, so the model is set first and the mode last.

    Args:
        reported: the settings that the current process reported.
        former: the settings that an earlier process reported.
        synonyms: from a setting and value to the name that the agent reports for that value.
    """
    needed = []
    for setting, value in _ordered(wanted, reported):
        if current_value(reported, setting) in (value, synonyms.get((setting, value), value)):
            continue
        step = _step(setting, value, reported, former, wanted.model_may_be_unlisted)
        if setting == "mode" and wanted.mode_is_optional and step.method is None:
            continue
        needed.append(step)
    return needed


def _ordered(wanted: WantedSettings, reported: AgentSettings) -> Iterator[tuple[str, OptionValue]]:
    if wanted.model is not None:
        yield "model", wanted.model
    options = [(setting_of(reported, key), value) for key, value in wanted.config_options.items()]
    yield from (option for option in options if option[0] == "model")
    yield from (option for option in options if option[0] not in ("model", "mode"))
    yield from (option for option in options if option[0] == "mode")
    if wanted.mode is not None:
        yield "mode", wanted.mode


def _step(
    setting: str,
    value: OptionValue,
    reported: AgentSettings,
    former: AgentSettings,
    any_model: bool,
) -> SettingStep:
    """Return the request that sets it, if the agent offers it or an earlier process did."""
    # The agent itself checks the value of a config option.
    may_be_unlisted = setting != "mode" and (setting != "model" or any_model)
    may_be_unlisted = may_be_unlisted or current_value(former, setting) == value
    for known in (reported, former):
        is_offered = offers_value(known, setting, value)
        if is_offered is None:
            continue
        if not (is_offered or may_be_unlisted):
            break
        return SettingStep(setting, value, *_request(known, setting, value))
    return SettingStep(setting, value)


def _request(known: AgentSettings, setting: str, value: OptionValue) -> tuple[str, dict[str, Any]]:
    if setting == "mode" and isinstance(known.modes, dict):
        return SET_MODE, {"modeId": value}
    option = option_of(known, setting)
    if option is None:
        return SET_MODEL, {"modelId": value}
    return SET_OPTION, option_params(option["id"], value)


def option_params(key: str, value: OptionValue) -> dict[str, Any]:
    """Return the params of a request that sets a config option, without the session id."""
    kind = {"type": "boolean"} if isinstance(value, bool) else {}
    return {"configId": key, **kind, "value": value}


def requested_setting(
    reported: AgentSettings, method: str, params: Mapping[str, Any]
) -> tuple[str, OptionValue]:
    """Return the setting and the value of one of the ``acp_methods.SETTERS`` requests."""
    if method == SET_MODE:
        return "mode", str(params.get("modeId"))
    if method == SET_MODEL:
        return "model", str(params.get("modelId"))
    value = params.get("value")
    shown = value if isinstance(value, bool) else str(value)
    return setting_of(reported, str(params.get("configId"))), shown
