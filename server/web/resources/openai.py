"""OpenAI's chat API: any of its clients can talk to an agent, with the app's token as its key."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...agents import usage
from ...auth.prompts import send_prompt
from ...cluster.membership import OtherNodeError
from ...codec import parse_message
from ...errors import Error, bad_request, failure_of
from ...openai import requests
from ...openai.responses import DONE, Completion, UnknownModelError, error_body
from ...sessions import entries
from ...sessions.creation import SessionRequest
from ...sessions.session import Session
from ...sessions.turns import Turn
from ..context import (
    CREDENTIAL,
    DISCONNECT_POLL_SECS,
    LOGGED_SESSION_ID,
    LOGGED_TURN_INDEX,
    REQUEST_ID,
    app_name_of,
    authenticate_app,
    context_of,
    is_disconnected,
    stream_events,
    waiting,
)
from ..endpoint import Endpoint, Tag
from ..field_types import Count
from ..request_body import READ_BODY
from ..request_values import read_body
from ..responses import raw_json_response
from ..sse import SSE

SESSION_HEADER = "X-Session-Id"
CHUNK_EXAMPLE = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795479703,"model":"demo",'
    '"choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}\n\n'
    "data: [DONE]\n\n"
)
ChatHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Model(msgspec.Struct, kw_only=True):
    """An agent, as OpenAI's clients list models."""

    id: str
    object: str
    created: Count
    owned_by: str


class ModelList(msgspec.Struct, kw_only=True):
    """All agents that are installed."""

    object: str
    data: list[Model]


class ChatCompletion(msgspec.Struct, kw_only=True):
    """An agent's answer, in the shape of OpenAI's API."""

    id: str
    object: str
    created: Count
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]


class ChatFailure(msgspec.Struct, kw_only=True):
    """A failure in the shape of OpenAI's API."""

    error: dict[str, Any]


def _with_openai_errors(handler: ChatHandler) -> ChatHandler:
    """Let a handler's failures have the shape of OpenAI's API."""

    @functools.wraps(handler)
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            authenticate_app(request)
            request[CREDENTIAL].require("prompt")
            response = await handler(request)
            if not response.prepared:
                request[CREDENTIAL].check()
        except (web.HTTPException, OtherNodeError):  # the latter is sent to the session's node
            raise
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            failure = failure_of(error, "the request", request_id=request[REQUEST_ID])
            response = raw_json_response(error_body(failure), status=failure.status)
            if failure.retry_after is not None:
                response.headers["Retry-After"] = str(failure.retry_after)
        return response

    return handle


@Endpoint(
    "GET",
    "/v1/models",
    tag=Tag.OPENAI,
    scope="prompt",
    summary="List the agents as models",
    auth_in_handler=True,
    has_ok=False,
    own_failure=ChatFailure,
    example={
        "object": "list",
        "data": [{"id": "demo", "object": "model", "created": 0, "owned_by": "clawdforge"}],
    },
)
@_with_openai_errors
async def list_models(request: web.Request) -> Annotated[web.StreamResponse, ModelList]:
    context = context_of(request)
    models = [
        Model(id=info.name, object="model", created=int(context.started_at), owned_by="clawdforge")
        for info, _ in await context.sessions.agents.all()
        if info.installed
    ]
    return raw_json_response(msgspec.json.encode(ModelList(object="list", data=models)))


