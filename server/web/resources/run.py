"""One-shot runs: one prompt, one result."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal, cast

import msgspec
from aiohttp import web

from ...agents.usage import Usage
from ...codec import dumps
from ...errors import failure_of
from ...runs.jobs import Render, RunJob
from ...runs.result_schema import ResultSchema
from ...runs.results import StoredResponse
from ...runs.run import RunError, RunRequest, RunResult
from ...validation import ClientId, Name, form
from ..context import (
    CREDENTIAL,
    DISCONNECT_POLL_SECS,
    REQUEST_ID,
    app_name_of,
    context_of,
    is_disconnected,
    stream_events,
    waiting,
)
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
    ResetsAt,
    Timeout,
    doc,
)
from ..responses import encode_json, error_response, raw_json_response
from ..run_updates import UpdateQueue
from ..sse import SSE, wants_stream

RUN_ID_EXAMPLE = "0d4ce0d2-4a1f-4bb5-b3b5-9d5b1f7f0a55"
RUN_STREAM_EXAMPLE = (
    'event: update\ndata: {"jsonrpc":"2.0","method":"session/update","params":{}}\n\n'
    'event: result\ndata: {"ok":true,"result":4,"duration_ms":2140,"stop_reason":"end_turn"}\n\n'
)

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
    schema: Annotated[
        dict[str, Any] | None, doc("A JSON Schema: the `result` is valid against it.")
    ] = None
    max_attempts: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=5)],
        doc("With `schema`: how often an agent other than claude is asked for a valid result."),
    ] = 3
    include: Annotated[
        list[Literal["usage", "session_id"]] | None, doc("Further keys of the response.")
    ] = None
    background: Annotated[
        bool, doc("Whether the response is sent at once: 202 with the `run_id`.")
    ] = False


class RunHeaders(msgspec.Struct, frozen=True):
    """The headers of a run."""

    idempotency_key: Annotated[
        ClientId | None,
        doc("A repeated key returns the response of the first run and runs nothing."),
    ] = msgspec.field(default=None, name="Idempotency-Key")


class RunResponse(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The result of a run: exactly these keys, and those of `include`."""

    result: Annotated[
        Any,
        doc("The text of the answer without its code fence; parsed if it is JSON."),
    ]
    duration_ms: Annotated[Count, doc("Without the time in the queue.")]
    stop_reason: str
    usage: Annotated[Usage | msgspec.UnsetType, doc("With `include`.")] = msgspec.UNSET
    session_id: Annotated[
        str | msgspec.UnsetType | None,
        doc("With `include`: the id of the agent's own conversation, if it has one."),
    ] = msgspec.UNSET


class RunDeleted(msgspec.Struct, kw_only=True):
    """A run that was ended, and whose response was deleted."""

    run_id: str


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
    resets_at: ResetsAt = msgspec.UNSET


@Endpoint(
    "POST",
    "/run",
    tag=Tag.RUNS,
    scope="prompt",
    summary="Run one prompt",
    description="In a claude process of its own, or in one turn of another agent. If the client"
    " disconnects, the run is stopped, unless it has an `Idempotency-Key` or runs in the"
    " background. With `Accept: text/event-stream` the updates of the agent are sent as they"
    " arrive; the last event, `result`, is the response.",
    waits=("body", "work", "stream"),
    request_example={"prompt": "List three primes as JSON, nothing else."},
    example={"ok": True, "result": [2, 3, 5], "duration_ms": 2140, "stop_reason": "end_turn"},
    media={SSE: RUN_STREAM_EXAMPLE},
    failures=("budget_exceeded", "rate_limited", "pool_full", "draining"),
    failure_results={422: RunFailure, 502: RunFailure},
    statuses={202: "With `background`: the run has begun: `{ok, run_id}`."},
)
async def run_prompt(
    request: web.Request, body: RunPrompt, headers: RunHeaders
) -> Annotated[web.StreamResponse, RunResponse]:
    app_name = app_name_of(request)
    context = context_of(request)
    quotas, accounts = context.sessions.quotas, context.sessions.accounts
    if quotas.shared is None:
        quotas.check_prompt_rate(app_name)
    else:
        await quotas.check_shared_prompt_rate(app_name)
        await accounts.update(app_name)
    files = await context.files.paths(app_name, body.files or [])
    request[CREDENTIAL].check()
    run_request = RunRequest(
        app_name=app_name,
        prompt=body.prompt,
        agent=body.agent,
        model=body.model,
        system=body.system,
        system_mode=body.system_mode,
        effort=body.effort,
        files=files,
        timeout_secs=body.timeout_secs,
        schema=None if body.schema is None else ResultSchema(body.schema),
        max_attempts=body.max_attempts,
    )
    render = partial(_render, include=frozenset(body.include or ()), request_id=request[REQUEST_ID])
    if headers.idempotency_key is not None or body.background:
        return await _run_as_job(request, body, headers.idempotency_key, run_request, render)
    if wants_stream(request):
        return await _stream_run(request, run_request, render)
    run = context.runner.begin(run_request)
    try:
        async with waiting(request):
            while not run.task.done() and not is_disconnected(request):
                await asyncio.wait({run.task}, timeout=DISCONNECT_POLL_SECS)
    finally:
        run.stop("disconnect")
    try:
        return _response(render(await run.task))
    except RunError as failure:
        return _response(render(failure))


