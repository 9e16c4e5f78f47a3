"""Passes the reports of an agent's stdio proxy on to the parts of the agent and to its session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import Error
from ...tasks import Tasks
from .. import reported_settings
from ..agent_settings import has_session_capability
from ..base import AGENT_GONE, AgentSpec, agent_failed
from ..preface import preface_of
from ..subagents import subagent_of
from .agent_process import AgentProcess
from .binding import Binding
from .client_capabilities import announced_capabilities
from .prompts import HostPrompt, PromptQueue
from .settings_sync import SettingsSync
from .stdio_proxy import StdioProxy

WITHHELD_UPDATES = frozenset(
    {
        "user_message_chunk",
        "agent_message_chunk",
        "agent_thought_chunk",
        "tool_call",
        "tool_call_update",
        "plan",
        "plan_update",
        "plan_removed",
        "subagent_update",
        "session_message",
        "session_message_chunk",
    }
)
"""The kinds of ``session/update`` that acpx does not receive, because it would only parse and
discard them."""
NOTED_UPDATES = reported_settings.SETTING_UPDATES | {
    *("tool_call", "tool_call_update", "usage_update", "session_info_update")
}
"""The kinds of ``session/update`` that the server reads. All others are only relayed."""

LoadMeta = Callable[[AgentSpec], Mapping[str, Any]]


class ProxyEvents:
    """The :class:`HandoverTarget` and :class:`ProxyHandler` of one agent.

    Args:
        load_meta: returns the ``_meta`` with which an agent must load its conversation.

    Attributes:
        fork_source: the agent's own id of the session that its next new conversation is a fork of.
    """

    def __init__(
        self,
        binding: Binding,
        process: AgentProcess,
        sync: SettingsSync,
        queue: PromptQueue,
        tasks: Tasks,
        load_meta: LoadMeta,
    ) -> None:
        self._binding = binding
        self._process = process
        self._sync = sync
        self._queue = queue
        self._tasks = tasks
        self._load_meta = load_meta
        self.fork_source: str | None = None

    @property
    def spec(self) -> AgentSpec:
        return self._binding.spec

    # The process.

    def process_connected(self, proxy: StdioProxy) -> None:
        self._process.connected(proxy)

    def folder_refused(self, reason: str) -> None:
        self._process.folder_problem = reason

    def process_ended(self, proxy: StdioProxy) -> None:
        if not self._process.ended(proxy):
            return
        prompt = self._queue.current
        if prompt is not None and prompt.is_sent and not prompt.done.done():
            if proxy.is_killed:
                prompt.finish(agent_failed(AGENT_GONE))
            else:
                name = f"last-output-{self._binding.key}"
                prompt.reading_output = self._tasks.spawn(self._end_turn(prompt, proxy), name)
        self._binding.observer.agent_ended()

    async def _end_turn(self, prompt: HostPrompt, proxy: StdioProxy) -> None:
        """End the turn of a process that has ended during it, with its last output."""
        output = await self._process.output_of(proxy)
        prompt.finish(agent_failed(f"{AGENT_GONE}: {output}" if output else AGENT_GONE))

    # The conversation.

    def session_fields(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if method == "initialize":
            modes = self._process.elicitation = self.spec.elicitation
            known, further = params.get("clientCapabilities"), self.spec.client_capabilities
            capabilities = announced_capabilities(known, modes, further)
            return {"clientCapabilities": capabilities}
        try:
            capabilities = self._sync.reported.capabilities
            fields = self.spec.parameters.request_fields(capabilities, self.spec.agent)
        except Error as error:
            self._process.rejection = error
            raise
        meta = self._load_meta(self.spec) if method != "session/new" else {}
        if meta:
            fields["_meta"] = {**(params.get("_meta") or {}), **meta}
        return fields

    def take_fork_source(self) -> str | None:
        source, self.fork_source = self.fork_source, None
        offered = has_session_capability(self._sync.reported.capabilities, "fork")
        return source if offered else None

    def conversation_forked(self) -> None:
        self._binding.observer.conversation_forked()

    # Prompts.

    def prompt_blocker(self) -> asyncio.Future[Any] | None:
        return self._queue.blocker()

    def full_prompt(self, blocks: Any) -> bytes | None:
        return self._queue.full_prompt(blocks)

    def admit_prompt(self) -> bool:
        return self._queue.mark_next_sent()

    def preface(self, blocks: Any, *, fresh: bool) -> str | None:
        observer = self._binding.observer
        if not (fresh or observer.needs_preface):
            return None
        return preface_of(blocks, self.spec, self._sync.reported, observer)

    def prompt_sent(self, fresh: bool) -> None:
        self._binding.observer.prompt_sent("fresh" if fresh else "kept")

    def response_received(self, line: bytes, message: dict[str, Any]) -> None:
        self._process.response_received()
        prompt = self._queue.current
        self._binding.note_response(message)
        self._binding.observer.response_received(line, message)
        if prompt is not None:
            prompt.finish()

    # Other messages of the agent.

    def notification_received(
        self, line: bytes, message: dict[str, Any], *, replayed: bool
    ) -> bool:
        params = message.get("params")
        if message["method"] == "session/update" and isinstance(params, dict):
            update = params.get("update")
            if isinstance(update, dict):
                return self._update_received(line, params, update, replayed=replayed)
        elif message["method"] == "$/cancel_request" and isinstance(params, dict):
            self._binding.observer.request_withdrawn(params.get("requestId"))
        if not replayed:
            self._binding.observer.notification_received(line)
        return True

    def _update_received(
        self, line: bytes, params: dict[str, Any], update: dict[str, Any], *, replayed: bool
    ) -> bool:
        """Handle an update. Return whether acpx receives it."""
        subagent = None
        # Other agents have no sessions of subagents, and may send any session id.
        announced = "subagents" in self._binding.spec.client_capabilities
        if announced or "_meta" in update:
            subagent = subagent_of(params, self._own_id if announced else None)
        kind = update.get("sessionUpdate")
        if not isinstance(kind, str):
            kind = ""
        elif kind in NOTED_UPDATES:
            self._note_update(params, update, kind, replayed=replayed)
        if not replayed:
            self._binding.observer.notification_received(line, subagent)
        is_of_child = subagent is not None and "session_id" in subagent
        return not (kind in WITHHELD_UPDATES or is_of_child)

    def _note_update(
        self, params: Mapping[str, Any], update: dict[str, Any], kind: str, *, replayed: bool
    ) -> None:
        if kind in ("tool_call", "tool_call_update"):
            if not replayed:
                self._binding.observer.tool_call_updated(update)
        elif self._is_of_child(params):
            return
        elif kind in reported_settings.SETTING_UPDATES:
            self._sync.note_update(update, kind, replayed=replayed)
        elif kind == "usage_update":
            self._binding.observer.usage_updated(update, replayed=replayed)
        elif not replayed:
            self._binding.observer.info_updated(update)

    def _is_of_child(self, params: Mapping[str, Any]) -> bool:
        """Whether an update is of a session that the agent began by itself, for a subagent."""
        return self._own_id is not None and params.get("sessionId") not in (None, self._own_id)

    @property
    def _own_id(self) -> str | None:
        """The agent's own id of the session."""
        proxy = self._process.proxy
        return proxy.session_id if proxy is not None else None

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        self._binding.observer.permission_requested(raw_id, params)

    def elicitation_requested(self, raw_id: Any, params: Any) -> None:
        if self._process.elicitation:
            self._binding.observer.elicitation_requested(raw_id, params)
        elif self._process.proxy is not None:  # no client was announced that could answer
            self._process.proxy.own_requests.respond(raw_id, {"action": "cancel"})

    def session_opened(self, result: dict[str, Any] | None, error: Any) -> None:
        self._process.refusal = None if result is not None else error or {}
        self._binding.note_response({} if result is not None else {"error": error})
        if result is not None:
            self._process.conversation_opened()
            self._sync.session_opened(result)

    def request_succeeded(
        self, method: str, params: Mapping[str, Any], result: dict[str, Any]
    ) -> None:
        if method == "initialize":
            self._binding.logins.note_methods(self.spec.agent, result)
        self._sync.request_succeeded(method, params, result)

    def request_refused(self, method: str) -> None:
        if method != "initialize":
            self._sync.has_refused = True
