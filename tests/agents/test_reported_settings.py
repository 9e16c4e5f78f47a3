"""The settings that an agent reports: of any type, and in lists of any length."""

from __future__ import annotations

from typing import Any

import pytest

from server.agents.agent_settings import NO_SETTINGS, REPORT_BYTES, AgentSettings
from server.agents.base import WantedSettings
from server.agents.reported_settings import with_options, with_session_result, with_update
from server.agents.setting_steps import needed_steps
from server.codec import dumps

from ..support.harness import Json


@pytest.mark.parametrize("value", [None, 5, True, "text", {}, {"a": []}])
def test_reports_of_an_unexpected_type_are_ignored(value: Any) -> None:
    option = {"id": "a", "name": "A", "type": "select", "currentValue": "x", "options": []}
    modes = {"currentModeId": "ask", "availableModes": []}
    opened = {"modes": modes, "models": value, "configOptions": [option, value]}
    known = with_session_result(NO_SETTINGS, opened)
    assert known.modes == modes
    assert known.models in (None, {"a": []})
    assert known.config_options[0] == option
    for kind, field in (
        ("available_commands_update", "availableCommands"),
        ("config_option_update", "configOptions"),
        ("current_mode_update", "currentModeId"),
    ):
        if (kind, value) != ("current_mode_update", "text"):
            assert with_update(known, NO_SETTINGS, kind, {field: value}) is known, kind
    mixed = {"availableCommands": ["x", None, {"name": "init"}]}
    found = with_update(known, NO_SETTINGS, "available_commands_update", mixed)
    assert found.commands == [{"name": "init"}]


def option(name: str, count: int = 1, *, is_grouped: bool = False) -> Json:
    choices: list[Json] = [{"value": f"{name}-{n}", "name": "x" * 100} for n in range(count)]
    if is_grouped:
        choices = [{"group": "all", "name": "All", "options": choices}]
    kind = {"id": name, "category": name, "type": "select"}
    return {**kind, "options": choices, "currentValue": f"{name}-0"}


@pytest.mark.parametrize("is_grouped", [False, True])
def test_value_beyond_a_shortened_list_can_be_set(is_grouped: bool) -> None:
    offered = [option("model", 2000, is_grouped=is_grouped), option("effort", 900), option("mode")]
    state = with_options(NO_SETTINGS, offered)
    assert len(dumps(state.config_options)) <= REPORT_BYTES
    assert [one["id"] for one in state.config_options] == ["model", "effort", "mode"]
    assert state.config_options[2] == offered[2]
    wanted = WantedSettings("model-1999", "mode-1", {"effort": "effort-899"})
    model, effort, mode = needed_steps(wanted, state, NO_SETTINGS)
    assert (model.method, model.params["configId"]) == ("session/set_config_option", "model")
    assert effort.method == "session/set_config_option"
    assert mode.method is None  # its list is not shortened
    assert not needed_steps(WantedSettings("model-0", "mode-0"), state, NO_SETTINGS)


def test_shortened_list_of_models_keeps_the_current_one() -> None:
    listed = [{"modelId": f"m{n}", "name": "x" * 100} for n in range(2000)]
    state = AgentSettings(models={"availableModels": listed, "currentModelId": "m1999"})
    assert len(dumps(state.models)) <= REPORT_BYTES
    assert not needed_steps(WantedSettings("m1999"), state, NO_SETTINGS)
    assert (
        needed_steps(WantedSettings("m1998"), state, NO_SETTINGS)[0].method == "session/set_model"
    )
