"""The interfaces between a session and its agent, independent of how the agent is run.

A :class:`Backend` makes one :class:`Agent` for each session. The agent reports to the session
through an :class:`AgentObserver`, by plain function calls in the order of the agent's output, so
that the log keeps that order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from ..errors import Error, ErrorCode
from ..sandbox.sandbox import Sandbox
from ..validation import OptionValue
from .agent_settings import NO_SETTINGS, AgentSettings
from .agent_state import AgentState
from .parameters import NO_PARAMETERS, AgentParameters
from .prompt_handle import PromptHandle
from .reloading import ReloadableBackend
from .steering import SteerOutcome
from .subagents import Subagent
from .traits import AgentTraits

Conversation = Literal["fresh", "kept"]
"""Whether the agent's process began a new conversation, or has kept the session's one."""

EnvironOf = Callable[[str], Mapping[str, str]]
"""Returns the variables that the agents of an app get, by the app's name."""


def no_environ(_: str) -> Mapping[str, str]:
    return {}


class AgentInfo(msgspec.Struct, frozen=True):
    """An agent that clients can choose by name.

    Attributes:
        install: a command that installs it, or an instruction; None if it is installed.
    """

    name: str
    installed: bool
    install: str | None = None


class AgentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The agent that a session needs.

    Attributes:
        key: the session's id, which is also acpx's session key.
        system: replaces the agent's own system prompt; ``{"append": …}`` adds to it.
        permission: the session's permission policy, for a backend that cannot ask.
        preface: the system prompt, if the agent has no parameter for it; it precedes the first
            prompt of the conversation.
        owner: the app that the agent works for.
        parameters: what else the agent gets when it is started, and opens its conversation.
        elicitation: the modes of ``elicitation/create`` that the session's clients can show:
            ``form``, ``url``. The agent learns them when its process starts.
        client_capabilities: other capabilities of the session's clients: ``plan``, ``subagents``.
        repository: the git repository that *cwd* is a worktree of.
    """

    key: str
    agent: str
    cwd: str
    permission: str
    model: str | None = None
    system: str | Mapping[str, str] | None = None
    preface: str | None = None
    owner: str = ""
    parameters: AgentParameters = NO_PARAMETERS
    elicitation: tuple[str, ...] = ()
    repository: str | None = None
    client_capabilities: tuple[str, ...] = ()

    @property
    def directories(self) -> tuple[str, ...]:
        """The further folders that the agent may change."""
        return tuple(self.parameters.additional_directories)

    @property
    def client_environ(self) -> Mapping[str, str]:
        """The variables that the session's client chose."""
        return self.parameters.environ


class WantedSettings(msgspec.Struct, frozen=True):
    """The settings that the agent must have before a prompt reaches it. None stands for any.

    Attributes:
        mode_is_optional: the server chose the mode; an agent that does not offer it keeps its own.
        model_may_be_unlisted: the agent may accept a model that it does not list.
    """

    model: str | None = None
    mode: str | None = None
    config_options: Mapping[str, OptionValue] = msgspec.field(default_factory=dict)
    mode_is_optional: bool = False
    model_may_be_unlisted: bool = False

    @property
    def is_empty(self) -> bool:
        return self.model is None and self.mode is None and not self.config_options


class AgentObserver:
    """Receives the reports of an agent. A session implements it.

    By default a method ignores the report.

    Attributes:
        needs_preface: the agent's conversation began with a command, and lacks the preface.
    """

    needs_preface: bool = False

    @property
    def wanted(self) -> WantedSettings:
        """The settings that the agent must have before it gets a prompt; any by default."""
        return WantedSettings()

    def setting_restored(self, setting: str, value: OptionValue) -> None:
        """The server restored a setting that a new process of the agent did not have."""

    def settings_changed(self, before: AgentSettings, after: AgentSettings) -> None:
        """The agent changed a setting by itself."""

    def info_updated(self, update: Mapping[str, Any]) -> None:
        """A ``session_info_update``, parsed; its notification follows."""

    def usage_updated(self, update: Mapping[str, Any], *, replayed: bool) -> None:
        """A ``usage_update``, parsed; its notification follows, unless it is *replayed*."""

    def tool_call_updated(self, update: Mapping[str, Any]) -> None:
        """A ``tool_call`` or ``tool_call_update``, parsed; its notification follows."""

    def prompt_sent(self, conversation: Conversation) -> None:
        """The prompt was written to the agent's stdin."""

    def notification_received(self, message: bytes, subagent: Subagent | None = None) -> None:
        """A notification, as the agent wrote it: one line of JSON without its end."""

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None:
        """The response that ends the turn, raw and parsed."""

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        """The agent requested a permission; respond with :meth:`Agent.answer_permission`."""

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None:
        """The agent requested a permission, and the backend applied the session's policy."""

    def elicitation_requested(self, raw_id: Any, params: Any) -> None:
        """The agent asked a question; respond with :meth:`Agent.answer_elicitation`."""

    def conversation_forked(self) -> None:
        """The agent has begun with a fork; see :meth:`Backend.fork_later`."""

    def request_withdrawn(self, raw_id: Any) -> None:
        """The agent no longer needs the response to one of its requests."""

    def agent_ended(self) -> None:
        """The agent's process has ended, whether it was asked to or not."""


