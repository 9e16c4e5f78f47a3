"""One session's agent through the acpx host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...reload.state import Inherited, PassedDescriptors
from ...tasks import Semaphores, Tasks
from ...validation import OptionValue
from ..agent_settings import AgentSettings
from ..agent_state import AgentState
from ..base import GRACE_SECS, AgentObserver, AgentSpec, AgentTimeouts
from ..login_states import LoginStates
from ..prompt_handle import PromptHandle
from .acpx_session import AcpxSession
from .agent_messages import AgentMessages
from .agent_process import AgentProcess
from .binding import Binding
from .fork import fork_conversation
from .handover import StdioHandover
from .process import HostProcess
from .prompts import PromptQueue, PromptSender
from .proxy_events import LoadMeta, ProxyEvents
from .proxy_state import ProxyState
from .setting_changes import SettingChanges
from .settings_sync import SettingsSync, SyncState


class HostAgentState(msgspec.Struct, kw_only=True):
    """An agent with a process and a conversation, for the next version of the server.

    Attributes:
        call: the id of acpx's call for the prompt that the agent works on, if any.
    """

    proxy: ProxyState
    elicitation: tuple[str, ...] | None
    settings: SyncState
    is_prompting: bool
    call: int | None


class HostAgent(AgentMessages):
    """One session's agent; see :class:`base.Agent`.

    Its parts are the agent's process, the session in the acpx host, the settings, and the prompts.
    The stdio proxy of the process reports to :class:`ProxyEvents`.

    Args:
        settings: the settings that an earlier process of the session's agent reported.
        starts, closes: limit how many agents of one app start, and end, at once.
        logins: what the agents report about logins.
        load_meta: returns the ``_meta`` with which an agent must load its conversation.
    """

    def __init__(
        self,
        host: HostProcess,
        handover: StdioHandover,
        tasks: Tasks,
        spec: AgentSpec,
        observer: AgentObserver,
        settings: AgentSettings,
        *,
        starts: Semaphores,
        closes: Semaphores,
        timeouts: AgentTimeouts,
        load_meta: LoadMeta,
        logins: LoginStates,
    ) -> None:
        self._host, self._handover = host, handover
        binding = self._binding = Binding(spec, observer, logins)
        process = self._process = AgentProcess(binding, host, handover, tasks)
        sync = self._sync = SettingsSync(binding, process, tasks, timeouts, settings)
        queue = self._queue = PromptQueue(binding, process, sync)
        self._events = ProxyEvents(binding, process, sync, queue, tasks, load_meta)
        session = self._session = AcpxSession(
            host,
            handover,
            binding,
            process,
            self._events,
            starts=starts,
            closes=closes,
            timeouts=timeouts,
            auth_methods=lambda: sync.reported.auth_methods,
        )
        changes = self._changes = SettingChanges(
            binding, process, sync, session, tasks, has_prompt=lambda: queue.current is not None
        )
        self._sender = PromptSender(binding, process, queue, session, changes, tasks)

    @property
    def spec(self) -> AgentSpec:
        return self._binding.spec

    @property
    def state(self) -> AgentState:
        return self._process.state

    @property
    def settings(self) -> AgentSettings:
        return self._sync.reported

    @property
    def is_prompt_held(self) -> bool:
        """Whether the proxy holds a prompt of acpx that the agent must not receive yet."""
        return self._process.proxy is not None and self._process.proxy.is_prompt_held

    @property
    def is_outdated(self) -> bool:
        proxy = self._process.proxy
        has_sandbox = proxy is None or self._handover.has_sandbox_of_app(proxy, self.spec)
        return not has_sandbox or self._process.elicitation not in (None, self.spec.elicitation)

    def rebind(self, spec: AgentSpec, observer: AgentObserver) -> None:
        before = self._binding.spec
        self._binding.spec, self._binding.observer = spec, observer
        sandbox = self._process.proxy.sandbox if self._process.proxy is not None else None
        if sandbox is not None and sandbox.groups is not None and before.owner != spec.owner:
            sandbox.groups.move(before.key, before.owner, spec.owner)

    async def start(self) -> None:
        await self._session.open()
        if self._process.has_conversation and (failure := await self._sync.apply()) is not None:
            raise failure

    def prompt(self, blocks: bytes, *, is_held: bool = False) -> PromptHandle:
        return self._sender.start(blocks, is_held=is_held)

    @property
    def will_fork(self) -> bool:
        return self._events.fork_source is not None

    def fork_from(self, conversation: str) -> None:
        """Begin with a fork of the agent's own session of that id."""
        self._events.fork_source = conversation

    async def set_mode(self, mode: str) -> Mapping[str, Any]:
        return await self._changes.change("set_mode", mode=mode)

    async def set_model(self, model: str) -> Mapping[str, Any]:
        return await self._changes.change("set_model", model=model)

    async def set_config_option(self, key: str, value: OptionValue) -> Mapping[str, Any]:
        if isinstance(value, bool):
            return await self._changes.set_boolean(key, value)
        return await self._changes.change("set_config_option", option=key, value=value)

    async def fork_to(self, key: str, cwd: str) -> bool:
        return await fork_conversation(self._process, self._session, key, cwd)

    async def kill(self) -> None:
        await self._process.kill()

    async def hibernate(self, grace: float = GRACE_SECS) -> None:
        await self._session.close(grace)

    # A reload of the server.

    def pause(self) -> None:
        """Leave the agent's output in its pipes. Kill a process without a conversation."""
        if not self._process.has_conversation:
            self._process.kill_now()
        elif self._process.proxy is not None:
            self._process.proxy.pause()

    def resume(self) -> None:
        if self._process.proxy is not None:
            self._process.proxy.resume()

    def pack(self, passed: PassedDescriptors) -> HostAgentState | None:
        """Return the state for the next version; None without a process in a conversation."""
        proxy, prompt = self._process.proxy, self._queue.current
        if proxy is None or not self._process.has_conversation:
            return None
        is_prompting = self.state is AgentState.PROMPTING
        has_sandbox = self._handover.has_sandbox_of_app(proxy, self.spec)
        call = prompt.call if prompt is not None and is_prompting else None
        return HostAgentState(
            proxy=proxy.pack(passed, has_sandbox=has_sandbox),
            elicitation=self._process.elicitation,
            settings=self._sync.pack(),
            is_prompting=is_prompting,
            call=self._host.calls.id_of(call) if call is not None else None,
        )

    async def restore(self, state: HostAgentState, inherited: Inherited) -> PromptHandle | None:
        """Connect to the process of an earlier version of the server, which is paused.

        Returns:
            The prompt that it works on, if any.
        """
        proxy = await self._handover.restore_proxy(self._events, state.proxy, inherited)
        self._process.restore(proxy, state.elicitation, is_prompting=state.is_prompting)
        self._session.restore()
        self._sync.restore(state.settings)
        if not state.is_prompting:
            return None
        return self._sender.restore(self._host.calls.result_of(state.call))
