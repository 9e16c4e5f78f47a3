"""The mode, model and options that an agent reported: reading them, and following its messages.

An agent may offer modes and models in ACP's own fields, as config options, or as both. The
agent's values are untrusted, so the type of each is checked. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..validation import OptionValue
from .acp_methods import SET_MODE, SET_MODEL
from .agent_settings import AgentSettings, is_shortened

SETTING_UPDATES = frozenset(
    {"available_commands_update", "config_option_update", "current_mode_update"}
)
"""The kinds of ``session/update`` that report settings."""
_OWN_FIELDS = {"mode": ("modes", "currentModeId"), "model": ("models", "currentModelId")}
"""ACP's own fields for a mode and a model: the name of the offer, and that of its current value."""


def option_of(reported: AgentSettings, setting: str) -> dict[str, Any] | None:
    """Return the config option that stands for *setting*; None if there is none."""
    options = reported.config_options if isinstance(reported.config_options, list) else []
    best, priority = None, -1
    for option in options:
        if not isinstance(option, dict) or not isinstance(option.get("id"), str):
            continue
        if setting in ("mode", "model"):
            of_category = option.get("category") == setting
            if option.get("type") != "select" or not (of_category or option["id"] == setting):
                continue
            rank = of_category * (1 + (option["id"] == setting))  # the order of acpx
        elif option["id"] == setting:
            rank = 0
        else:
            continue
        if rank > priority:
            best, priority = option, rank
    return best


def setting_of(reported: AgentSettings, key: str) -> str:
    """Return the setting that a config option sets: ``mode``, ``model``, or its own id."""
    for setting in ("mode", "model"):
        option = option_of(reported, setting)
        if option is not None and option["id"] == key:
            return setting
    return key


def current_value(reported: AgentSettings, setting: str) -> OptionValue | None:
    """Return the value that the agent reported last for a setting; None if it has reported none."""
    value: Any = None
    if setting == "mode" and isinstance(reported.modes, dict):
        value = reported.modes.get("currentModeId")
    elif (option := option_of(reported, setting)) is not None:
        value = option.get("currentValue")
    elif setting == "model" and isinstance(reported.models, dict):
        value = reported.models.get("currentModelId")
    return value if isinstance(value, (str, bool)) else None


def current_mode(reported: AgentSettings) -> str | None:
    """Return the mode that the agent reported last; None if it has reported none."""
    mode = current_value(reported, "mode")
    return mode if isinstance(mode, str) else None


def offers_value(reported: AgentSettings, setting: str, value: OptionValue) -> bool | None:
    """Whether the agent offers that value; None if it does not offer the setting.

    True also if the list of values was shortened, because the value may have been in it.
    """
    choices = choices_of(reported, setting)
    if choices is None:
        return None
    return value in choices or is_shortened(_offer_of(reported, setting))


def choices_of(reported: AgentSettings, setting: str) -> list[str] | None:
    """The values that the agent offers for *setting*; None if it does not offer the setting."""
    offer = _offer_of(reported, setting)
    if offer is None:
        return None
    if offer is reported.modes:
        return _ids(offer.get("availableModes"), "id")
    if offer is reported.models:
        return _ids(offer.get("availableModels"), "modelId")
    return [choice["value"] for choice in _choices(offer)]


def _offer_of(reported: AgentSettings, setting: str) -> dict[str, Any] | None:
    """Return the object in which the agent offers *setting*: modes, models or a config option."""
    if setting == "mode" and isinstance(reported.modes, dict):
        return reported.modes
    if (option := option_of(reported, setting)) is not None:
        return option
    if setting == "model" and isinstance(reported.models, dict):
        return reported.models
    return None


def _ids(offered: Any, name: str) -> list[str]:
    choices = offered if isinstance(offered, list) else []
    return [
        choice[name]
        for choice in choices
        if isinstance(choice, dict) and isinstance(choice.get(name), str)
    ]


