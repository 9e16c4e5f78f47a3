"""A stand-in for the Anthropic Messages API on 127.0.0.1, for the real ``claude`` program.

It answers streaming ``POST /v1/messages`` with the replies that a test has planned, and records
the requests:

    async with stand_in() as api:
        api.plan(Text("hello"), Failure(529))   # one reply for each request, in order
        api.always(Text("and so on"))           # for all further requests
        ...  # start claude with api.environ
        api.requests[0]["messages"]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from aiohttp import web

Json = dict[str, Any]

# The error types of the API.
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclasses.dataclass(frozen=True)
class Text:
    """A text, streamed in *pieces*, with a *pause* in seconds after each of them."""

    text: str
    stop_reason: str = "end_turn"
    pieces: int = 3
    pause: float = 0.0


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """A call of one of Claude's tools. The next request contains its result."""

    name: str
    input: Json


@dataclasses.dataclass(frozen=True)
class Failure:
    """An error response."""

    status: int
    message: str = "planned by the test"


@dataclasses.dataclass(frozen=True)
class Hang:
    """A reply that never ends, after *text*. If *text* is None, there is no reply at all."""

    text: str | None = None


Reply = Text | ToolUse | Failure | Hang
Plan = Reply | Callable[[Json], Reply]
"""A reply, or a function that makes one from the request's body."""

BACKGROUND_REPLY = Text("Background")


class StandIn:
    """The running stand-in.

    Claude also sends background requests at any time: for a title (a request without tools) and
    for a suggestion. They get a fixed reply, and are neither planned nor recorded.

    Attributes:
        paths: the paths at which it answers.
        url: the base URL.
        requests: the bodies of all other requests, in order.
        keys: the keys with which all requests were sent.
        asked: set by each request; a test may clear it.
    """

    paths: tuple[str, ...] = ("/v1/messages",)

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Json] = []
        self.keys: set[str] = set()
        self.asked = asyncio.Event()
        self._plan: deque[Plan] = deque()
        self._rest: Plan = Text("OK")
        self._released = asyncio.Event()

    def plan(self, *replies: Plan) -> None:
        self._plan.extend(replies)

    def always(self, reply: Plan) -> None:
        self._rest = reply

    @property
    def environ(self) -> dict[str, str]:
        """The environment with which claude talks to the stand-in only."""
        return {
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "sk-ant-a-dummy-of-the-tests",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def texts(self) -> list[str]:
        """All texts in the messages of the last request."""
        return texts_of(self.requests[-1])

    def system(self) -> str:
        """The system prompt of the last request."""
        blocks = _blocks(self.requests[-1].get("system", ""))
        return "\n".join(block["text"] for block in blocks)

    def tool_results(self) -> list[Json]:
        """The tool results in the last request."""
        return [
            block
            for message in self.requests[-1]["messages"]
            for block in _blocks(message["content"])
            if block.get("type") == "tool_result"
        ]

    def next_reply(self, body: Json) -> Reply:
        """The next planned reply, for a request with that body."""
        planned = self._plan.popleft() if self._plan else self._rest
        return planned(body) if callable(planned) else planned

    async def wait_for_release(self) -> None:
        await self._released.wait()

    def release(self) -> None:
        """End the requests that hang."""
        self._released.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("tools") and not _is_suggestion(body):
            self.requests.append(body)
            reply = self.next_reply(body)
            self.asked.set()
        else:
            reply = BACKGROUND_REPLY
        if isinstance(reply, Failure):
            error = {"type": ERROR_TYPES[reply.status], "message": reply.message}
            return web.json_response({"type": "error", "error": error}, status=reply.status)
        if isinstance(reply, Hang) and reply.text is None:
            await self._released.wait()
            return web.Response(status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        # Claude may be ended in the middle of a reply.
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            await self._stream(response, reply, body["model"])
        return response

    async def _stream(self, response: web.StreamResponse, reply: Reply, model: str) -> None:
        async def send(kind: str, **fields: Any) -> None:
            data = json.dumps({"type": kind, **fields})
            await response.write(f"event: {kind}\ndata: {data}\n\n".encode())

        usage = {"input_tokens": 10, "output_tokens": 1}
        head = {"id": f"msg_{len(self.requests)}", "type": "message", "role": "assistant"}
        empty: Json = {"model": model, "content": [], "stop_reason": None, "stop_sequence": None}
        await send("message_start", message={**head, **empty, "usage": usage})
        stop_reason = "end_turn"
        if isinstance(reply, ToolUse):
            stop_reason = "tool_use"
            block = {"type": "tool_use", "id": f"toolu_{len(self.requests)}", "name": reply.name}
            await send("content_block_start", index=0, content_block={**block, "input": {}})
            delta = {"type": "input_json_delta", "partial_json": json.dumps(reply.input)}
            await send("content_block_delta", index=0, delta=delta)
        else:
            await send("content_block_start", index=0, content_block={"type": "text", "text": ""})

            async def say(text: str) -> None:
                delta = {"type": "text_delta", "text": text}
                await send("content_block_delta", index=0, delta=delta)

            if isinstance(reply, Hang):
                await say(reply.text or "")
                await self._released.wait()
                return
            assert isinstance(reply, Text)
            stop_reason = reply.stop_reason
            for piece in _split(reply.text, reply.pieces):
                await say(piece)
                await asyncio.sleep(reply.pause)
        await send("content_block_stop", index=0)
        ending = {"stop_reason": stop_reason, "stop_sequence": None}
        await send("message_delta", delta=ending, usage={"output_tokens": 5})
        await send("message_stop")


Api = TypeVar("Api", bound=StandIn)


def texts_of(body: Json) -> list[str]:
    """All texts in the messages of a request."""
    return [
        block["text"]
        for message in body["messages"]
        for block in _blocks(message["content"])
        if block.get("type") == "text"
    ]


def _is_suggestion(body: Json) -> bool:
    return any(text.startswith("[SUGGESTION MODE") for text in texts_of(body)[-1:])


def _blocks(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _split(text: str, pieces: int) -> list[str]:
    size = max(1, -(-len(text) // pieces))
    return [text[start : start + size] for start in range(0, len(text), size)]


def stand_in() -> contextlib.AbstractAsyncContextManager[StandIn]:
    """Run a stand-in for the Anthropic Messages API."""
    return serve_api(StandIn)


@contextlib.asynccontextmanager
async def serve_api(make: Callable[[], Api]) -> AsyncIterator[Api]:
    """Run the stand-in that *make* returns."""
    api = make()

    @web.middleware
    async def note_key(request: web.Request, handler: Any) -> web.StreamResponse:
        for name in ("x-api-key", "x-goog-api-key", "Authorization"):
            if value := request.headers.get(name):
                api.keys.add(value.removeprefix("Bearer "))
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application(client_max_size=64 << 20, middlewares=[note_key])
    for path in api.paths:
        app.router.add_post(path, api.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield api
    finally:
        api.release()
        await runner.cleanup()
