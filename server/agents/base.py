"""What a session knows of its agent, whichever way the agent is run.

A :class:`Backend` makes one :class:`Agent` a session; the agent tells the
session what its process says through a :class:`AgentObserver`. Its calls are
plain functions, made in the order of the agent's output, so that the log has
that order too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from ..codec import dumps
from ..errors import Error, ErrorCode
from ..states import StateMachine, Transitions
from .traits import AgentTraits

Context = Literal["fresh", "kept"]
"""Whether the agent process has the session's conversation, or begins a new one."""


@dataclasses.dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent that can be asked for by name.

    ``install`` says what would install it, where it is not installed.
    """

    name: str
    installed: bool
    install: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class AgentSpec:
    """Which agent a session wants; ``key`` is the session's id, and acpx's session key.

    ``system`` replaces the agent's own system prompt; ``{"append": …}`` adds to it. An agent that
    takes none gets it as ``preface``, a text in front of the first prompt of its conversation.
    ``permission`` is the session's; it matters to a backend that cannot ask. ``owner`` is the app
    that the agent works for.
    """

    key: str
    agent: str
    cwd: str
    model: str | None
    system: str | Mapping[str, str] | None
    permission: str
    preface: str | None = None
    owner: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """The settings in which the agent must be before a prompt reaches it; None: any.

    Attributes:
        mode_is_optional: the server chose the mode; an agent that has no such mode needs none.
        model_may_be_unlisted: the agent may take a model that it does not list.
    """

    model: str | None = None
    mode: str | None = None
    config_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mode_is_optional: bool = False
    model_may_be_unlisted: bool = False

    @property
    def is_empty(self) -> bool:
        return self.model is None and self.mode is None and not self.config_options


REPORT_BYTES = 64 << 10
"""The limit, as JSON, of each field of :class:`AgentSettings`."""


def bounded(value: Any, limit: int = REPORT_BYTES) -> Any:
    """*value*, which an agent wrote, with no more than *limit* bytes as JSON.

    Of a long list or object the first items are kept; what is too long and neither is None.
    """
    try:
        size = len(dumps(value))
    except (TypeError, ValueError, RecursionError):  # nested too deeply
        return None
    if size <= limit:
        return value
    left = limit - 2
    if isinstance(value, list):
        items: list[Any] = []
        for item in value:
            left -= len(dumps(item)) + 1
            if left < 0:
                break
            items.append(item)
        return items
    if not isinstance(value, dict):
        return None
    fields: dict[str, Any] = {}
    for name, field in value.items():
        left -= len(dumps(name)) + 2
        if left < 4:
            break
        fields[name] = bounded(field, left)
        left -= len(dumps(fields[name]))
    return fields


MAX_OPTIONS = 64
"""How many config options of an agent count."""
CHOICES = {"modes": "availableModes", "models": "availableModels"}


def bounded_offer(offer: Any, key: str, limit: int = REPORT_BYTES) -> Any:
    """*offer* with no more than *limit* bytes as JSON, and a mark if it had more.

    Its list of choices, under *key*, is cut short before all else.
    """
    kept = bounded(offer, limit)
    if not isinstance(offer, dict) or kept in (offer, None):
        return kept
    rest = bounded({name: value for name, value in offer.items() if name != key}, limit // 2)
    meta = rest.get("_meta")
    mark = {"clawdforge": {"shortened": True}}
    rest["_meta"] = {**meta, **mark} if isinstance(meta, dict) else mark
    choices = bounded(offer.get(key), limit // 2 - 100)
    return {**rest, key: choices if isinstance(choices, list) else []}


def is_shortened(offer: Any) -> bool:
    """Whether :func:`bounded_offer` has cut *offer* short."""
    meta = offer.get("_meta") if isinstance(offer, dict) else None
    own = meta.get("clawdforge") if isinstance(meta, dict) else None
    return isinstance(own, dict) and own.get("shortened") is True


def bounded_options(options: Any, limit: int = REPORT_BYTES) -> Any:
    """Config options with no more than *limit* bytes as JSON: the long ones are cut short."""
    if not isinstance(options, list) or bounded(options, limit) == options:
        return bounded(options, limit)
    counted = options[:MAX_OPTIONS]
    kept = [bounded_offer(option, "options", limit // len(counted) - 1) for option in counted]
    left = limit - len(dumps(kept))
    for n, option in enumerate(counted):  # what the short ones have left over
        longer = bounded_offer(option, "options", left + len(dumps(kept[n])))
        left += len(dumps(kept[n])) - len(dumps(longer))
        kept[n] = longer
    return kept


REPORTED = ("modes", "models", "config_options", "commands")


@dataclasses.dataclass(frozen=True, slots=True)
class AgentSettings:
    """The settings and abilities that an agent reported last, in ACP's shapes.

    A field is None if the agent has not reported it.
    """

    capabilities: Any = None
    modes: Any = None
    models: Any = None
    config_options: Any = None
    commands: Any = None
    auth_methods: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in CHOICES:
                value = bounded_offer(value, CHOICES[field.name])
            elif field.name == "config_options":
                value = bounded_options(value)
            else:
                value = bounded(value)
            object.__setattr__(self, field.name, value)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> AgentSettings:
        """Restore settings from what :meth:`to_dict` returned."""
        return cls(**{name: stored.get(name) for name in REPORTED})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that clients see and the database keeps."""
        return {name: getattr(self, name) for name in REPORTED}