def _choices(option: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the choices of a select option, including those in groups."""
    offered = option.get("options")
    for choice in offered if isinstance(offered, list) else []:
        if not isinstance(choice, dict):
            continue
        if isinstance(choice.get("value"), str):
            yield choice
        else:
            yield from _choices(choice)


def settings_view(reported: AgentSettings) -> dict[str, Any]:
    """Return *reported* as clients see it.

    ``models`` and ``modes`` are filled from config options if the agent offers them as such.
    """
    shown = reported.to_dict()
    if (option := option_of(reported, "model")) is not None:
        shown["models"] = {
            "currentModelId": option.get("currentValue"),
            "availableModels": [_named(choice, "modelId") for choice in _choices(option)],
        }
    if not reported.modes and (option := option_of(reported, "mode")) is not None:
        shown["modes"] = {
            "currentModeId": option.get("currentValue"),
            "availableModes": [_named(choice, "id") for choice in _choices(option)],
        }
    return shown


def _named(choice: Mapping[str, Any], key: str) -> dict[str, Any]:
    about = {name: choice[name] for name in ("name", "description") if name in choice}
    return {key: choice["value"], "name": choice["value"], **about}


def with_session_result(reported: AgentSettings, result: Mapping[str, Any]) -> AgentSettings:
    """Return *reported* after a response to session/new, session/load or session/resume.

    A setting that is not in the response becomes unknown, because a former process reported it.
    """
    return msgspec.structs.replace(
        reported,
        modes=_object_in(result, "modes"),
        models=_object_in(result, "models"),
        config_options=_objects_in(result, "configOptions") or None,
    )


def with_result(
    reported: AgentSettings,
    former: AgentSettings,
    method: str,
    params: Mapping[str, Any],
    result: Mapping[str, Any],
) -> AgentSettings:
    """Return *reported* after a successful response to one of ``acp_methods.SETTERS``.

    If the response does not contain the new value, it is the requested one.
    """
    if method == SET_MODE:
        base = reported if isinstance(reported.modes, dict) else former
        return with_mode(msgspec.structs.replace(reported, modes=base.modes), params.get("modeId"))
    if method == SET_MODEL:
        models = reported.models if isinstance(reported.models, dict) else former.models
        return with_model(msgspec.structs.replace(reported, models=models), params.get("modelId"))
    if new_options := _objects_in(result, "configOptions"):
        return with_options(reported, new_options)
    options = reported.config_options or former.config_options
    return with_options(reported, _with_value(options, params.get("configId"), params.get("value")))


def with_update(
    reported: AgentSettings, former: AgentSettings, kind: Any, update: Any
) -> AgentSettings:
    """Return *reported* after a ``session/update`` of that *kind*; the same object if unchanged."""
    match kind:
        case "available_commands_update":
            if (commands := _objects_in(update, "availableCommands")) is not None:
                return msgspec.structs.replace(reported, commands=commands)
        case "config_option_update":
            if (options := _objects_in(update, "configOptions")) is not None:
                return with_options(reported, options)
        case "current_mode_update" if isinstance(mode := update.get("currentModeId"), str):
            modes = reported.modes if isinstance(reported.modes, dict) else former.modes
            return with_mode(msgspec.structs.replace(reported, modes=modes), mode)
    return reported


def with_mode(reported: AgentSettings, mode: Any) -> AgentSettings:
    """Return *reported* with another mode, in each form in which the agent offers modes."""
    return _with_current(reported, "mode", mode)


def with_model(reported: AgentSettings, model: Any) -> AgentSettings:
    """Return *reported* with another model, in each form in which the agent offers models."""
    return _with_current(reported, "model", model)


def _with_current(reported: AgentSettings, setting: str, value: Any) -> AgentSettings:
    changes = _own_field(reported, setting, value)
    if (option := option_of(reported, setting)) is not None:
        changes["config_options"] = _with_value(reported.config_options, option["id"], value)
    return msgspec.structs.replace(reported, **changes)


def with_options(reported: AgentSettings, options: Any) -> AgentSettings:
    """Return *reported* with other config options.

    One for the mode also sets the mode, and one for the model the model.
    """
    reported = msgspec.structs.replace(reported, config_options=options)
    changes: dict[str, Any] = {}
    for setting in _OWN_FIELDS:
        if (option := option_of(reported, setting)) is not None:
            changes |= _own_field(reported, setting, option.get("currentValue"))
    return msgspec.structs.replace(reported, **changes) if changes else reported


def _own_field(reported: AgentSettings, setting: str, value: Any) -> dict[str, Any]:
    """ACP's own field of a mode or model, with another value; empty if it was not reported."""
    name, key = _OWN_FIELDS[setting]
    offer = getattr(reported, name)
    return {name: {**offer, key: value}} if isinstance(offer, dict) else {}


def _with_value(options: Any, key: Any, value: Any) -> Any:
    if not isinstance(options, list):
        return options
    return [
        {**option, "currentValue": value}
        if isinstance(option, dict) and option.get("id") == key
        else option
        for option in options
    ]


def _object_in(message: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = message.get(name)
    return value if isinstance(value, dict) and value else None


def _objects_in(message: Mapping[str, Any], name: str) -> list[Any] | None:
    """A list of objects, without what an agent mixes into it; None if it is not a list."""
    value = message.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else None
