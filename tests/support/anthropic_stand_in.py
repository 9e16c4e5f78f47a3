"""A stand-in for the Anthropic Messages API on 127.0.0.1, for the real ``claude`` program.

It answers streaming ``POST /v1/messages`` with what a test has planned, and keeps
what it was asked:

    async with stand_in() as api:
        api.plan(Text("hello"), Failure(529))   # one answer each, in order
        api.always(Text("and so on"))           # when no plan is left
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
from typing import Any

from aiohttp import web

Json = dict[str, Any]

# The names that the API gives its failures.
KINDS = {
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
    """A text, streamed in *pieces*; ``pause`` is the seconds between two of them."""

    text: str
    stop_reason: str = "end_turn"
    pieces: int = 3
    pause: float = 0.0


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """A call of one of Claude's tools; the next request brings what came of it."""

    name: str
    input: Json


@dataclasses.dataclass(frozen=True)
class Failure:
    """An error, as the API tells it."""

    status: int
    message: str = "planned by the test"


@dataclasses.dataclass(frozen=True)
class Hang:
    """The beginning of an answer, *text*, and nothing more; if that is None, nothing at all."""

    text: str | None = None


Reply = Text | ToolUse | Failure | Hang
Plan = Reply | Callable[[Json], Reply]
"""An answer, or what makes one from the request's body."""

ERRAND = Text("Errand")


class StandIn:
    """The running stand-in.

    A request without tools is claude's own errand (a title for the session, at any
    time), and so is one for what the user may want next: it gets a word, and is neither
    planned for nor kept.

    Attributes:
        url: its base address.
        requests: the bodies of all other requests, as they came.
        asked: set whenever a request has come; a test may clear it.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Json] = []
        self.asked = asyncio.Event()
        self._plan: deque[Plan] = deque()
        self._rest: Plan = Text("OK")
        self._over = asyncio.Event()

    def plan(self, *replies: Plan) -> None:
        self._plan.extend(replies)

    def always(self, reply: Plan) -> None:
        self._rest = reply

    @property
    def environ(self) -> dict[str, str]:
        """What makes claude talk to the stand-in, and to nothing else."""
        return {
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "sk-ant-a-dummy-of-the-tests",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def texts(self) -> list[str]:
        """Every text that the last request's messages hold."""
        return texts_of(self.requests[-1])

    def system(self) -> str:
        """The system prompt of the last request."""
        blocks = _blocks(self.requests[-1].get("system", ""))
        return "\n".join(block["text"] for block in blocks)

    def tool_results(self) -> list[Json]:
        """What came of tools, in the last request."""
        return [
            block
            for message in self.requests[-1]["messages"]
            for block in _blocks(message["content"])
            if block.get("type") == "tool_result"
        ]

    def take_reply(self, body: Json) -> Reply:
        """The next planned answer to a request with that body."""
        planned = self._plan.popleft() if self._plan else self._rest
        return planned(body) if callable(planned) else planned

    async def wait_for_release(self) -> None:
        await self._over.wait()

    def release(self) -> None:
        """Let go of the requests that hang."""
        self._over.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("tools") and not _is_suggestion(body):
            self.requests.append(body)
            reply = self.take_reply(body)
            self.asked.set()
        else:
            reply = ERRAND
        if isinstance(reply, Failure):
            error = {"type": KINDS[reply.status], "message": reply.message}
            return web.json_response({"type": "error", "error": error}, status=reply.status)
        if isinstance(reply, Hang) and reply.text is None:
            await self._over.wait()
            return web.Response(status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        # A claude that was ended in mid-answer is no failure of the stand-in's.
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
                await self._over.wait()
                return
            assert isinstance(reply, Text)
            stop_reason = reply.stop_reason
            for piece in _cut(reply.text, reply.pieces):
                await say(piece)
                await asyncio.sleep(reply.pause)
        await send("content_block_stop", index=0)
        ending = {"stop_reason": stop_reason, "stop_sequence": None}
        await send("message_delta", delta=ending, usage={"output_tokens": 5})
        await send("message_stop")


def texts_of(body: Json) -> list[str]:
    """Every text that a request's messages hold."""
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


def _cut(text: str, pieces: int) -> list[str]:
    size = max(1, -(-len(text) // pieces))
    return [text[start : start + size] for start in range(0, len(text), size)]


@contextlib.asynccontextmanager
async def stand_in() -> AsyncIterator[StandIn]:
    api = StandIn()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/messages", api.answer)
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