NO_SETTINGS = AgentSettings()

Presence = Literal["live", "waking", "prewarmed", "hibernated"]
"""Whether a session's agent runs: what ``agent_state`` tells."""


class AgentObserver(Protocol):
    """The session, as its agent sees it.

    Attributes:
        owes_preface: the agent's conversation began with a command, and lacks the preface.
    """

    owes_preface: bool

    @property
    def wanted(self) -> Wanted:
        """The settings that the agent must be in before it gets a prompt."""

    def setting_restored(self, setting: str, value: str) -> None:
        """The agent has been put back into a setting, which a new process of it was not in."""

    def settings_changed(self, before: AgentSettings, after: AgentSettings) -> None:
        """The agent has changed a setting by itself."""

    def tool_call_updated(self, update: Mapping[str, Any]) -> None:
        """A ``tool_call`` or ``tool_call_update``, parsed; its notification follows."""

    def prompt_sent(self, context: Context) -> None:
        """The prompt is on its way into the agent's process."""

    def notification_received(self, message: bytes) -> None:
        """A notification, as the agent wrote it: one line of JSON without its end."""

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None:
        """The response that ends the turn, raw and parsed."""

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        """``session/request_permission``; answer with :meth:`Agent.answer_permission`."""

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None:
        """The same, where the backend has answered it already, by the session's permission."""

    def agent_ended(self) -> None:
        """The agent's process has ended, whether it was asked to or not."""


class PromptState(enum.Enum):
    """The position of a prompt on its way to the agent."""

    HELD = "held"
    """The prompt is being stored. acpx may have it; the agent must not receive it."""
    ADMITTED = "admitted"
    """The prompt is stored and may be written to the agent's stdin."""
    SENT = "sent"
    """The agent has received the prompt."""
    WITHDRAWN = "withdrawn"
    """The prompt was cancelled or failed before the agent received it. It never will."""
    DONE = "done"
    """The turn is over."""


PROMPT_TRANSITIONS: Transitions[PromptState] = {
    PromptState.HELD: {PromptState.ADMITTED, PromptState.WITHDRAWN},
    PromptState.ADMITTED: {PromptState.SENT, PromptState.WITHDRAWN},
    PromptState.SENT: {PromptState.DONE},
    PromptState.WITHDRAWN: set(),
    PromptState.DONE: set(),
}


