"""Turns: prompt the agent and wait for the result, or cancel the running turn."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...auth.prompts import send_prompt_with_files
from ...errors import ErrorCode, bad_request
from ...sessions import entries
from ...sessions.content import check_content
from ...sessions.session import Session
from ...sessions.steering import SteerRequest
from ...sessions.turns import Acceptance, Turn
from ...validation import ClientId
from ..context import (
    CREDENTIAL,
    LOGGED_TURN_INDEX,
    PROMPT_ID,
    REQUEST_ID,
    context_of,
    stream_events,
    stream_json,
    waiting,
)
from ..endpoint import Endpoint, Tag
from ..field_types import (
    AuthMethods,
    Count,
    ErrorMessage,
    FailureCode,
    FileTokens,
    RequestId,
    ResetsAt,
    Timeout,
    TurnIndex,
    doc,
)
from ..responses import RESPONSE_PIECE_BYTES, encode_json, json_response, raw_json_response
from ..sse import SSE, STREAM_EXAMPLE, EventStream, wants_stream
from ..turn_reply import (
    MemoryBusyError,
    events_of,
    has_short_events,
    reserve_reply_memory,
    short_events,
    spliced,
)
from ..waits import WaitedTurn, continued_turn, waiting_for

TURN_EXAMPLE = {
    "ok": True,
    "session_id": "939bcc2f-7d70-4aa0-ac3d-6e87dc2c0f17",
    "turn_index": 1,
    "stop_reason": "end_turn",
    "duration_ms": 4369,
    "events": [{"jsonrpc": "2.0", "id": 2, "result": {"stopReason": "end_turn"}}],
}


class PromptContent(list[dict[str, Any]]):
    """The content blocks of a prompt, checked; each is kept as the client sent it."""

    @classmethod
    def from_json(cls, value: Any) -> PromptContent:
        if not isinstance(value, (str, list)):
            raise bad_request("prompt: must be text or a list of content blocks")
        return cls(check_content(value))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"$ref": "#/components/schemas/ContentBlock"},
                },
            ]
        }


class RunTurn(msgspec.Struct, frozen=True):
    """A prompt."""

    prompt: Annotated[PromptContent, doc("Text, or ACP content blocks.")]
    files: FileTokens = None
    timeout_secs: Timeout | None = None
    steer: Annotated[
        bool,
        doc(
            "Add the prompt to the running turn, if the agent accepts it there. The response is"
            " then that of the running turn."
        ),
    ] = False


class TurnHeaders(msgspec.Struct, frozen=True):
    """The headers of a turn."""

    idempotency_key: Annotated[
        ClientId | None,
        doc("A repeated key in the same session returns the stored turn and runs nothing."),
    ] = msgspec.field(default=None, name="Idempotency-Key")


EventsOmitted = Annotated[bool, doc("Whether `events` is empty because the events are too long.")]
Steered = Annotated[
    bool | msgspec.UnsetType,
    doc("Only for a prompt with `steer`: whether it was added to this turn."),
]
OmittedSeq = Annotated[
    Annotated[int, msgspec.Meta(ge=1)] | None,
    doc("With `events_omitted`: the `seq` of the turn's first or last entry in the log."),
]


class TurnResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A turn that has ended."""

    session_id: str
    turn_index: TurnIndex
    stop_reason: str
    duration_ms: Count
    steered: Steered = msgspec.UNSET
    events: Annotated[
        list[dict[str, Any]],
        doc("The agent's raw ACP messages; the last one is its response."),
    ]
    events_omitted: EventsOmitted = False
    first_seq: OmittedSeq = None
    last_seq: OmittedSeq = None


