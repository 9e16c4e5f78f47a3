"""A session's settings of its agent: as they are stored, and a change of one on its way."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from ..agents import settings
from ..agents.base import AgentSettings
from ..codec import dumps, loads
from ..errors import Error


@dataclasses.dataclass(frozen=True, slots=True)
class SetMode:
    """A request for another mode of the agent."""

    mode: str


@dataclasses.dataclass(frozen=True, slots=True)
class SetModel:
    """A request for another model."""

    model: str


@dataclasses.dataclass(frozen=True, slots=True)
class SetConfigOption:
    """A request for another value of one of the agent's own options."""

    key: str
    value: str


Setting = SetMode | SetModel | SetConfigOption


@dataclasses.dataclass(frozen=True, slots=True)
class SessionSettings:
    """The mode and the options that are in force, beside the model.

    Attributes:
        asks_told: what the log said last of whether the agent asks.
        asked_in: a mode in which the agent was seen to ask.
        owes_preface: the agent's conversation lacks the text that belongs in front of it.
    """

    mode: str | None = None
    config_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    asks_told: bool = True
    asked_in: str | None = None
    owes_preface: bool = False

    @classmethod
    def of(cls, stored: str | None) -> SessionSettings:
        """From what :meth:`encoded` gave."""
        return cls(**loads(stored)) if stored else cls()

    def encoded(self) -> str:
        return dumps(dataclasses.asdict(self)).decode()

    def named_by(
        self, model: str | None, state: AgentSettings
    ) -> tuple[str | None, SessionSettings]:
        """The model and the others; an option that is the agent's model or mode counts as that."""
        mode, options = self.mode, {}
        for key, value in self.config_options.items():
            match settings.setting_of(state, key):
                case "model" if model in (None, value):
                    model = value
                case "mode" if mode in (None, value):
                    mode = value
                case _:
                    options[key] = value
        return model, dataclasses.replace(self, mode=mode, config_options=options)

    def with_value(
        self, model: str | None, setting: str, value: str, state: AgentSettings
    ) -> tuple[str | None, SessionSettings]:
        """The model and the others, with another value for *setting*."""
        options = {
            key: kept
            for key, kept in self.config_options.items()
            if settings.setting_of(state, key) != setting
        }
        if setting == "model":
            return value, dataclasses.replace(self, config_options=options)
        if setting == "mode":
            return model, dataclasses.replace(self, mode=value, config_options=options)
        options[setting] = value
        return model, dataclasses.replace(self, config_options=options)

    def offered_by(self, state: AgentSettings) -> SessionSettings:
        """Without the options that an agent does not offer any more, as with another model."""
        if not isinstance(state.config_options, list):
            return self
        kept = {
            key: value
            for key, value in self.config_options.items()
            # One without a list may be anything.
            if settings.offers(state, key, value) or settings.choices_of(state, key) == []
        }
        return dataclasses.replace(self, config_options=kept)


class Change:
    """A change of one setting, on its way.

    Attributes:
        has_begun: the agent may have been asked.
        done: when it is decided, whichever way.
        failure: why it could not be made.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.has_begun = False
        self.task: asyncio.Task[None] | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: Error | None = None
        self._result: Mapping[str, Any] | None = None

    async def outcome(self) -> Mapping[str, Any]:
        """Wait for the agent's own result; a change that has not begun ends with its waiter.

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

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
