"""One-shot runs: one prompt, one result."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, cast

import msgspec
from aiohttp import web

from ...codec import dumps
from ...runs.run import RunError, RunRequest
from ...validation import Name, form
from ..context import CREDENTIAL, REQUEST_ID, app_name_of, context_of, waiting
from ..endpoint import Endpoint, Tag
from ..field_types import (
    NO_NUL,
    Argument,
    AuthMethods,
    Count,
    ErrorMessage,
    FailureCode,
    FileTokens,
    RequestId,
    Timeout,
    doc,
)
from ..responses import json_response, raw_json_response

DISCONNECT_POLL_SECS = 0.1

RunStopReason = Literal["error", "timeout", "cancelled"]


class RunPrompt(msgspec.Struct, frozen=True):
    """One prompt."""

    prompt: Annotated[str, msgspec.Meta(min_length=1, pattern=form(r"\S", "more than blanks"))]
    model: Annotated[Argument | None, doc("Passed to the agent unchanged.")] = None
    system: Annotated[
        Annotated[str, msgspec.Meta(max_length=1 << 20, pattern=NO_NUL)] | None,
        doc("A system prompt."),
    ] = None
    system_mode: Annotated[
        Literal["replace", "append"],
        doc("Whether `system` replaces the agent's own system prompt or is added to it."),
    ] = "replace"
    effort: Annotated[
        Literal["low", "medium", "high", "xhigh", "max"] | None,
        doc("Only for `claude`."),
    ] = None
    files: FileTokens = None
    timeout_secs: Timeout | None = None
    agent: Annotated[Name | None, doc("`claude`, or an agent of `GET /agents`.")] = None


class RunResponse(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The result of a run: exactly these keys."""

    result: Annotated[
        Any,
        doc("The text of the answer without its code fence; parsed if it is JSON."),
    ]
    duration_ms: Annotated[Count, doc("Without the time in the queue.")]
    stop_reason: str


class RunFailure(msgspec.Struct, kw_only=True):
    """A run that failed."""

    error: ErrorMessage
    code: FailureCode
    retryable: bool
    stderr: Annotated[str, doc("The end of the program's stderr.")]
    duration_ms: Count
    stop_reason: RunStopReason
    request_id: RequestId
    auth_methods: AuthMethods = msgspec.UNSET


@Endpoint(
    "POST",
    "/run",
    tag=Tag.RUNS,
    summary="Run one prompt",
    description="In a claude process of its own, or in one turn of another agent. If the client"
    " disconnects, the run is stopped.",
    waits=("body", "work"),
    request_example={"prompt": "List three primes as JSON, nothing else."},
    example={"ok": True, "result": [2, 3, 5], "duration_ms": 2140, "stop_reason": "end_turn"},
    failures=("rate_limited", "pool_full", "draining"),
    failure_results={502: RunFailure},
)
async def run_prompt(request: web.Request, body: RunPrompt) -> Annotated[web.Response, RunResponse]:
    app_name = app_name_of(request)
    context = context_of(request)
    context.sessions.quotas.check_prompt_rate(app_name)
    files = await context.files.paths(app_name, body.files or [])
    request[CREDENTIAL].check()
    run = context.runner.begin(
        RunRequest(
            app_name=app_name,
            prompt=body.prompt,
            agent=body.agent,
            model=body.model,
            system=body.system,
            system_mode=body.system_mode,
            effort=body.effort,
            files=files,
            timeout_secs=body.timeout_secs,
        )
    )
    try:
        async with waiting(request):
            while not run.task.done() and not _is_disconnected(request):
                await asyncio.wait({run.task}, timeout=DISCONNECT_POLL_SECS)
    finally:
        run.stop("disconnect")
    try:
        result = await run.task
    except RunError as failure:
        return _failure_response(failure, request[REQUEST_ID])
    # The result is JSON already and is not parsed again.
    head = b'{"ok":true,"result":' + result.result
    tail = dumps({"duration_ms": result.duration_ms, "stop_reason": result.stop_reason})
    return raw_json_response(head + b"," + tail[1:])


def _is_disconnected(request: web.Request) -> bool:
    """Return whether the client has disconnected: aiohttp only removes the transport."""
    return request.transport is None or request.transport.is_closing()


def _failure_response(failure: RunError, request_id: str) -> web.Response:
    return json_response(
        RunFailure(
            error=failure.message,
            code=failure.code,
            retryable=failure.retryable,
            stderr=failure.stderr,
            duration_ms=failure.duration_ms,
            stop_reason=cast("RunStopReason", failure.stop_reason),
            request_id=request_id,
            **failure.fields,
        ),
        status=failure.status,
    )