class TurnFailure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A turn that failed."""

    code: FailureCode
    retryable: bool
    auth_methods: AuthMethods = msgspec.UNSET
    resets_at: ResetsAt = msgspec.UNSET
    error: ErrorMessage
    session_id: str
    turn_index: TurnIndex
    stop_reason: str
    duration_ms: Count
    steered: Steered = msgspec.UNSET
    request_id: RequestId
    events: list[dict[str, Any]]
    events_omitted: EventsOmitted = False
    first_seq: OmittedSeq = None
    last_seq: OmittedSeq = None


class CancelResult(msgspec.Struct, kw_only=True):
    """Whether a turn was running."""

    cancelled: bool


@Endpoint(
    "POST",
    "/sessions/{session_id}/turn",
    tag=Tag.TURNS,
    scope="prompt",
    summary="Prompt the agent and wait for the end of the turn",
    description="With `Accept: text/event-stream` the turn's log entries are sent as server-sent"
    " events, and the status is 200 however the turn ends.",
    waits=("body", "work", "response", "stream"),
    request_example={"prompt": "hello"},
    example=TURN_EXAMPLE,
    media={SSE: STREAM_EXAMPLE},
    failures=("budget_exceeded", "session_closed", "queue_full", "rate_limited", "draining"),
    failure_results={
        400: TurnFailure,  # for example a mode that the agent does not have
        402: TurnFailure,  # the budget was used up while the prompt was queued
        500: TurnFailure,
        502: TurnFailure,
        503: TurnFailure,
        504: TurnFailure,
    },
)
async def prompt_session(
    request: web.Request, session: Session, body: RunTurn, headers: TurnHeaders
) -> Annotated[web.StreamResponse, TurnResult]:
    key = headers.idempotency_key
    # Bytes of a header that are not UTF-8 arrive as unpaired surrogates.
    if key is not None and re.search("[\ud800-\udfff]", key):
        raise bad_request("Idempotency-Key: must be UTF-8")
    key = request.get(PROMPT_ID) if key is None else key
    if (continued := continued_turn(request)) is None:
        accepted = await _accept_prompt(request, session, body, key)
        is_steered = accepted.is_steered if body.steer or accepted.is_steered else None
        turn = accepted.turn
    else:
        known_turn = await session.turns.continuation.turn_of(continued.turn_index)
        assert known_turn is not None
        turn = known_turn
        is_steered = continued.is_steered
    del body  # the session has the prompt; a request that waits need not hold it as well
    request[LOGGED_TURN_INDEX] = turn.index
    if wants_stream(request):
        return await _stream_turn(request, session, turn)
    with waiting_for(request, WaitedTurn(turn.index, is_steered)):
        async with waiting(request):
            await session.wait_ended(turn)
    return await _turn_response(request, session, turn, is_steered)


async def _accept_prompt(
    request: web.Request, session: Session, body: RunTurn, key: str | None
) -> Acceptance:
    async with waiting(request) if body.steer else contextlib.nullcontext():
        return await send_prompt_with_files(
            request[CREDENTIAL],
            session,
            context_of(request).files,
            body.prompt,
            body.files or [],
            request_id=request[REQUEST_ID],
            client_id=key,
            timeout=body.timeout_secs,
            steer=SteerRequest() if body.steer else None,
        )


async def _turn_response(
    request: web.Request, session: Session, turn: Turn, is_steered: bool | None
) -> web.StreamResponse:
    """Return a turn's result. The agent's raw ACP messages are spliced into it unchanged.

    If they are too long, the result says so and gives their position in the log.
    """
    result, status = _result_of(session, turn, request[REQUEST_ID])
    if is_steered is not None:
        result.steered = is_steered
    head = encode_json(result, ok=status < 400).removesuffix(b"]}")
    limit = context_of(request).settings.max_reply_bytes
    events = await short_events(session, turn, min(limit, RESPONSE_PIECE_BYTES))
    if events is not None:  # nearly always
        return raw_json_response(head + b",".join(events) + b"]}", status=status)
    # The events of a few long replies at once would use several times their size.
    with contextlib.suppress(MemoryBusyError):
        async with reserve_reply_memory(request):
            if await has_short_events(session, turn, limit):
                pieces = spliced(head, events_of(session, turn))
                return await stream_json(request, pieces, status=status)
    result.events_omitted = True
    result.first_seq, result.last_seq = turn.first_seq, turn.last_seq
    return json_response(result, status=status)


def _result_of(
    session: Session, turn: Turn, request_id: str
) -> tuple[TurnResult | TurnFailure, int]:
    """Return a turn's result without its events, and the status of the response."""
    if turn.error is None:
        result = TurnResult(
            session_id=session.id,
            turn_index=turn.index,
            stop_reason=turn.stop_reason or "",
            duration_ms=turn.duration_ms,
            events=[],
        )
        return result, 200
    error = dict(turn.error)
    failure = TurnFailure(
        error=error.pop("message"),
        **error,
        session_id=session.id,
        turn_index=turn.index,
        stop_reason=turn.stop_reason or "",
        duration_ms=turn.duration_ms,
        request_id=request_id,
        events=[],
    )
    return failure, ErrorCode(failure.code).status


async def _stream_turn(request: web.Request, session: Session, turn: Turn) -> web.StreamResponse:
    """Stream the turn's entries up to its end, and comments while it is queued."""
    async with stream_events(request) as stream:
        await _wait_for_start(turn, stream)
        assert turn.first_seq is not None
        async for batch in session.log.follow(
            turn.first_seq - 1, stream.keep_alive, idle_secs=stream.keep_alive_secs
        ):
            for seq, line in enumerate(batch.lines(), batch.first):
                if entries.turn_index_of(line) == turn.index:
                    await stream.send(seq, line)
                if turn.last_seq is not None and seq >= turn.last_seq:
                    return stream.response
    return stream.response


async def _wait_for_start(turn: Turn, stream: EventStream) -> None:
    """Keep the stream alive until the turn has its first entry."""
    while not turn.has_started:
        try:
            async with asyncio.timeout(stream.keep_alive_secs):
                await turn.wait_started()
        except TimeoutError:
            await stream.keep_alive()


@Endpoint(
    "POST",
    "/sessions/{session_id}/cancel",
    tag=Tag.TURNS,
    scope="prompt",
    summary="Cancel the running turn",
    example={"ok": True, "cancelled": True},
)
async def cancel_turn(request: web.Request, session: Session) -> CancelResult:
    return CancelResult(cancelled=session.cancel())
