"""The settings of one session's agent: reported values, wanted values, and changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from ..agents import reported_settings
from ..agents.agent_settings import AgentSettings
from ..agents.base import Agent, WantedSettings
from ..agents.traits import APPROVE_ALL
from ..errors import Error, ErrorCode, internal, session_closed
from ..storage import statements
from ..tasks import to_completion
from ..validation import OptionValue
from . import entries
from .agent_spec import agent_traits
from .core import SessionCore
from .session_agent import SessionAgent
from .settings import (
    CarriedSetting,
    SetConfigOption,
    SetMode,
    SetModel,
    Setting,
    SettingChange,
    StoredSettings,
)
from .turns import CurrentTurn

MAX_CHANGES = 16
"""The limit on the changes of one session that are requested and not made yet."""


class CarriedSettings(msgspec.Struct, kw_only=True):
    """The changes of settings for the next version of the server."""

    changes: list[CarriedSetting]
    restored: list[tuple[str, OptionValue]]


class SessionSettings:
    """The mode, the model and the options of one session's agent.

    A change is stored after the agent has made it. Whenever the agent starts, the stored settings
    are set again.
    """

    def __init__(self, core: SessionCore, agent: SessionAgent, current: CurrentTurn) -> None:
        self._core = core
        self._agent = agent
        self._current = current
        self._stored = StoredSettings.decode(core.row.settings)
        self._changes: list[SettingChange] = []
        self._change_lock = asyncio.Lock()
        self._restored: list[tuple[str, OptionValue]] = []

    @property
    def wanted(self) -> WantedSettings:
        """The settings that the agent must be in before it gets a prompt.

        If no client has set a mode, every policy except ``approve-all`` needs the mode in which the
        agent asks for permission.
        """
        traits, permission = agent_traits(self._core), self._core.row.permission
        model, stored = self._stored.resolve_options(self._core.row.model, self._agent.reported)
        asking_mode = traits.asking_mode if permission != APPROVE_ALL else None
        return WantedSettings(
            model=model,
            mode=stored.mode or asking_mode,
            config_options=stored.config_options,
            mode_is_optional=stored.mode is None and permission != "deny-all",
            model_may_be_unlisted=traits.takes_any_model,
        )

    @property
    def mode(self) -> str | None:
        """The mode that the running agent reports; otherwise the mode that its next start sets."""
        reported = self._agent.reported
        current = reported_settings.current_mode(reported)
        if current is not None and self._agent.is_live:
            return current
        wanted = self.wanted
        if wanted.mode is None:
            return current
        is_offered = reported_settings.offers_value(reported, "mode", wanted.mode)
        if is_offered is None:
            is_offered = not self._agent.has_reported_all
        return wanted.mode if is_offered or not wanted.mode_is_optional else current

    @property
    def asks(self) -> bool | None:
        """Whether the agent asks for permission in its mode; None if that is not known."""
        mode = self.mode
        if mode is not None and mode == self._stored.asked_in:
            return True
        return agent_traits(self._core).asks(mode, self._core.row.permission)

    def view(self) -> dict[str, Any]:
        """The settings and what the agent offers, in ACP's shapes."""
        return {
            "mode": self.mode,
            "asks": self.asks,
            **reported_settings.settings_view(self._agent.reported),
        }

    # Changes that clients request

    @property
    def changes(self) -> tuple[SettingChange, ...]:
        """The changes that have been requested and are not made yet."""
        return tuple(self._changes)

    @property
    def is_changing(self) -> bool:
        return bool(self._changes)

    def request(self, setting: Setting) -> SettingChange:
        """Change the agent's mode, model or an option of its own, in the background.

        Later prompts wait for the change, and do not run if it fails.

        Raises:
            Error: ``session_closed``; ``rate_limited`` if too many changes wait.
        """
        if not self._core.is_open:
            raise session_closed()
        if len(self._changes) >= MAX_CHANGES:
            raise Error(
                ErrorCode.RATE_LIMITED, "too many setting changes are pending", retryable=True
            )
        change = SettingChange(setting)
        self._changes.append(change)
        change.task = self._core.context.tasks.spawn(
            self._make_change(change), f"change-{self._core.id}"
        )
        return change

    async def _make_change(self, change: SettingChange) -> None:
        """Have the agent make the change, and store it, even if its caller was cancelled."""
        slots = self._core.context.slots
        try:
            async with self._change_lock:
                await slots.acquire(self._agent)
                change.has_begun = True
                if not self._core.is_open:
                    raise session_closed()
                result = await _send_to_agent(self._agent.backend_agent, change.setting)
                await self._store_change(change.setting)
            change.succeed(result)
        except Error as error:
            change.fail(error)
        except Exception:
            change.fail(internal())
            raise  # its task logs it
        finally:
            self._changes.remove(change)
            change.finish()
            self._agent.store_reported()
            self._agent.last_used = self._core.context.clock()
            self._agent.release_unused_slot()
            slots.reconsider()

    async def _store_change(self, setting: Setting) -> None:
        reported, row = self._agent.reported, self._core.row
        name, value = _name_and_value(setting, reported)
        model, stored = self._stored.with_value(row.model, name, value, reported)
        stored = stored.without_unoffered(reported)
        statement = statements.set_settings(row.n, model, stored.encode())
        await to_completion(self._core.context.writer.commit([statement]))
        self._assign(model, stored)
        if name == "mode":
            self.log_asks()

    def _store_in_background(self, model: str | None, stored: StoredSettings) -> None:
        """Store settings that are in force already, without waiting for the commit."""
        row = self._core.row
        if (model, stored) != (row.model, self._stored):
            self._assign(model, stored)
            self._core.context.writer.add([statements.set_settings(row.n, model, stored.encode())])

    def _store_field(self, **values: Any) -> None:
        """Store other values for fields of :class:`StoredSettings`, without waiting."""
        stored = msgspec.structs.replace(self._stored, **values)
        self._store_in_background(self._core.row.model, stored)

    def _assign(self, model: str | None, stored: StoredSettings) -> None:
        row = self._core.row
        row.model, self._stored, row.settings = model, stored, stored.encode()

    # A reload of the server

    def pack(self) -> CarriedSettings:
        """Return the changes that are not made yet, and the notices that are not logged yet."""
        changes = [CarriedSetting.of(change.setting) for change in self._changes]
        return CarriedSettings(changes=changes, restored=self._restored)

    def restore(self, carried: CarriedSettings) -> tuple[SettingChange, ...]:
        """Make the changes that an earlier version of the server has not completed."""
        self._restored = [*carried.restored]
        return tuple(self.request(change.restored()) for change in carried.changes)

    # Reports of the agent

    @property
    def needs_preface(self) -> bool:
        return self._stored.needs_preface

    @needs_preface.setter
    def needs_preface(self, needs: bool) -> None:
        self._store_field(needs_preface=needs)

    def note_restored(self, setting: str, value: OptionValue) -> None:
        """Note that a setting was restored in a new process. It is logged after ``turn_start``."""
        self._restored.append((setting, value))

    def note_asked(self) -> None:
        """Note that the agent asked for permission in its current mode."""
        if (mode := self.mode) is not None and mode != self._stored.asked_in:
            self._store_field(asked_in=mode)

    def note_own_change(self, before: AgentSettings, after: AgentSettings) -> None:
        """Store a setting that the agent has changed by itself, to set it again after a restart.

        If the session needs the agent to ask, and it changed to a mode in which it does not, the
        asking mode is stored instead.
        """
        self._core.notify_changed()
        wanted, stored, model = self.wanted, self._stored, self._core.row.model
        values = {"model": wanted.model, **wanted.config_options, "mode": wanted.mode}
        for name, value in values.items():
            now = reported_settings.current_value(after, name)
            if value is None or now in (None, value):
                continue
            if reported_settings.current_value(before, name) != value:
                continue  # the wanted value was not in force before
            if name == "mode" and isinstance(now, str) and self._bypasses_policy(now):
                now = agent_traits(self._core).asking_mode or value
            model, stored = stored.with_value(model, name, now, after)
        self._store_in_background(model, stored)
        self.log_asks()

    def _bypasses_policy(self, mode: str) -> bool:
        """Whether the session needs the agent to ask, and it does not ask in *mode*."""
        traits, permission = agent_traits(self._core), self._core.row.permission
        return permission != APPROVE_ALL and traits.asks(mode, permission) is False

    # Notices in the log

    def log_restored(self, turn_index: int) -> None:
        """Log the settings that were restored before the turn."""
        restored, self._restored = self._restored, []
        for setting, value in restored:
            fields = entries.encode_fields(notice="restored", setting=setting, value=value)
            self._core.log.append("notice", turn_index, fields)

    def log_asks(self) -> None:
        """Log whether the agent asks for permission, if that changed and the policy needs it."""
        if self._core.is_log_complete or self._core.row.permission == APPROVE_ALL:
            return
        asks = self.asks
        if not (self._core.log.last or agent_traits(self._core).never_asks):
            return  # the start of the first turn logs it
        if asks is None or asks == self._stored.logged_asks:
            return
        self._store_field(logged_asks=asks)
        fields = entries.encode_fields(notice="asks", asks=asks)
        self._core.log.append("notice", self._current.entry_turn_index(), fields)


async def _send_to_agent(agent: Agent, setting: Setting) -> Mapping[str, Any]:
    match setting:
        case SetMode(mode=mode):
            return await agent.set_mode(mode)
        case SetModel(model=model):
            return await agent.set_model(model)
        case SetConfigOption(key=key, value=value):
            return await agent.set_config_option(key, value)


def _name_and_value(setting: Setting, reported: AgentSettings) -> tuple[str, OptionValue]:
    """Return the name and the value, where an option may stand for the mode or the model."""
    match setting:
        case SetMode(mode=mode):
            return "mode", mode
        case SetModel(model=model):
            return "model", model
        case SetConfigOption(key=key, value=value):
            return reported_settings.setting_of(reported, key), value
