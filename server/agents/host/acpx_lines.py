"""The lines that acpx writes to an agent: they pass, wait, or are changed on their way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ...codec import dumps, parse_message
from ...errors import Error
from ..acp_methods import STARTING_METHODS
from ..line_reader import LineReader
from .acpx_requests import refusal, with_blocks, with_fields, with_preface
from .channel import Channel
from .conversation import ProxiedConversation
from .proxy_handler import ProxyHandler
from .proxy_state import ProxyState

MAX_PROMPT_LINE_BYTES = 64 << 20
"""The limit of a line that acpx writes. acpx has the same limit."""


class AcpxLines:
    """The lines that acpx writes to one agent. Those after a held prompt wait with it.

    Args:
        handler: decides over prompts.
        to_agent: from acpx to the agent.
        answer: writes a response to acpx instead of the agent.

    Attributes:
        waiting: the lines that were read and have not been passed on.
        is_prompt_held: a prompt waits until it may pass.
        is_prompting: the agent works on a prompt of acpx.
        prompt_id: acpx's id of that prompt, or of the one before.
    """

    def __init__(
        self,
        handler: ProxyHandler,
        conversation: ProxiedConversation,
        to_agent: Channel,
        *,
        answer: Callable[[bytes], None],
    ) -> None:
        self._handler = handler
        self._conversation = conversation
        self._to_agent = to_agent
        self._answer = answer
        self._reader = LineReader(MAX_PROMPT_LINE_BYTES)
        self.waiting: deque[bytes] = deque()
        self.is_prompt_held = False
        self.is_prompting = False
        self.prompt_id: Any = None

    @property
    def rest(self) -> bytes:
        """The beginning of a line whose end was not read yet."""
        return self._reader.rest

    def restore(self, state: ProxyState) -> None:
        """Continue where an earlier version of the server stopped."""
        self._reader.feed(state.acpx_rest)
        self.waiting.extend(state.waiting_lines)
        self.is_prompting, self.prompt_id = state.is_prompting, state.prompt_id

    def feed(self, data: bytes) -> None:
        """Take what acpx wrote, and pass on what may pass.

        Raises:
            OverflowError: a line is too long.
        """
        self.waiting.extend(self._reader.feed(data))
        self.forward_waiting()

    def forward_waiting(self) -> None:
        """Pass the lines on, up to a prompt that must wait."""
        while self.waiting:
            message = parse_message(self.waiting[0])
            if message is None or message.get("method") != "session/prompt":
                self._forward(self.waiting.popleft(), message)
            elif (blocker := self._handler.prompt_blocker()) is None:
                self._forward_prompt(self.waiting.popleft(), message)
            else:
                self.is_prompt_held = True
                self._to_agent.pause("prompt")
                blocker.add_done_callback(self._prompt_unblocked)
                return

    def _prompt_unblocked(self, _: asyncio.Future[Any]) -> None:
        self.is_prompt_held = False
        self._to_agent.resume("prompt")
        self.forward_waiting()

    def _forward(self, line: bytes, message: dict[str, Any] | None) -> None:
        if message is not None:
            self._conversation.track(message)
            if message.get("method") in STARTING_METHODS:
                line = self._with_parameters(line, message)
                if line and message["method"] == "session/new":
                    line = self._conversation.begin(line, self._handler.take_fork_source())
        if line:
            self._to_agent.write(line)

    def _with_parameters(self, line: bytes, message: dict[str, Any]) -> bytes:
        """Add the agent's parameters; return nothing, but respond, if it cannot take them."""
        try:
            return with_fields(line, message, self._handler.session_fields)
        except Error as error:
            self._conversation.refuse(message)
            self._answer(refusal(message, error))
            return b""

    def _forward_prompt(self, line: bytes, message: dict[str, Any]) -> None:
        params = message.get("params")
        blocks = params.get("prompt") if isinstance(params, dict) else None
        full = self._handler.full_prompt(blocks)
        if not self._handler.admit_prompt():
            response = {"jsonrpc": "2.0", "id": message.get("id")}
            self._answer(dumps({**response, "result": {"stopReason": "cancelled"}}))
            return
        self.is_prompting = True
        self.prompt_id = message.get("id")
        self._conversation.note_id(params)
        fresh = self._conversation.take_fresh()
        preface = self._handler.preface(blocks, fresh=fresh)
        if preface is not None:
            full = with_preface(dumps(blocks) if full is None else full, preface)
        if full is not None:
            line = with_blocks(message, full)
        self._to_agent.write(line)  # first: the agent works while the session records the start
        self._handler.prompt_sent(fresh)
