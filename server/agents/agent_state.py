"""The states of a session's agent, and those that clients see."""

from __future__ import annotations

import enum
from typing import Literal

from ..states import Transitions

Presence = Literal["live", "waking", "prewarmed", "hibernated"]
"""The value of ``agent_state``, in which clients see the state of a session's agent."""


class AgentState(enum.Enum):
    """The state of one session's agent."""

    STOPPED = "stopped"
    """No process runs, and none is being started."""
    STARTING = "starting"
    """A process is being started, or opens the session's conversation."""
    READY = "ready"
    """The process has the conversation, and no prompt."""
    PROMPTING = "prompting"
    """The process has received a prompt and has not responded yet."""
    STOPPING = "stopping"
    """The process was asked to end, or was killed, and has not ended yet."""

    @property
    def is_live(self) -> bool:
        """Whether a process runs or is being started."""
        return self is not AgentState.STOPPED


AGENT_TRANSITIONS: Transitions[AgentState] = {
    AgentState.STOPPED: {AgentState.STARTING},
    AgentState.STARTING: {
        AgentState.READY,
        AgentState.PROMPTING,  # an agent may respond to session/load without a result
        AgentState.STOPPING,
        AgentState.STOPPED,
    },
    # To STARTING: the process ended or was replaced, and acpx may be starting another.
    AgentState.READY: {
        AgentState.PROMPTING,
        AgentState.STARTING,
        AgentState.STOPPING,
        AgentState.STOPPED,
    },
    AgentState.PROMPTING: {
        AgentState.READY,
        AgentState.STARTING,
        AgentState.STOPPING,
        AgentState.STOPPED,
    },
    AgentState.STOPPING: {AgentState.STARTING, AgentState.STOPPED},
}