@Endpoint(
    "GET",
    "/run/{run_id}",
    tag=Tag.RUNS,
    scope="prompt",
    summary="Get the response of a run",
    description="Exactly the response that the run has produced, with its status. It is kept for an"
    " hour.",
    example={"ok": True, "result": [2, 3, 5], "duration_ms": 2140, "stop_reason": "end_turn"},
    failure_results={422: RunFailure, 502: RunFailure},
    statuses={202: "The run is in progress: `{ok, run_id}`."},
)
async def get_run(request: web.Request) -> Annotated[web.StreamResponse, RunResponse]:
    run_id = request.match_info["run_id"]
    response = await context_of(request).jobs.get(app_name_of(request), run_id)
    return _accepted(run_id) if response is None else _response(response)


@Endpoint(
    "DELETE",
    "/run/{run_id}",
    tag=Tag.RUNS,
    scope="prompt",
    summary="End a run",
    description="The run is stopped, and its response is deleted.",
    example={"ok": True, "run_id": RUN_ID_EXAMPLE},
)
async def delete_run(request: web.Request) -> RunDeleted:
    run_id = request.match_info["run_id"]
    await context_of(request).jobs.delete(app_name_of(request), run_id)
    return RunDeleted(run_id=run_id)


async def _run_as_job(
    request: web.Request, body: RunPrompt, key: str | None, run_request: RunRequest, render: Render
) -> web.StreamResponse:
    context = context_of(request)
    is_stream = wants_stream(request) and not body.background
    updates = UpdateQueue()
    if is_stream:  # if the key is that of an earlier request, this one gets the result only
        run_request = msgspec.structs.replace(run_request, on_update=updates.add)
    begun = await context.jobs.begin(
        run_request.app_name, key, partial(context.runner.begin, run_request), render
    )
    if body.background:
        # A repeated request gets the id again, also if the run has ended.
        return _accepted(begun.run.id if isinstance(begun, RunJob) else begun.run_id)
    if is_stream:
        return await _stream_job(request, begun, updates)
    if isinstance(begun, RunJob):
        async with waiting(request):
            begun = await asyncio.shield(begun.done)
    return _response(begun)


async def _stream_job(
    request: web.Request, begun: RunJob | StoredResponse, updates: UpdateQueue
) -> web.StreamResponse:
    """Send the updates of a run that goes on if the client leaves, and then its response."""
    if request.transport is not None:
        updates.on_full = request.transport.abort
    try:
        async with stream_events(request) as stream:
            if isinstance(begun, RunJob):
                await updates.send(stream, begun.done)
                begun = begun.done.result()
            await stream.send_named("result", begun.body)
    finally:
        updates.close()
    return stream.response


async def _stream_run(
    request: web.Request, run_request: RunRequest, render: Render
) -> web.StreamResponse:
    """Send the updates of a run, and then its response."""
    updates = UpdateQueue()
    run = context_of(request).runner.begin(
        msgspec.structs.replace(run_request, on_update=updates.add)
    )
    updates.on_full = partial(run.stop, "disconnect")
    try:
        async with stream_events(request) as stream:
            await updates.send(stream, run.task)
            error = run.task.exception()
            outcome = error if isinstance(error, Exception) else run.task.result()
            await stream.send_named("result", render(outcome).body)
    finally:
        run.stop("disconnect")
    return stream.response


def _accepted(run_id: str) -> web.Response:
    return raw_json_response(dumps({"ok": True, "run_id": run_id}), status=202)


def _response(stored: StoredResponse) -> web.Response:
    return raw_json_response(stored.body, status=stored.status)


def _render(
    outcome: RunResult | Exception, *, include: frozenset[str], request_id: str
) -> StoredResponse:
    """Make the response of a run. The result is JSON already and is not parsed again."""
    if isinstance(outcome, RunError):
        return _rendered_failure(outcome, request_id)
    if isinstance(outcome, Exception):
        response = error_response(failure_of(outcome, "a run", request_id=request_id), request_id)
        assert isinstance(response.body, bytes)
        return StoredResponse(response.status, response.body)
    extra: dict[str, Any] = {}
    if "usage" in include:
        extra["usage"] = msgspec.to_builtins(outcome.usage)
    if "session_id" in include:
        extra["session_id"] = outcome.session_id
    tail = dumps({"duration_ms": outcome.duration_ms, "stop_reason": outcome.stop_reason, **extra})
    return StoredResponse(200, b'{"ok":true,"result":' + outcome.result + b"," + tail[1:])


def _rendered_failure(failure: RunError, request_id: str) -> StoredResponse:
    body = encode_json(
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
        ok=False,
    )
    return StoredResponse(failure.status, body)
