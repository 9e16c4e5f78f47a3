"""A run on any other agent: one turn of a fresh session, through acpx."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import safe_files
from ..agents.base import Agent, AgentSettings, AgentSpec, Backend, Context, Wanted
from ..agents.failures import agent_error
from ..codec import dumps, parse_message
from ..sessions.permissions import ToolCalls, by_policy
from ..uploads.files import annotate
from .answers import MAX_OUTPUT_BYTES, Answer, RunFailed, result_json, too_long
from .run import Run, ended, leave_nothing, run_place

PERMISSION = "approve-reads"
"""As ``claude -p`` has it; there is nobody to ask for more."""


async def run_turn(backend: Backend, run: Run, name: str, folder: Path, grace: float) -> Answer:
    """Run the agent of that name for one turn; nothing of it is left.

    Args:
        folder: made for the run, and removed.
        grace: seconds from the cancel to the kill.

    Raises:
        Error: it gave no answer.
    """
    request = run.request
    await asyncio.to_thread(safe_files.make_folder, *run_place(folder))
    system: Any = request.system
    if system is not None and request.system_mode == "append":
        system = {"append": system}
    traits = backend.traits(name)
    # The policy can only answer an agent that asks.
    turn = _Turn(
        name,
        Wanted(
            request.model,
            traits.asking_mode if backend.can_restore else None,
            mode_is_optional=True,
            model_may_be_unlisted=traits.takes_any_model,
        ),
    )
    preface = None if traits.takes_system else request.system
    spec = AgentSpec(
        run.id, name, str(folder), request.model, system, PERMISSION, preface, request.app_name
    )
    agent = backend.agent(spec, turn)
    turn.agent = agent
    blocks: list[dict[str, object]] = [{"type": "text", "text": request.prompt}]
    work = asyncio.create_task(
        agent.prompt(dumps(annotate(blocks, request.files))), name=f"run-{run.id}-turn"
    )
    try:
        ending = await run.watch(work, agent.cancel, agent.kill, grace)
        if ending is not None:
            raise ended(ending)
        work.result()
        return turn.answer()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await agent.hibernate()
        await backend.forget(run.id)
        await asyncio.to_thread(leave_nothing, folder)


class _Turn:
    """What an agent says in the one turn of a run; see :class:`base.AgentObserver`."""

    agent: Agent

    def __init__(self, name: str, wanted: Wanted) -> None:
        self._name = name
        self.wanted = wanted
        self.owes_preface = False
        self._calls = ToolCalls()
        self._texts: list[str] = []
        self._size = 0
        self._response: Mapping[str, Any] | None = None

    def answer(self) -> Answer:
        response = self._response or {}
        result = response.get("result")
        stop_reason = result.get("stopReason") if isinstance(result, dict) else None
        if not isinstance(stop_reason, str):
            if response.get("error") is None:
                raise RunFailed("agent_failed", "the agent gave no answer")
            methods = self.agent.settings.auth_methods
            raise agent_error(response["error"], self._name, methods)
        if self._size > MAX_OUTPUT_BYTES:
            raise too_long()
        if stop_reason == "cancelled":
            raise RunFailed("agent_failed", "the agent cancelled the turn", stop_reason=stop_reason)
        return Answer(result_json("".join(self._texts)), stop_reason)

    def restored(self, setting: str, value: str) -> None:
        pass

    def agent_changed(self, before: AgentSettings, after: AgentSettings) -> None:
        pass

    def tool_called(self, update: Mapping[str, Any]) -> None:
        self._calls.note(update)

    def prompt_sent(self, context: Context) -> None:
        pass

    def agent_notified(self, message: bytes) -> None:
        if self._size > MAX_OUTPUT_BYTES or b"agent_message_chunk" not in message:
            return
        text = _text_of(message)
        if text is None:
            return
        self._texts.append(text)
        self._size += len(message)
        if self._size > MAX_OUTPUT_BYTES:
            self.agent.cancel()

    def prompt_answered(self, message: bytes, answer: Mapping[str, Any]) -> None:
        self._response = answer

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        request = params if isinstance(params, dict) else {}
        call = self._calls.merged(request)
        self._calls.note(call)
        self.agent.answer_permission(raw_id, by_policy(PERMISSION, request, call))

    def permission_decided(self, params: Any, outcome: Mapping[str, Any]) -> None:
        pass

    def agent_gone(self) -> None:
        pass


def _text_of(message: bytes) -> str | None:
    """The text of a message chunk, None for any other notification, however odd."""
    value: Any = parse_message(message)
    for name in ("params", "update"):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.get("sessionUpdate") != "agent_message_chunk":
        return None
    content = value.get("content")
    text = content.get("text") if isinstance(content, dict) else None
    return text if isinstance(text, str) else None
