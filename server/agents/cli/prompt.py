"""A prompt that one ``acpx prompt`` carries to the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..process.programs import Program
from ..prompt_handle import PromptHandle

if TYPE_CHECKING:
    from .agent import CliAgent


class CliPrompt(PromptHandle):
    """A prompt, and the observer of its transcript; see :class:`TranscriptObserver`.

    Attributes:
        program: the prompt's ``acpx prompt``, once it runs.
    """

    def __init__(self, agent: CliAgent, blocks: bytes, *, is_held: bool) -> None:
        super().__init__(blocks, is_held=is_held)
        self.program: Program | None = None
        self._agent = agent

    def begin(self, program: Program) -> None:
        """Note that *program* sends the prompt; kill it if the prompt was withdrawn meanwhile."""
        self.program = program
        if self.is_withdrawn:
            program.kill()

    def cancel(self) -> None:
        if self.done.done():
            return
        super().cancel()
        if self.program is not None:
            if self.is_withdrawn:
                self.program.kill()  # acpx may have passed the prompt on already
            self._agent.cancel_prompt()

    def prompt_sent(self, *, fresh: bool) -> None:
        if not self.done.done():
            if not self.is_sent:  # acpx may send it again
                self.mark_sent()
            self._agent.prompt_sent(fresh=fresh)

    def notification_received(self, line: bytes, message: dict[str, Any]) -> None:
        if not self.is_withdrawn:
            self._agent.notification_received(line, message)

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None:
        if not self.is_withdrawn:
            self._agent.observer.permission_decided(params, outcome)

    def session_opened(self, result: dict[str, Any]) -> None:
        self._agent.session_opened(result)

    def initialized(self, result: dict[str, Any]) -> None:
        self._agent.initialized(result)

    def response_received(self, line: bytes, message: dict[str, Any]) -> None:
        if not self.done.done():
            self._agent.observer.response_received(line, message)
            self.finish()
