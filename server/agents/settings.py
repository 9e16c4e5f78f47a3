"""An agent's settings (mode, model, options): which are current, and what sets them.

An agent may offer modes and models in ACP's own fields, as config options, or as both. Nothing
here does I/O; what an agent wrote is untrusted, so each value's type is looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .agent_settings import AgentSettings, is_shortened
from .base import AgentObserver, AgentSpec, Wanted

SET_MODE = "session/set_mode"
SET_MODEL = "session/set_model"
SET_OPTION = "session/set_config_option"
SETTERS = frozenset({SET_MODE, SET_MODEL, SET_OPTION})
SESSION_METHODS = frozenset({"session/new", "session/load", "session/resume"})
"""The requests that open a conversation; the agent's response has its settings."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One request that sets one setting.

    Attributes:
        setting: ``mode``, ``model`` or the id of a config option.
        method: None if the agent offers no such setting, or not with that value.
        params: without the session's id.
    """

    setting: str
    value: str
    method: str | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.setting, self.value


def steps(
    wanted: Wanted,
    state: AgentSettings,
    former: AgentSettings,
    synonyms: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> list[Step]:
    """What is left to do until *state* is as *wanted*, in the order in which it must be done.

    A model may change the options and the mode, so it comes first and the mode last.

    Args:
        state: what the agent has said of itself since it was loaded.
        former: what an earlier process of it said.
        synonyms: what the agent calls a value, for those that it has another name for.
    """
    found = []
    for setting, value in _ordered(wanted, state):
        if current(state, setting) in (value, synonyms.get((setting, value), value)):
            continue
        step = _step(setting, value, state, former, wanted.model_may_be_unlisted)
        if setting == "mode" and wanted.mode_is_optional and step.method is None:
            continue
        found.append(step)
    return found


def _ordered(wanted: Wanted, state: AgentSettings) -> Iterator[tuple[str, str]]:
    if wanted.model is not None:
        yield "model", wanted.model
    options = [(setting_of(state, key), value) for key, value in wanted.config_options.items()]
    yield from (one for one in options if one[0] == "model")
    yield from (one for one in options if one[0] not in ("model", "mode"))
    yield from (one for one in options if one[0] == "mode")
    if wanted.mode is not None:
        yield "mode", wanted.mode


def _step(
    setting: str, value: str, state: AgentSettings, former: AgentSettings, any_model: bool
) -> Step:
    """The request that sets it, as far as the agent offers it, or did before."""
    # What a config option may be is left to the agent.
    may_be_unlisted = setting != "mode" and (setting != "model" or any_model)
    may_be_unlisted = may_be_unlisted or current(former, setting) == value
    for known in (state, former):
        is_offered = offers(known, setting, value)
        if is_offered is None:
            continue
        if not (is_offered or may_be_unlisted):
            break
        return Step(setting, value, *_request(known, setting, value))
    return Step(setting, value)


def _request(known: AgentSettings, setting: str, value: str) -> tuple[str, dict[str, Any]]:
    if setting == "mode" and isinstance(known.modes, dict):
        return SET_MODE, {"modeId": value}
    option = option_of(known, setting)
    if option is None:
        return SET_MODEL, {"modelId": value}
    return SET_OPTION, {"configId": option["id"], "value": value}


def option_of(state: AgentSettings, setting: str) -> dict[str, Any] | None:
    """The config option that stands for *setting*, if there is one."""
    options = state.config_options if isinstance(state.config_options, list) else []
    found, priority = None, -1
    for option in options:
        if not isinstance(option, dict) or not isinstance(option.get("id"), str):
            continue
        if setting in ("mode", "model"):
            of_category = option.get("category") == setting
            if option.get("type") != "select" or not (of_category or option["id"] == setting):
                continue
            rank = of_category * (1 + (option["id"] == setting))  # as acpx has it
        elif option["id"] == setting:
            rank = 0
        else:
            continue
        if rank > priority:
            found, priority = option, rank
    return found


def setting_of(state: AgentSettings, key: str) -> str:
    """What a config option of that id sets: ``mode``, ``model``, or only itself."""
    for setting in ("mode", "model"):
        option = option_of(state, setting)
        if option is not None and option["id"] == key:
            return setting
    return key


def requested(state: AgentSettings, method: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """What a request that sets something sets, and the value."""
    if method == SET_MODE:
        return "mode", str(params.get("modeId"))
    if method == SET_MODEL:
        return "model", str(params.get("modelId"))
    return setting_of(state, str(params.get("configId"))), str(params.get("value"))


def current(state: AgentSettings, setting: str) -> str | None:
    """A setting's value, as the agent last said it; None if it has not."""
    value: Any = None
    if setting == "mode" and isinstance(state.modes, dict):
        value = state.modes.get("currentModeId")
    elif (option := option_of(state, setting)) is not None:
        value = option.get("currentValue")
    elif setting == "model" and isinstance(state.models, dict):
        value = state.models.get("currentModelId")
    return value if isinstance(value, str) else None


def offers(state: AgentSettings, setting: str, value: str) -> bool | None:
    """Whether the agent offers that value, or may; None if it offers no such setting."""
    choices = choices_of(state, setting)
    if choices is None:
        return None
    return value in choices or is_shortened(_offer_of(state, setting))


def choices_of(state: AgentSettings, setting: str) -> list[str] | None:
    """The values that the agent offers for *setting*; None if it offers no such setting."""
    offer = _offer_of(state, setting)
    if offer is None:
        return None
    if offer is state.modes:
        return _ids(offer.get("availableModes"), "id")
    if offer is state.models:
        return _ids(offer.get("availableModels"), "modelId")
    return [choice["value"] for choice in _choices(offer)]


