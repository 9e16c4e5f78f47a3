"""A prompt that one ``acpx prompt`` carries to the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..process.programs import Program
from ..prompt_handle import PromptHandle
from .settings_relay import REPORT

if TYPE_CHECKING:
    from .agent import CliAgent


class CliPrompt(PromptHandle):
    """A prompt, and the observer of its transcript; see :class:`TranscriptObserver`.

    Attributes:
        program: the prompt's ``acpx prompt``, once it runs.
        is_repaired: acpx refused its own files of the session, which were deleted then.
    """

    def __init__(self, agent: CliAgent, blocks: bytes, *, is_held: bool) -> None:
        super().__init__(blocks, is_held=is_held)
        self.program: Program | None = None
        self._agent = agent
        self._is_fresh = False
        self.is_repaired = False

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
        self._is_fresh = fresh
        if not self._agent.reports.has_relay:
            self._reached_agent()

    def _reached_agent(self) -> None:
        if not self.done.done():
            if not self.is_sent:  # acpx may send it again
                self.mark_sent()
            self._agent.reports.prompt_sent(fresh=self._is_fresh)

    def notification_received(self, line: bytes, message: dict[str, Any]) -> None:
        is_report = message["method"] == REPORT
        if is_report and self._agent.reports.settings_applied(message.get("params")):
            self._reached_agent()
        elif not self.is_withdrawn:
            self._agent.reports.notification_received(line, message)

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None:
        if not self.is_withdrawn:
            self._agent.observer.permission_decided(params, outcome)

    def session_opened(self, result: dict[str, Any]) -> None:
        self._agent.reports.session_opened(result)

    def initialized(self, result: dict[str, Any]) -> None:
        self._agent.reports.initialized(result)

    def response_received(self, line: bytes, message: dict[str, Any]) -> None:
        if self.done.done():
            return
        refusal = self._agent.reports.refusal_of(message)
        if refusal is None:
            if not self.is_sent:
                self._reached_agent()
            self._agent.observer.response_received(line, message)
        self.finish(refusal)
