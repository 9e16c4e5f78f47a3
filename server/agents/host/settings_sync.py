"""Keeps an agent in the settings that its session wants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from ...errors import Error, bad_request, internal
from ...tasks import Tasks
from ...validation import OptionValue
from .. import acp_methods, reported_settings, steering
from ..agent_settings import NO_SETTINGS, AgentSettings
from ..base import AgentTimeouts, WantedSettings, agent_failed
from ..failures import error_text
from ..setting_steps import SettingStep, needed_steps, option_params, requested_setting
from .agent_process import AgentProcess
from .binding import Binding
from .stdio_proxy import StdioProxy

MAX_TRIES = 2
"""Requests for one setting before a prompt: a request for another may have changed it back."""


class SyncState(msgspec.Struct, kw_only=True):
    """The settings of one agent for the next version of the server; see :class:`SettingsSync`."""

    reported: dict[str, Any]
    former: dict[str, Any]
    initial: dict[str, Any]
    in_force: dict[str, OptionValue]
    restored: list[str]
    synonyms: list[tuple[str, OptionValue, OptionValue]]


class SettingsSync:
    """Compares the settings that an agent reported with those that its session wants.

    Differing settings are set by requests of the server, of which acpx learns nothing.

    Attributes:
        reported: the settings that the agent reported last.
        acpx_changes: held while acpx carries out a change that a client asked for.
        results: the agent's results of acpx's requests, by their methods.
        has_refused: the agent has responded to such a request with an error.
    """

    def __init__(
        self,
        binding: Binding,
        process: AgentProcess,
        tasks: Tasks,
        timeouts: AgentTimeouts,
        reported: AgentSettings,
    ) -> None:
        self.timeouts = timeouts
        self.reported = reported
        self.acpx_changes = asyncio.Lock()
        self.results: dict[str, dict[str, Any]] = {}
        self.has_refused = False
        self._binding = binding
        self._process = process
        self._tasks = tasks
        # As an earlier process reported them, and as the current process reported them first.
        self._former = NO_SETTINGS
        self._initial = NO_SETTINGS
        self._in_force: dict[str, OptionValue] = {}
        self._restored: set[str] = set()
        self._synonyms: dict[tuple[str, OptionValue], OptionValue] = {}
        self._mode_was_reported = False
        self._applying: asyncio.Future[Error | None] | None = None

    # A reload of the server.

    def pack(self) -> SyncState:
        return SyncState(
            reported=msgspec.structs.asdict(self.reported),
            former=msgspec.structs.asdict(self._former),
            initial=msgspec.structs.asdict(self._initial),
            in_force=self._in_force,
            restored=[*self._restored],
            synonyms=[(*key, own) for key, own in self._synonyms.items()],
        )

    def restore(self, state: SyncState) -> None:
        self.reported = AgentSettings(**state.reported)
        self._former, self._initial = AgentSettings(**state.former), AgentSettings(**state.initial)
        self._in_force, self._restored = state.in_force, set(state.restored)
        self._synonyms = {(setting, value): own for setting, value, own in state.synonyms}

    # Setting what the session wants.

    def apply_if_needed(self) -> asyncio.Future[Error | None] | None:
        """Start to apply the wanted settings if the agent is in others.

        Returns:
            None if there is nothing to apply; else as :meth:`apply`.
        """
        if self._applying is None:
            wanted = self._binding.observer.wanted
            if wanted.is_empty or not self._steps(wanted):
                return None
        return self.apply()

    def apply(self) -> asyncio.Future[Error | None]:
        """Start to apply the wanted settings, unless they are being applied.

        Returns:
            A future with the error that prevents it, or None.
        """
        if self._applying is None:
            self._applying = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._run(self._applying), f"settings-{self._binding.key}")
        return self._applying

    async def _run(self, applied: asyncio.Future[Error | None]) -> None:
        failure: Error | None = agent_failed("the server is stopping")
        try:
            if self._process.proxy is not None:
                await self._apply_steps(self._process.proxy)
            failure = None
        except ConnectionError:  # acpx notices the end, too, and sends the prompt to a new process
            failure = None
        except Error as error:
            failure = error
        except Exception:
            failure = internal()
            raise  # to the log
        finally:
            self._applying = None
            applied.set_result(failure)

    async def _apply_steps(self, proxy: StdioProxy) -> None:
        """Set one setting after the other, until the agent is in all wanted settings.

        Raises:
            Error: the agent refuses a setting, or does not have it.
            ConnectionError: the process has ended.
        """
        wanted = self._binding.observer.wanted
        tries: Counter[tuple[str, OptionValue]] = Counter()
        while steps := self._steps(wanted):
            step = steps[0]
            if step.method is None:
                raise self._cannot_set(step, "it offers no such value")
            if tries[step.key] == MAX_TRIES:
                raise self._cannot_set(step, "it says that it is in another")
            tries[step.key] += 1
            await self._request(proxy, step.method, step)

    def _steps(self, wanted: WantedSettings) -> list[SettingStep]:
        return needed_steps(wanted, self.reported, self._former, self._synonyms)

    def _cannot_set(self, step: SettingStep, reason: str) -> Error:
        message = f"{step.setting}: the agent cannot be put into {step.value!r}: {reason}"
        was_in_force = self._in_force.get(step.setting) == step.value
        return agent_failed(message) if was_in_force else bad_request(message)

    async def _request(
        self, proxy: StdioProxy, method: str, step: SettingStep
    ) -> Mapping[str, Any]:
        self._mode_was_reported = False
        try:
            async with asyncio.timeout(self.timeouts.setting):
                response = await proxy.own_requests.request(method, step.params)
        except TimeoutError:
            raise agent_failed(
                f"{step.setting}: the agent did not answer when it was set to {step.value!r}"
            ) from None
        result = response.get("result")
        if "error" in response or not isinstance(result, dict):
            raise self._cannot_set(step, error_text(response.get("error")) or "it refused")
        before = reported_settings.current_value(self.reported, step.setting)
        self._note_set(step.setting, step.value, method, step.params, result)
        after = reported_settings.current_value(self.reported, step.setting)
        if step.setting == "model" and after not in (None, before, step.value):
            self._synonyms[step.key] = after  # the agent's own name of the model
        return result

    async def set_option(self, key: str, value: OptionValue) -> Mapping[str, Any]:
        """Set a config option for a client.

        Returns:
            The agent's result.

        Raises:
            Error: the agent refuses it, or does not respond.
        """
        setting = reported_settings.setting_of(self.reported, key)
        params = option_params(key, value)
        step = SettingStep(setting, value, acp_methods.SET_OPTION, params)
        if (proxy := self._process.proxy) is None:
            raise agent_failed("the agent's process has ended")
        try:
            return await self._request(proxy, acp_methods.SET_OPTION, step)
        except ConnectionError:
            raise agent_failed("the agent's process has ended") from None

    # Reports of the agent.

    def begin_acpx_change(self) -> None:
        """Note that acpx is about to send the agent a request that changes a setting."""
        self.results.clear()
        self.has_refused = False
        self._mode_was_reported = False

    def session_opened(self, result: Mapping[str, Any]) -> None:
        """A process has opened the conversation, and reported its settings in *result*."""
        self._former = self.reported
        self.reported = self._initial = reported_settings.with_session_result(self.reported, result)
        self._restored.clear()

    def request_succeeded(
        self, method: str, params: Mapping[str, Any], result: dict[str, Any]
    ) -> None:
        """The agent carried out ``initialize``, or a request of acpx that changes a setting."""
        self.results[method] = result
        if method == "initialize":
            self.reported = msgspec.structs.replace(
                self.reported,
                capabilities=result.get("agentCapabilities"),
                auth_methods=result.get("authMethods"),
                steering=steering.is_supported(result),
            )
        else:
            setting, value = requested_setting(self.reported, method, params)
            self._note_set(setting, value, method, params, result)

    def _note_set(
        self,
        setting: str,
        value: OptionValue,
        method: str,
        params: Mapping[str, Any],
        result: Mapping[str, Any],
    ) -> None:
        """Note that the agent set a setting. A mode that it reported itself takes precedence."""
        if method != acp_methods.SET_MODE or not self._mode_was_reported:
            self.reported = reported_settings.with_result(
                self.reported, self._former, method, params, result
            )
        after = reported_settings.current_value(self.reported, setting)
        was_in_force = value in (
            self._in_force.get(setting),
            reported_settings.current_value(self._former, setting),
        )
        if after != value:
            return
        self._in_force[setting] = value
        was_lost = reported_settings.current_value(self._initial, setting) != value
        is_news = setting not in self._restored and self._is_wanted(setting, value)
        if was_in_force and was_lost and is_news:
            self._restored.add(setting)
            self._binding.observer.setting_restored(setting, value)

    def _is_wanted(self, setting: str, value: OptionValue) -> bool:
        wanted = self._binding.observer.wanted
        if setting in ("mode", "model"):
            return value == (wanted.mode if setting == "mode" else wanted.model)
        return wanted.config_options.get(setting) == value

    def note_update(self, update: Any, kind: Any, *, replayed: bool) -> None:
        """Note a ``session/update`` of that *kind*, if it reports settings."""
        after = reported_settings.with_update(self.reported, self._former, kind, update)
        if after is self.reported:
            return
        before, self.reported = self.reported, after
        if kind == "current_mode_update":
            self._mode_was_reported = True
        # A change that a client or the server asked for is not the agent's own.
        if not (replayed or self._applying is not None or self.acpx_changes.locked()):
            self._note_own_change(before, after)

    def _note_own_change(self, before: AgentSettings, after: AgentSettings) -> None:
        mode = self._binding.observer.wanted.mode
        if mode is not None and mode == reported_settings.current_value(before, "mode"):
            self._in_force["mode"] = mode
            if mode != reported_settings.current_value(after, "mode"):  # the server may restore it
                self._initial = after
                self._restored.discard("mode")
        self._binding.observer.settings_changed(before, after)
