"""The values that clients set for an agent: as they request, store and change them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from ..agents import reported_settings
from ..agents.agent_settings import AgentSettings
from ..codec import dumps
from ..errors import Error
from ..validation import OptionValue


class SetMode(msgspec.Struct, frozen=True):
    """A request for another mode of the agent."""

    mode: str


class SetModel(msgspec.Struct, frozen=True):
    """A request for another model."""

    model: str


class SetConfigOption(msgspec.Struct, frozen=True):
    """A request for another value of one of the agent's own options."""

    key: str
    value: OptionValue


Setting = SetMode | SetModel | SetConfigOption


class CarriedSetting(msgspec.Struct, kw_only=True):
    """A request for another value, for the next version of the server.

    Attributes:
        kind: ``mode``, ``model`` or ``option``.
        key: of an option.
    """

    kind: str
    value: OptionValue
    key: str = ""

    @classmethod
    def of(cls, setting: Setting) -> CarriedSetting:
        match setting:
            case SetMode(mode=mode):
                return cls(kind="mode", value=mode)
            case SetModel(model=model):
                return cls(kind="model", value=model)
            case SetConfigOption(key=key, value=value):
                return cls(kind="option", key=key, value=value)

    def restored(self) -> Setting:
        if self.kind == "option":
            return SetConfigOption(self.key, self.value)
        return SetMode(str(self.value)) if self.kind == "mode" else SetModel(str(self.value))


_STORED_NAMES = {"logged_asks": "asks_told", "needs_preface": "owes_preface"}
"""The names of fields in rows that earlier versions have stored."""


class StoredSettings(msgspec.Struct, frozen=True, rename=_STORED_NAMES):
    """The mode and the options of a session, as its row stores them. The model is a column.

    Attributes:
        logged_asks: the value of the newest ``asks`` notice in the log.
        asked_in: a mode in which the agent has asked for permission.
        needs_preface: the agent's conversation has not received :attr:`AgentSpec.preface` yet.
    """

    mode: str | None = None
    config_options: Mapping[str, str | bool] = msgspec.field(default_factory=dict)
    logged_asks: bool = True
    asked_in: str | None = None
    needs_preface: bool = False

    @classmethod
    def decode(cls, stored: str | None) -> StoredSettings:
        """Read what :meth:`encode` returned."""
        return msgspec.json.decode(stored, type=cls) if stored else cls()

    def encode(self) -> str:
        return dumps(msgspec.to_builtins(self)).decode()

    def resolve_options(
        self, model: str | None, reported: AgentSettings
    ) -> tuple[str | None, StoredSettings]:
        """Return the model and the settings, after moving options that stand for model or mode."""
        mode, options = self.mode, {}
        for key, value in self.config_options.items():
            match reported_settings.setting_of(reported, key):
                case "model" if isinstance(value, str) and model in (None, value):
                    model = value
                case "mode" if isinstance(value, str) and mode in (None, value):
                    mode = value
                case _:
                    options[key] = value
        return model, msgspec.structs.replace(self, mode=mode, config_options=options)

    def with_value(
        self, model: str | None, setting: str, value: OptionValue, reported: AgentSettings
    ) -> tuple[str | None, StoredSettings]:
        """Return the model and the settings, with another value for *setting*."""
        options = {
            key: other
            for key, other in self.config_options.items()
            if reported_settings.setting_of(reported, key) != setting
        }
        if setting == "model" and isinstance(value, str):
            return value, msgspec.structs.replace(self, config_options=options)
        if setting == "mode" and isinstance(value, str):
            return model, msgspec.structs.replace(self, mode=value, config_options=options)
        options[setting] = value
        return model, msgspec.structs.replace(self, config_options=options)

    def without_unoffered(self, reported: AgentSettings) -> StoredSettings:
        """Return the settings without the options that the agent does not offer now."""
        if not isinstance(reported.config_options, list):
            return self
        offered = {
            key: value
            for key, value in self.config_options.items()
            # An option that lists no values accepts every value.
            if reported_settings.offers_value(reported, key, value)
            or reported_settings.choices_of(reported, key) == []
        }
        return msgspec.structs.replace(self, config_options=offered)


class SettingChange:
    """One requested change of a setting.

    Attributes:
        has_begun: the request may have reached the agent.
        done: resolved when the change is made or has failed.
        failure: the reason for which it could not be made.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.has_begun = False
        self.task: asyncio.Task[None] | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: Error | None = None
        self._result: Mapping[str, Any] | None = None

    async def wait(self) -> Mapping[str, Any]:
        """Wait for the change, and return the agent's own result.

        If the caller is cancelled before the change has begun, the change is dropped.

        Raises:
            Error: the change could not be made.
        """
        try:
            await asyncio.wait({self.done})
        except asyncio.CancelledError:
            if self.task is not None and not self.has_begun:
                self.task.cancel()
            raise
        if self.failure is not None:
            raise self.failure
        return self._result or {}

    def succeed(self, result: Mapping[str, Any]) -> None:
        self._result = result

    def fail(self, failure: Error) -> None:
        self.failure = failure

    def finish(self) -> None:
        """Resolve :attr:`done`."""
        if not self.done.done():
            self.done.set_result(None)