def _offer_of(state: AgentSettings, setting: str) -> dict[str, Any] | None:
    """In which form the agent offers *setting*."""
    if setting == "mode" and isinstance(state.modes, dict):
        return state.modes
    if (option := option_of(state, setting)) is not None:
        return option
    if setting == "model" and isinstance(state.models, dict):
        return state.models
    return None


def _ids(offered: Any, name: str) -> list[str]:
    found = offered if isinstance(offered, list) else []
    return [one[name] for one in found if isinstance(one, dict) and isinstance(one.get(name), str)]


def _choices(option: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a select option offers, also if it is in groups."""
    offered = option.get("options")
    for choice in offered if isinstance(offered, list) else []:
        if not isinstance(choice, dict):
            continue
        if isinstance(choice.get("value"), str):
            yield choice
        else:
            yield from _choices(choice)


def view(state: AgentSettings) -> dict[str, Any]:
    """What clients are told of *state*, in ACP's shapes.

    ``models`` are those that can be set, in whichever form the agent offers them; so are ``modes``.
    """
    told = state.to_dict()
    if (option := option_of(state, "model")) is not None:
        told["models"] = {
            "currentModelId": option.get("currentValue"),
            "availableModels": [_named(choice, "modelId") for choice in _choices(option)],
        }
    if not state.modes and (option := option_of(state, "mode")) is not None:
        told["modes"] = {
            "currentModeId": option.get("currentValue"),
            "availableModes": [_named(choice, "id") for choice in _choices(option)],
        }
    return told


def _named(choice: Mapping[str, Any], key: str) -> dict[str, Any]:
    about = {name: choice[name] for name in ("name", "description") if name in choice}
    return {key: choice["value"], "name": choice["value"], **about}


def with_session_result(state: AgentSettings, result: Mapping[str, Any]) -> AgentSettings:
    """With the agent's answer to session/new, session/load or session/resume.

    A setting that it does not name is not known any more: another process said it.
    """
    return dataclasses.replace(
        state,
        modes=result.get("modes") or None,
        models=result.get("models") or None,
        config_options=result.get("configOptions") or None,
    )


def with_result(
    state: AgentSettings,
    former: AgentSettings,
    method: str,
    params: Mapping[str, Any],
    result: Mapping[str, Any],
) -> AgentSettings:
    """With the agent's answer to a request that set something.

    Not every agent says what is current now: what was asked for, then.
    """
    if method == SET_MODE:
        base = state if isinstance(state.modes, dict) else former
        return in_mode(dataclasses.replace(state, modes=base.modes), params.get("modeId"))
    if method == SET_MODEL:
        models = state.models if isinstance(state.models, dict) else former.models
        if not isinstance(models, dict):
            return state
        models = {**models, "currentModelId": params.get("modelId")}
        return dataclasses.replace(state, models=models)
    if result.get("configOptions"):
        return with_options(state, result["configOptions"])
    options = state.config_options or former.config_options
    return with_options(state, _with_value(options, params.get("configId"), params.get("value")))


def with_update(
    state: AgentSettings, former: AgentSettings, kind: Any, update: Any
) -> AgentSettings:
    """With a ``session/update`` of the agent's, of that *kind*."""
    match kind:
        case "available_commands_update":
            return dataclasses.replace(state, commands=update.get("availableCommands"))
        case "config_option_update":
            return with_options(state, update.get("configOptions"))
        case "current_mode_update":
            modes = state.modes if isinstance(state.modes, dict) else former.modes
            return in_mode(dataclasses.replace(state, modes=modes), update.get("currentModeId"))
    return state


def in_mode(state: AgentSettings, mode: Any) -> AgentSettings:
    """With another mode, if it has modes, whichever form it offers them in."""
    modes, options = state.modes, state.config_options
    if isinstance(modes, dict):
        modes = {**modes, "currentModeId": mode}
    if (option := option_of(state, "mode")) is not None:
        options = _with_value(options, option["id"], mode)
    return dataclasses.replace(state, modes=modes, config_options=options)


def with_options(state: AgentSettings, options: Any) -> AgentSettings:
    """With other config options; one that stands for the mode counts for the mode."""
    state = dataclasses.replace(state, config_options=options)
    mode = option_of(state, "mode")
    if mode is not None and isinstance(state.modes, dict):
        modes = {**state.modes, "currentModeId": mode.get("currentValue")}
        state = dataclasses.replace(state, modes=modes)
    return state


def _with_value(options: Any, key: Any, value: Any) -> Any:
    if not isinstance(options, list):
        return options
    return [
        {**one, "currentValue": value} if isinstance(one, dict) and one.get("id") == key else one
        for one in options
    ]


def is_command(state: AgentSettings, blocks: Any) -> bool:
    """Whether a prompt is a command of the agent's, which nothing may be put in front of."""
    first = blocks[0] if isinstance(blocks, list) and blocks else None
    text = first.get("text") if isinstance(first, dict) else None
    if not isinstance(text, str) or not text.startswith("/"):
        return False
    name = text[1:].partition("\n")[0].partition(" ")[0]
    offered = state.commands if isinstance(state.commands, list) else []
    return any(isinstance(one, dict) and one.get("name") == name for one in offered)


def preface_of(
    blocks: Any, spec: AgentSpec, state: AgentSettings, observer: AgentObserver
) -> str | None:
    """What goes in front of a prompt in a conversation that has no preface yet."""
    observer.owes_preface = spec.preface is not None and is_command(state, blocks)
    return None if observer.owes_preface else spec.preface