@Endpoint(
    "POST",
    "/v1/chat/completions",
    tag=Tag.OPENAI,
    scope="prompt",
    summary="Let an agent answer a chat",
    description="`model` is an agent, or `agent/model`. The messages are the prompt of a new"
    " conversation, which ends with the response. The header `X-Session-Id`, or"
    " `metadata.session_id`, names a session to continue: then only the last message is sent. Tools"
    " are the agent's own. Failures have the shape of OpenAI's API.",
    auth_in_handler=True,
    waits=("body", "work", "stream"),
    has_ok=False,
    own_failure=ChatFailure,
    media={SSE: CHUNK_EXAMPLE},
    example={
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1795479703,
        "model": "demo",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    },
)
@_with_openai_errors
async def complete_chat(request: web.Request) -> Annotated[web.StreamResponse, ChatCompletion]:
    if named := request.headers.get(SESSION_HEADER):
        # Before the body is read: it may have to be passed on to the session's node.
        await context_of(request).sessions.get(named, app_name_of(request))
    async with waiting(request):
        body = await read_body(request, requests.ChatRequest)
    requests.check_format(body)
    sessions, app_name = context_of(request).sessions, app_name_of(request)
    await sessions.accounts.update(app_name)
    # Before a session is made.
    sessions.accounts.check(app_name)
    sessions.quotas.check_has_prompts(app_name)
    async with contextlib.AsyncExitStack() as stack:
        session, blocks = await _chat_session(request, body, stack)
        request[LOGGED_SESSION_ID] = session.id
        accepted = await send_prompt(
            request[CREDENTIAL], session, blocks, request_id=request[REQUEST_ID]
        )
        turn = accepted.turn
        request[LOGGED_TURN_INDEX] = turn.index
        model = body.model or session.row.agent
        completion = Completion(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return await _stream(request, session, turn, completion, with_usage=with_usage)
        await _wait_ended(request, session, turn)
        _check_turn(turn)
        answer = _ChatAnswer()
        async for message in _messages(session, turn):
            answer.add(message)
        whole = completion.whole("".join(answer.texts), turn.stop_reason or "", answer.usage)
        return raw_json_response(whole)


async def _chat_session(
    request: web.Request, body: requests.ChatRequest, stack: contextlib.AsyncExitStack
) -> tuple[Session, list[dict[str, Any]]]:
    """Return the session that the request names, or a new one that *stack* closes; and its prompt.

    Raises:
        Error: the errors of a new session, or ``not_found``.
    """
    sessions, app_name = context_of(request).sessions, app_name_of(request)
    if named := request.headers.get(SESSION_HEADER) or requests.named_session(body):
        try:
            return await sessions.get(named, app_name), requests.last_prompt(body)
        except OtherNodeError:
            request[READ_BODY] = msgspec.json.encode(body)  # for the session's node
            raise
    agent, _, model = (body.model or "").partition("/")
    if agent and agent not in {info.name for info, _ in await sessions.agents.all()}:
        raise UnknownModelError(agent)
    conversation = requests.conversation_of(body)
    session = await sessions.create(
        app_name,
        SessionRequest(agent=agent or None, model=model or None, system=conversation.system),
    )

    async def close() -> None:
        await sessions.close(session, "client")

    # In the background: the response need not wait for the end of the agent.
    stack.callback(lambda: sessions.closing.spawn(close(), f"close-{session.id}-after-chat"))
    return session, conversation.prompt


async def _wait_ended(request: web.Request, session: Session, turn: Turn) -> None:
    """Wait until the turn has ended, or the client has disconnected.

    Raises:
        Error: ``bad_request``; the client has disconnected.
    """
    ended = asyncio.create_task(session.wait_ended(turn), name="openai-turn")
    try:
        async with waiting(request):
            while not ended.done() and not is_disconnected(request):
                await asyncio.wait({ended}, timeout=DISCONNECT_POLL_SECS)
        if not ended.done():
            raise bad_request("the request ended early")
        await ended
    finally:
        ended.cancel()


def _check_turn(turn: Turn) -> None:
    """Raise the error of a turn that failed."""
    if turn.error is not None:
        fields = dict(turn.error)
        code, message, retryable = (fields.pop(name) for name in ("code", "message", "retryable"))
        raise Error(code, message, retryable=retryable, fields=fields)


async def _messages(session: Session, turn: Turn) -> AsyncIterator[dict[str, Any]]:
    """The agent's messages of a turn that has ended."""
    assert turn.first_seq is not None
    assert turn.last_seq is not None
    position = turn.first_seq - 1
    while position < turn.last_seq:
        for batch in await session.log.read(position):
            for line in batch.lines():
                if (message := _chat_message(line, turn)) is not None:
                    yield message
            position = batch.last


def _chat_message(line: bytes, turn: Turn) -> dict[str, Any] | None:
    event = entries.event_of(line)
    if event is None or entries.turn_index_of(line) != turn.index or entries.is_of_subagent(line):
        return None
    return parse_message(event)


class _ChatAnswer:
    """The answer that the messages of a turn form."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.usage = usage.Usage()

    def add(self, message: dict[str, Any]) -> str:
        """Add a message of the agent. Return the text that it adds to the answer."""
        try:
            if "result" in message:
                self.usage = usage.usage_of_acp(message["result"].get("usage"))
                return ""
            update = message["params"]["update"]
            if update["sessionUpdate"] != "agent_message_chunk":
                return ""
            text = update["content"]["text"]
        except (AttributeError, KeyError, TypeError):
            return ""
        if not isinstance(text, str):
            return ""
        self.texts.append(text)
        return text


async def _stream(
    request: web.Request,
    session: Session,
    turn: Turn,
    completion: Completion,
    *,
    with_usage: bool,
) -> web.StreamResponse:
    """Stream the answer. A failure after the beginning is an event of its own."""
    answer = _ChatAnswer()
    async with stream_events(request) as stream:
        async with waiting(request):
            await turn.wait_started()
        await stream.send_frame(completion.chunk({"role": "assistant", "content": ""}))
        assert turn.first_seq is not None
        async for batch in session.log.follow(
            turn.first_seq - 1, stream.keep_alive, idle_secs=stream.keep_alive_secs
        ):
            for line in batch.lines():
                if (message := _chat_message(line, turn)) is None:
                    continue
                answer.texts.clear()
                if text := answer.add(message):
                    await stream.send_frame(completion.chunk({"content": text}))
            if turn.last_seq is not None and batch.last >= turn.last_seq:
                break
        try:
            _check_turn(turn)
        except Error as error:
            await stream.send_frame(error_body(error))
            return stream.response
        await stream.send_frame(completion.chunk({}, turn.stop_reason or ""))
        if with_usage:
            await stream.send_frame(completion.usage_chunk(answer.usage))
        await stream.send_frame(DONE)
    return stream.response
