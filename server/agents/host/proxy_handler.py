"""The interface of the object that a stdio proxy reports to and asks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .stdio_proxy import StdioProxy


class ProxyHandler(Protocol):
    """Decides over the prompts to one agent, and receives the messages of that agent."""

    # From acpx to the agent.

    def session_fields(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return fields to set in the params of a request with which acpx starts to use the agent.

        Args:
            method: ``initialize``, ``session/new``, ``session/load`` or ``session/resume``.

        Raises:
            Error: the agent cannot take the session's parameters. It does not get the request.
        """

    def take_fork_source(self) -> str | None:
        """Return the agent's id of the session that a new conversation is to be a fork of, once."""

    def conversation_forked(self) -> None:
        """The agent has forked that conversation."""

    def prompt_blocker(self) -> asyncio.Future[Any] | None:
        """Return a future that must be done before the next prompt may pass; None if it may.

        The proxy asks again when the future is done.
        """

    def full_prompt(self, blocks: Any) -> bytes | None:
        """Return the JSON of the blocks that replace *blocks*, as acpx passed them on.

        Returns:
            None if *blocks* are complete.
        """

    def admit_prompt(self) -> bool:
        """Whether the prompt may pass. If not, acpx gets a response "cancelled"."""

    def preface(self, blocks: Any, *, fresh: bool) -> str | None:
        """Return a text to put in front of the prompt.

        Args:
            blocks: the prompt's content blocks.
            fresh: the prompt is the first of the agent's conversation.
        """

    def prompt_sent(self, fresh: bool) -> None:
        """The prompt was written to the agent's stdin."""

    # Messages, from the agent to acpx.

    def notification_received(
        self, line: bytes, message: dict[str, Any], *, replayed: bool
    ) -> bool:
        """The agent sent a notification; *replayed* if session/load made it repeat an old one.

        Returns:
            Whether acpx receives it.
        """

    def response_received(self, line: bytes, message: dict[str, Any]) -> None:
        """The agent responded to the prompt."""

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        """The agent requested a permission. acpx does not see the request."""

    def elicitation_requested(self, raw_id: Any, params: Any) -> None:
        """The agent asked a question. acpx does not see the request."""

    def session_opened(self, result: dict[str, Any] | None, error: Any) -> None:
        """The agent responded to session/new, session/load or session/resume.

        Args:
            result: None if the response was an error.
            error: the JSON-RPC error, if there was one.
        """

    def request_succeeded(
        self, method: str, params: Mapping[str, Any], result: dict[str, Any]
    ) -> None:
        """The agent carried out ``initialize``, or a request of acpx that changes a setting."""

    def request_refused(self, method: str) -> None:
        """The agent responded to such a request with an error."""

    def process_ended(self, proxy: StdioProxy) -> None:
        """The process has ended. All that it wrote before was reported."""
