"""Runs an ACP agent for `/run`: one turn of a fresh session, through acpx."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ..agents.base import Agent, AgentObserver, AgentSpec, Backend, Wanted
from ..agents.failures import agent_error
from ..agents.prompt_handle import PromptHandle
from ..codec import dumps, parse_message
from ..errors import ErrorCode
from ..sessions.permissions import ToolCalls, by_policy
from ..uploads.files import prepend_file_paths
from .run import (
    MAX_OUTPUT_BYTES,
    Run,
    RunError,
    RunFolder,
    RunResult,
    output_too_large,
    result_json,
    stopped_error,
)

PERMISSION = "approve-reads"
"""The permission setting of a run: like ``claude -p``, as no client can decide more."""


async def run_acp_agent(
    backend: Backend, run: Run, name: str, folder: RunFolder, grace: float
) -> RunResult:
    """Run one turn of an agent, then end the agent and delete everything that it left.

    Args:
        name: the agent's name.
        folder: the agent's working directory; created here, and removed at the end.
        grace: seconds from the cancel to the kill.

    Raises:
        Error: the agent returned no result.
    """
    request = run.request
    await asyncio.to_thread(folder.create)
    system: Any = request.system
    if system is not None and request.system_mode == "append":
        system = {"append": system}
    traits = backend.traits(name)
    # The policy only decides if the agent asks.
    collector = _Collector(
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
        run.id, name, str(folder.path), request.model, system, PERMISSION, preface, request.app_name
    )
    agent = backend.agent(spec, collector)
    collector.agent = agent
    blocks: list[dict[str, object]] = [{"type": "text", "text": request.prompt}]
    prompt = collector.prompt = agent.prompt(dumps(prepend_file_paths(blocks, request.files)))
    try:
        cause = await run.wait(prompt.done, prompt.cancel, agent.kill, grace)
        if cause is not None:
            raise stopped_error(cause)
        prompt.done.result()
        return collector.result()
    finally:
        prompt.done.cancel()
        await asyncio.gather(prompt.done, return_exceptions=True)
        await agent.hibernate()
        await backend.forget(run.id)
        await asyncio.to_thread(folder.remove)


class _Collector(AgentObserver):
    """Collects the agent's message and response."""

    agent: Agent
    prompt: PromptHandle

    def __init__(self, name: str, wanted: Wanted) -> None:
        self._name = name
        self._wanted = wanted
        self._calls = ToolCalls()
        self._texts: list[str] = []
        self._size = 0
        self._response: Mapping[str, Any] | None = None

    @property
    def wanted(self) -> Wanted:
        return self._wanted

    def result(self) -> RunResult:
        """The result of the run.

        Raises:
            Error: the agent's response is an error or a cancellation, or there is none.
        """
        response = self._response or {}
        result = response.get("result")
        stop_reason = result.get("stopReason") if isinstance(result, dict) else None
        if not isinstance(stop_reason, str):
            if response.get("error") is None:
                raise RunError(ErrorCode.AGENT_FAILED, "the agent sent no response")
            methods = self.agent.settings.auth_methods
            raise agent_error(response["error"], self._name, methods)
        if self._size > MAX_OUTPUT_BYTES:
            raise output_too_large()
        if stop_reason == "cancelled":
            raise RunError(
                ErrorCode.AGENT_FAILED, "the agent cancelled the turn", stop_reason=stop_reason
            )
        return RunResult(result_json("".join(self._texts)), stop_reason)

    def tool_call_updated(self, update: Mapping[str, Any]) -> None:
        self._calls.note(update)

    def notification_received(self, message: bytes) -> None:
        if self._size > MAX_OUTPUT_BYTES or b"agent_message_chunk" not in message:
            return
        text = _chunk_text(message)
        if text is None:
            return
        self._texts.append(text)
        self._size += len(message)
        if self._size > MAX_OUTPUT_BYTES:
            self.prompt.cancel()

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None:
        self._response = response

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        request = params if isinstance(params, dict) else {}
        call = self._calls.merged(request)
        self._calls.note(call)
        self.agent.answer_permission(raw_id, by_policy(PERMISSION, request, call))


def _chunk_text(message: bytes) -> str | None:
    """The text of an ``agent_message_chunk``; None for any other notification."""
    value: Any = parse_message(message)
    for name in ("params", "update"):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.get("sessionUpdate") != "agent_message_chunk":
        return None
    content = value.get("content")
    text = content.get("text") if isinstance(content, dict) else None
    return text if isinstance(text, str) else None
