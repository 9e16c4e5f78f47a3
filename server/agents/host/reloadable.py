"""The agents of the host during a reload: stopped, packed, and restored by the next version."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from ...reload.program import ReloadError
from ...reload.state import Inherited, PassedDescriptors
from ..agent_state import AgentState
from ..process import process_tree
from ..prompt_handle import PromptHandle
from ..steering import SteerOutcome
from .agent import HostAgent, HostAgentState
from .handover import HandoverState, StdioHandover
from .process import HostProcess, HostState

logger = logging.getLogger(__name__)

UNSETTLED = (AgentState.STARTING, AgentState.STOPPING)


class HostBackendState(msgspec.Struct, kw_only=True):
    """The host and its agents for the next version of the server.

    Attributes:
        agents: those in a conversation, by the keys of their sessions.
        capabilities: of the agents that were asked for them, by their names.
    """

    host: HostState
    handover: HandoverState
    agents: dict[str, HostAgentState]
    capabilities: dict[str, dict[str, Any]]


class ReloadableHost:
    """The part of the backend that survives a reload: a ``Carrier`` and a ``ReloadableBackend``.

    Args:
        inherited: the state of an earlier version of the server.
    """

    name = "host"

    def __init__(self, inherited: Inherited | None) -> None:
        self.inherited = inherited
        self.state = inherited.part(self.name, HostBackendState) if inherited is not None else None
        self._host: HostProcess
        self.handover: StdioHandover
        self.known_capabilities: dict[str, dict[str, Any]] = {}
        self.agents_by_key: WeakValueDictionary[str, HostAgent] = WeakValueDictionary()
        self._unclaimed = dict(self.state.agents) if self.state is not None else {}

    def connect(self, host: HostProcess, handover: StdioHandover) -> None:
        """Set the parts of the backend. They restore their state before they start."""
        self._host, self.handover = host, handover
        if self.state is not None and self.inherited is not None:
            host.restore(self.state.host, self.inherited)
            self.known_capabilities.update(self.state.capabilities)

    async def start_handover(self) -> None:
        if self.state is not None and self.inherited is not None:
            await self.handover.restore(self.state.handover, self.inherited)
        self.handover.start()

    # The methods of a carrier; see `reload/reloader.py`.

    def is_settled(self) -> bool:
        is_busy = any(agent.state in UNSETTLED for agent in self.agents_by_key.values())
        return self._host.is_ready and self.handover.is_idle and not is_busy

    async def freeze(self) -> None:
        if not self._host.is_ready:
            raise ReloadError("the acpx host is starting again; try again in a moment")
        for agent in self.agents_by_key.values():
            agent.pause()
        self._host.pause()
        await self.handover.stderr.pause()

    def thaw(self) -> None:
        self.handover.stderr.resume()
        self._host.resume()
        for agent in self.agents_by_key.values():
            agent.resume()

    def pack(self, passed: PassedDescriptors) -> HostBackendState:
        host = self._host.pack(passed)
        if host is None:
            raise ReloadError("the acpx host has ended; try again in a moment")
        agents = {key: agent.pack(passed) for key, agent in self.agents_by_key.items()}
        return HostBackendState(
            host=host,
            handover=self.handover.pack(passed),
            agents={key: state for key, state in agents.items() if state is not None},
            capabilities=self.known_capabilities,
        )

    def children(self) -> Sequence[int]:
        return [self._host.pids[0]] if self._host.pids is not None else []

    # For the sessions of the next version.

    def has_process(self, key: str) -> bool:
        return key in self._unclaimed

    async def restore(self, key: str) -> PromptHandle | None:
        state, agent = self._unclaimed.pop(key, None), self.agents_by_key.get(key)
        if state is None or agent is None or self.inherited is None:
            return None
        return await agent.restore(state, self.inherited)

    def restore_steer(
        self, key: str, request_id: str | None, decide: Callable[[SteerOutcome], None]
    ) -> None:
        if (agent := self.agents_by_key.get(key)) is None:
            decide(SteerOutcome.LOST)
        else:
            agent.restore_steer(request_id, decide)

    def resume(self) -> None:
        for agent in self.agents_by_key.values():
            agent.resume()

    async def end_unclaimed(self) -> None:
        for state in self._unclaimed.values():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(state.proxy.pidfd, signal.SIGKILL)
                os.killpg(state.proxy.pid, signal.SIGKILL)
        self._unclaimed.clear()
        if self.state is not None and self._host.pids is not None:
            # Processes that an agent left while the earlier version was ending.
            await asyncio.to_thread(process_tree.end_strays, *self._host.pids, self.handover.living)