class PromptHandle:
    """One prompt on its way to the agent: the only object that decides whether it may get there.

    The agent creates it in :meth:`Agent.prompt`, marks it as sent and finishes it. The session
    admits it once it is stored, cancels it, and awaits :attr:`done`.

    Args:
        is_held: the prompt must not reach the agent before :meth:`admit` is called.
        cancel_sent: asks the agent to end the turn; called if the agent has received the prompt.

    Attributes:
        blocks: JSON of the content blocks; empty once the agent has received them.
        admitted: done once the prompt may be sent, or was withdrawn.
        done: done when the turn is over. The response itself has gone to
            :meth:`AgentObserver.response_received` by then. Raises :class:`Error` if there is no
            response: the agent did not start, or its process ended.
    """

    def __init__(
        self, blocks: bytes, *, is_held: bool, cancel_sent: Callable[[], None] = lambda: None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.blocks = blocks
        self.admitted: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self._cancel_sent = cancel_sent
        self._state = StateMachine(PROMPT_TRANSITIONS, PromptState.HELD)
        if not is_held:
            self.admit()

    @property
    def state(self) -> PromptState:
        return self._state.current

    @property
    def is_sent(self) -> bool:
        """Whether the agent has received the prompt."""
        return self.state in (PromptState.SENT, PromptState.DONE)

    @property
    def is_withdrawn(self) -> bool:
        """Whether the agent will never receive the prompt."""
        return self.state is PromptState.WITHDRAWN

    def admit(self) -> None:
        """Allow the prompt to reach the agent, unless it was withdrawn."""
        if self.state is PromptState.HELD:
            self._state.move_to(PromptState.ADMITTED)
            self._resolve_admitted()

    def mark_sent(self) -> None:
        """Note that the prompt was written to the agent's stdin."""
        self._state.move_to(PromptState.SENT)
        self.blocks = b""

    def cancel(self) -> None:
        """Withdraw the prompt if the agent has not received it; else ask the agent to end the turn.

        A turn that is over stays as it is.
        """
        if self.state is PromptState.SENT:
            self._cancel_sent()
        else:
            self.finish()

    def finish(self, error: Error | None = None) -> None:
        """End the turn, once: with the agent's response, or with *error* if there is none."""
        if self.done.done():
            return
        self._state.move_to(PromptState.DONE if self.is_sent else PromptState.WITHDRAWN)
        self._resolve_admitted()
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def _resolve_admitted(self) -> None:
        if not self.admitted.done():  # the server may have stopped its waiter, and so the future
            self.admitted.set_result(None)


GRACE_SECS = 4.0
"""What an agent has to end in by itself, if nobody waits for its slot."""
URGENT_GRACE_SECS = 1.0
"""The same if somebody does: an agent that ignores the end of its stdin must delay no other app."""


class Agent(Protocol):
    """One session's agent: an id at acpx, and a process while there is one."""

    @property
    def is_live(self) -> bool:
        """A process is running or starting."""

    @property
    def is_starting(self) -> bool:
        """A process is starting, or loads its conversation."""

    @property
    def settings(self) -> AgentSettings: ...

    def rebind(self, spec: AgentSpec, observer: AgentObserver) -> None:
        """Serve another *observer* from now on, with another permission in *spec* perhaps."""

    async def start(self) -> None:
        """Start a new session's agent and set what its observer wants.

        So its first prompt need not wait for that.

        Raises:
            Error: it does not start, or refuses a setting.
        """

    def prompt(self, blocks: bytes, *, is_held: bool = False) -> PromptHandle:
        """Send a prompt (JSON of its content blocks) to the agent, whose process may have to start.

        Args:
            is_held: the prompt may start on its way, as far as the agent's process. It reaches
                the agent after :meth:`PromptHandle.admit`. A process is not started before that.
        """

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None: ...

    async def set_mode(self, mode: str) -> Mapping[str, Any]:
        """Change the agent's mode.

        Returns:
            The agent's own result; so do the next two.

        Raises:
            Error: the agent refuses, or cannot be asked.
        """

    async def set_model(self, model: str) -> Mapping[str, Any]: ...

    async def set_config_option(self, key: str, value: str) -> Mapping[str, Any]: ...

    async def kill(self) -> None:
        """End the process and all that it started, now."""

    async def hibernate(self, grace: float = GRACE_SECS) -> None:
        """End the process and all that it started; the conversation can be resumed.

        Args:
            grace: seconds that it has to end by itself.
        """


class Backend(Protocol):
    """A way to run agents.

    Attributes:
        versions: of ``acpx`` and ``node``, once it is started.
        can_ask: permission requests come to the session; else acpx decides them.
        can_restore: the settings that a observer wants are set before each prompt; else a prompt
            fails if the agent cannot be in them.
    """

    can_ask: bool
    can_restore: bool

    @property
    def versions(self) -> Mapping[str, str]: ...

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """End every process that was started."""

    async def agents(self, only: str | None = None) -> list[AgentInfo]:
        """All agents that can be asked for by name, or *only* the one of that name."""

    async def capabilities(self, name: str) -> Mapping[str, Any]:
        """An agent's ``agentCapabilities``, empty where they cannot be had.

        The first time the agent may be started for it, which takes a while.
        """

    def traits(self, name: str) -> AgentTraits:
        """What is known of the agent of that name."""

    def agent(
        self, spec: AgentSpec, observer: AgentObserver, settings: AgentSettings = NO_SETTINGS
    ) -> Agent:
        """Make a session's agent.

        Args:
            settings: what the session's agent reported when it last ran.
        """

    async def forget(self, key: str) -> None:
        """Delete what acpx keeps of a session that has no process any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class MessageLimits:
    """Limits on what agents write, in bytes.

    Attributes:
        each: of one message. A larger one ends its agent.
        per_app: of the incomplete messages of all agents of one app together.
    """

    each: int
    per_app: int


class Backpressure(Protocol):
    """Whether what agents say can be taken at the moment."""

    @property
    def has_room(self) -> bool: ...

    async def room(self) -> None: ...


AGENT_GONE = "the agent's process ended in the middle of the turn"


def agent_failed(message: str) -> Error:
    return Error(ErrorCode.AGENT_FAILED, message)


def agent_unavailable(message: str) -> Error:
    return Error(ErrorCode.AGENT_UNAVAILABLE, message)


def real_folder(cwd: str, data_dir: Path) -> str:
    """The folder that *cwd* was when the session was made, without links.

    A client's folder was resolved then. The data folder's own path is the operator's, and may be
    a link.
    """
    try:
        return str(data_dir.resolve() / Path(cwd).relative_to(data_dir))
    except ValueError:
        return cwd


def misplaced() -> Error:
    return Error(
        ErrorCode.BAD_REQUEST,
        "cwd: the session's folder was replaced by a link, or is gone: the agent is not started",
    )
