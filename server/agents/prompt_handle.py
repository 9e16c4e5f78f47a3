"""A prompt on its way to the agent, and the states of it until the turn has ended."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

from ..errors import Error
from ..states import StateMachine, Transitions


class PromptState(enum.Enum):
    """The state of a prompt."""

    HELD = "held"
    """The prompt is being stored. acpx may have it; the agent must not receive it."""
    ADMITTED = "admitted"
    """The prompt is stored and may be written to the agent's stdin."""
    SENT = "sent"
    """The agent has received the prompt."""
    WITHDRAWN = "withdrawn"
    """The prompt was cancelled or failed before the agent received it. It never will."""
    DONE = "done"
    """The turn has ended."""


PROMPT_TRANSITIONS: Transitions[PromptState] = {
    PromptState.HELD: {PromptState.ADMITTED, PromptState.WITHDRAWN},
    PromptState.ADMITTED: {PromptState.SENT, PromptState.WITHDRAWN},
    PromptState.SENT: {PromptState.DONE},
    PromptState.WITHDRAWN: set(),
    PromptState.DONE: set(),
}


class PromptHandle:
    """One prompt. This object alone decides whether the agent may receive it.

    The agent creates it in :meth:`Agent.prompt`, marks it as sent and finishes it. The session
    admits it once it is stored, cancels it, and awaits :attr:`done`.

    Args:
        is_held: the prompt must not reach the agent before :meth:`admit` is called.
        cancel_sent: asks the agent to end the turn; called if the agent has received the prompt.

    Attributes:
        blocks: JSON of the content blocks; empty once the agent has received them.
        admitted: done once the prompt may be sent, or was withdrawn.
        done: done when the turn has ended. :meth:`AgentObserver.response_received` was called
            before with the response. Without a response it raises :class:`Error`: the agent did not
            start, or its process ended.
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

        A turn that has ended stays as it is.
        """
        if self.state is PromptState.SENT:
            self._cancel_sent()
        else:
            self.finish()

    def finish(self, error: Error | None = None) -> None:
        """End the turn, once: with the agent's response, or with *error* if there is none."""
        if self.state in (PromptState.DONE, PromptState.WITHDRAWN):
            return
        self._state.move_to(PromptState.DONE if self.is_sent else PromptState.WITHDRAWN)
        self._resolve_admitted()
        if self.done.done():  # its awaiter was cancelled, and so the future
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def _resolve_admitted(self) -> None:
        if not self.admitted.done():  # the server may have stopped its waiter, and so the future
            self.admitted.set_result(None)