GRACE_SECS = 4.0
"""The seconds that an agent has to end by itself, if no other session waits for its slot."""
URGENT_GRACE_SECS = 1.0
"""The seconds that it has if another session waits, which a stuck agent must not delay."""


class AgentTimeouts(msgspec.Struct):
    """The times that the agents of a backend have, in seconds.

    Attributes:
        close: to end by itself, at most.
        setting: to respond to a change of a setting.
    """

    close: float = GRACE_SECS
    setting: float = 20.0


class Agent(Protocol):
    """One session's agent. Its process is started when it is needed."""

    @property
    def state(self) -> AgentState: ...

    @property
    def settings(self) -> AgentSettings: ...

    @property
    def is_outdated(self) -> bool:
        """Whether the process was started for another specification than the present one."""

    def rebind(self, spec: AgentSpec, observer: AgentObserver) -> None:
        """Serve another session from now on, or the same one with another specification."""

    async def start(self) -> None:
        """Start the agent of a new session and apply the wanted settings before the first prompt.

        Raises:
            Error: the agent does not start, or refuses a setting.
        """

    def prompt(self, blocks: bytes, *, is_held: bool = False) -> PromptHandle:
        """Send a prompt (JSON of its content blocks) to the agent, whose process may have to start.

        Args:
            is_held: the prompt may be passed to a running process's proxy. The agent receives it,
                and a stopped agent is started, only after :meth:`PromptHandle.admit`.
        """

    @property
    def can_steer(self) -> bool:
        """Whether the agent is working on a prompt and may accept another one for its turn."""

    def steer(self, blocks: bytes, decide: Callable[[SteerOutcome], None]) -> str | None:
        """Add a prompt to the turn that the agent is working on. Return the id of the request.

        Args:
            decide: is called once, with the outcome, in the order of the agent's output.
        """

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None: ...

    def answer_elicitation(self, raw_id: Any, outcome: Mapping[str, Any]) -> None: ...

    def cancel_subagent(self, session_id: str) -> None:
        """Ask the agent to end the work of a subagent, by the id of the subagent's session."""

    def delete_conversation(self) -> None:
        """Ask a running agent to delete its conversation, if it can. Nothing waits for that."""

    @property
    def will_fork(self) -> bool:
        """Whether the agent, when it is started, begins with a fork of another conversation."""

    async def set_mode(self, mode: str) -> Mapping[str, Any]:
        """Change the agent's mode.

        Returns:
            The agent's own result, as it is for a change of the model or of an option.

        Raises:
            Error: the agent refuses, or cannot be asked.
        """

    async def set_model(self, model: str) -> Mapping[str, Any]: ...

    async def set_config_option(self, key: str, value: OptionValue) -> Mapping[str, Any]: ...

    async def kill(self) -> None:
        """Kill the process and all processes that it started."""

    async def hibernate(self, grace: float = GRACE_SECS) -> None:
        """End the process and all processes that it started. The conversation can be resumed.

        Args:
            grace: seconds that the process has to end by itself.
        """


class Backend(ReloadableBackend, Protocol):
    """A way to run agents.

    Attributes:
        versions: those of ``acpx`` and ``node``, once the backend is started.
        can_ask: requests for permission and for input come to the session; else acpx decides them.
        timeouts: those of all agents; a change applies to running agents, too.
        unsupported_options: the fields of :class:`AgentParameters` that have no effect.
        environ_of: returns the variables of an app, for the next start of each of its agents.
        sandbox: restricts every process of an agent.
    """

    can_ask: bool
    unsupported_options: frozenset[str]
    environ_of: EnvironOf
    timeouts: AgentTimeouts
    sandbox: Sandbox

    @property
    def versions(self) -> Mapping[str, str]: ...

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """End every process that was started."""

    async def agents(self, only: str | None = None) -> list[AgentInfo]:
        """Return all agents that clients can choose, or *only* the one of that name."""

    async def capabilities(self, name: str) -> Mapping[str, Any]:
        """Return an agent's ``agentCapabilities``; empty if they are not available.

        The first call may start the agent, which takes a while.
        """

    def traits(self, name: str) -> AgentTraits:
        """Return what the server knows about the agent of that name."""

    def agent(
        self, spec: AgentSpec, observer: AgentObserver, settings: AgentSettings = NO_SETTINGS
    ) -> Agent:
        """Make a session's agent.

        Args:
            settings: the settings that the session's agent reported when it last ran.
        """

    async def fork(self, agent: Agent, key: str, cwd: str) -> bool:
        """Fork a running agent's conversation for the session *key*. False if it cannot."""

    async def fork_later(self, source: str, agent: Agent) -> bool:
        """Let a new session's *agent* begin with a fork of the conversation of session *source*.

        The agent of that session does not run. False if the conversation is not known.
        """

    async def forget(self, key: str) -> None:
        """Delete acpx's record of a session that has no process any more."""


AGENT_GONE = "the agent's process ended in the middle of the turn"


def agent_failed(message: str) -> Error:
    return Error(ErrorCode.AGENT_FAILED, message)


def agent_unavailable(message: str) -> Error:
    return Error(ErrorCode.AGENT_UNAVAILABLE, message)


def unusable_folder(reason: str) -> Error:
    """The error of a session whose folder cannot be used any more."""
    return Error(ErrorCode.BAD_REQUEST, f"cwd: {reason}")
