"""The shapes of what the server sends. Servers may add fields to each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Json = dict[str, Any]
Prompt = str | Sequence[Json]
"""Text, or ACP content blocks."""
Permission = Literal["approve-all", "approve-reads", "deny-all", "ask"]


class Usage(TypedDict, total=False):
    """Tokens and costs, as far as the agent has reported them."""

    input_tokens: int
    output_tokens: int
    cached_read_tokens: int
    cached_write_tokens: int
    thought_tokens: int
    cost: Json
    context: Json


class State(TypedDict, total=False):
    """The state of a session. Times are Unix seconds."""

    session_id: str
    agent: str
    model: str | None
    title: str | None
    meta: Json
    permission: Permission
    elicitation: Literal["off", "ask"]
    cwd: str
    state: Literal["idle", "running", "closed"]
    agent_state: Literal["live", "waking", "prewarmed", "hibernated"]
    created_at: int
    last_turn_at: int | None
    closed_at: int | None
    close_reason: str | None
    turn_count: int
    turn_index: int | None
    head: int
    unread: int
    queued: list[Json]
    pending_permissions: list[Json]
    pending_elicitations: list[Json]
    usage: Usage
    mode: str | None
    asks: bool | None
    forked_from: Json | None


class Entry(TypedDict, total=False):
    """An entry of a session's log. ``type`` decides which of the other fields it has."""

    type: str
    seq: int
    ts: int
    turn_index: int
    event: Json
    subagent: Json
    prompt: list[Json]
    id: str | None
    context: Literal["new", "kept", "told", "lost"]
    stop_reason: str
    duration_ms: int
    error: Json | None
    usage: Usage
    withdrawn: bool
    request_id: str
    request: Json
    expires_at: int
    outcome: Json
    by: str
    reason: str
    notice: str


@dataclass(frozen=True, slots=True)
class TurnResult:
    """The result of a turn.

    Attributes:
        text: everything that the agent said.
        stop_reason: ACP's, for example ``end_turn`` or ``cancelled``.
        usage: None if the agent has reported nothing.
        withdrawn: whether the turn was cancelled before the agent received its prompt.
    """

    turn_index: int
    text: str
    stop_reason: str
    duration_ms: int
    usage: Usage | None
    withdrawn: bool


@dataclass(frozen=True, slots=True)
class RunResult:
    """The response of a run. ``result`` is JSON if the answer was JSON, else the text.

    ``usage`` and ``session_id`` are None unless ``include`` has asked for them.
    """

    result: Any
    duration_ms: int
    stop_reason: str
    usage: Usage | None
    session_id: str | None


def text_of(entry: Entry | Json) -> str:
    """The text of an entry that is a piece of the agent's message, else an empty string."""
    event = None if "subagent" in entry else entry.get("event")
    params = event.get("params") if isinstance(event, dict) else None
    update = params.get("update") if isinstance(params, dict) else None
    if not isinstance(update, dict) or update.get("sessionUpdate") != "agent_message_chunk":
        return ""
    content = update.get("content")
    text = content.get("text") if isinstance(content, dict) else None
    return text if isinstance(text, str) else ""


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """The agent asks whether it may carry out a tool call. Return one of its answers.

    Attributes:
        options: ACP's: ``{optionId, name, kind}``.
    """

    request_id: str
    turn_index: int
    tool_call: Json
    options: list[Json]
    expires_at: int

    @property
    def title(self) -> str:
        return str(self.tool_call.get("title", ""))

    def _first(self, *kinds: str) -> str | None:
        for kind in kinds:
            for option in self.options:
                if option.get("kind") == kind:
                    return str(option["optionId"])
        return None

    def allow(self) -> str | None:
        """The option that allows this call; None, which cancels, if the agent offers none."""
        return self._first("allow_once", "allow_always")

    def allow_always(self) -> str | None:
        return self._first("allow_always", "allow_once")

    def reject(self) -> str | None:
        return self._first("reject_once", "reject_always")


@dataclass(frozen=True, slots=True)
class Question:
    """The agent asks its user for input (ACP's elicitation).

    Attributes:
        mode: ``form``, or ``url`` for a link that the user shall open.
        schema: of a form: a JSON Schema whose properties are the fields.
        problem: why the server refused the last answer, or None.
        field: the field that was refused, or None.
    """

    request_id: str
    turn_index: int
    message: str
    mode: str
    schema: Json
    url: str | None
    expires_at: int
    problem: str | None = None
    field: str | None = None


PermissionHandler = Callable[[PermissionRequest], Awaitable[str | bool | None]]
"""Returns an option's id; True to allow once, False to reject once; None to cancel."""
QuestionHandler = Callable[[Question], Awaitable[Json | bool | None]]
"""Returns the content of a form; True to accept a link; False to decline; None to cancel."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers of the agent's requests."""

    permission: PermissionHandler | None = None
    question: QuestionHandler | None = None

    def __bool__(self) -> bool:
        return self.permission is not None or self.question is not None
