"""Runs an ACP agent for `/run`: one turn of a fresh session, through acpx."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ..agents.base import Agent, AgentObserver, AgentSpec, Backend, WantedSettings
from ..agents.failures import agent_error
from ..agents.prompt_handle import PromptHandle
from ..agents.subagents import Subagent
from ..agents.traits import AgentTraits
from ..agents.usage import Usage, usage_of_acp
from ..codec import dumps, parse_message
from ..errors import ErrorCode
from ..sessions.permissions import ToolCalls, outcome_by_policy
from ..uploads.files import prepend_file_paths
from .run import (
    MAX_OUTPUT_BYTES,
    Run,
    RunError,
    RunFolder,
    RunRequest,
    RunResult,
    output_too_large,
    result_json,
    schema_failed,
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
    traits = backend.traits(name)
    collector = _Collector(name, request, _wanted_settings(request, traits))
    agent = backend.agent(_spec_of_run(run, name, folder, traits), collector)
    collector.agent = agent
    schema = request.schema
    texts = [request.prompt] if schema is None else [schema.instruction, request.prompt]
    try:
        for attempts_left in reversed(range(request.max_attempts)):
            result = await collector.ask(run, texts, grace)
            problem = schema.problem(result.result) if schema is not None else None
            if schema is None or problem is None:
                return result
            if not attempts_left:
                raise schema_failed(problem)
            texts = [schema.correction(problem)]
        raise AssertionError("there is at least one attempt")
    finally:
        await collector.stop()
        await agent.hibernate()
        await backend.forget(run.id)
        await asyncio.to_thread(folder.remove)


def _wanted_settings(request: RunRequest, traits: AgentTraits) -> WantedSettings:
    return WantedSettings(
        request.model,
        traits.asking_mode,  # the policy only decides if the agent asks
        mode_is_optional=True,
        model_may_be_unlisted=traits.takes_any_model,
    )


def _spec_of_run(run: Run, name: str, folder: RunFolder, traits: AgentTraits) -> AgentSpec:
    request = run.request
    system: Any = request.system
    if system is not None and request.system_mode == "append":
        system = {"append": system}
    return AgentSpec(
        key=run.id,
        agent=name,
        cwd=str(folder.path),
        permission=PERMISSION,
        model=request.model,
        system=system,
        preface=None if traits.takes_system else request.system,
        owner=request.app_name,
    )


class _Collector(AgentObserver):
    """Collects the agent's message and response."""

    agent: Agent
    prompt: PromptHandle

    def __init__(self, name: str, request: RunRequest, wanted: WantedSettings) -> None:
        self._name = name
        self._request = request
        self._wanted = wanted
        self._calls = ToolCalls()
        self._texts: list[str] = []
        self._size = 0
        self._response: Mapping[str, Any] | None = None
        self._usage = Usage()
        self._cost: Any = None
        self._session_id: str | None = None
        self._has_asked = False

    @property
    def wanted(self) -> WantedSettings:
        return self._wanted

    async def ask(self, run: Run, texts: Sequence[str], grace: float) -> RunResult:
        """Send a prompt, with the files of the first one, and wait for the answer.

        Raises:
            Error: there is none.
        """
        self._texts, self._response = [], None
        blocks: list[dict[str, object]] = [{"type": "text", "text": text} for text in texts]
        files = self._request.files if not self._has_asked else ()
        self._has_asked = True
        prompt = self.prompt = self.agent.prompt(dumps(prepend_file_paths(blocks, files)))
        try:
            cause = await run.wait(prompt.done, prompt.cancel, self.agent.kill, grace)
        finally:
            run.note_usage(self._usage.plus(usage_of_acp(None, self._cost)))
        if cause is not None:
            raise stopped_error(cause)
        prompt.done.result()
        return self._result(run.usage)

    async def stop(self) -> None:
        """Wait until the last prompt has ended."""
        self.prompt.done.cancel()
        await asyncio.gather(self.prompt.done, return_exceptions=True)

    def _result(self, usage: Usage) -> RunResult:
        """The result of a prompt.

        Args:
            usage: of the run so far.

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
        text = result_json("".join(self._texts))
        return RunResult(text, stop_reason, usage, self._session_id)

    def tool_call_updated(self, update: Mapping[str, Any]) -> None:
        self._calls.note(update)

    def notification_received(self, message: bytes, subagent: Subagent | None = None) -> None:
        if self._request.on_update is not None:
            self._request.on_update(message)
        if b"usage_update" in message or self._session_id is None:
            self._note_update(message)
        if self._size > MAX_OUTPUT_BYTES or b"agent_message_chunk" not in message:
            return
        if subagent is not None:  # what a subagent says is not the answer
            return
        text = _chunk_text(message)
        if text is None:
            return
        self._texts.append(text)
        self._size += len(message)
        if self._size > MAX_OUTPUT_BYTES:
            self.prompt.cancel()

    def _note_update(self, message: bytes) -> None:
        """Note the id of the agent's conversation, and its cost so far."""
        value = parse_message(message)
        params = value.get("params") if value is not None else None
        if not isinstance(params, dict):
            return
        if isinstance(params.get("sessionId"), str):
            self._session_id = params["sessionId"]
        update = params.get("update")
        if isinstance(update, dict) and update.get("sessionUpdate") == "usage_update":
            self._cost = update.get("cost", self._cost)

    def response_received(self, message: bytes, response: Mapping[str, Any]) -> None:
        self._response = response
        result = response.get("result")
        if isinstance(result, dict):
            self._usage = self._usage.plus(usage_of_acp(result.get("usage")))

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        request = params if isinstance(params, dict) else {}
        call = self._calls.merged(request)
        self._calls.note(call)
        self.agent.answer_permission(raw_id, outcome_by_policy(PERMISSION, request, call))


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
