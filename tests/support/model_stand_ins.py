"""Stand-ins for the model APIs of real agents other than ``claude``, on 127.0.0.1.

OpenAI's Responses API (codex) and chat completions (qwen), and Gemini's API. Replies are planned
and requests are recorded as in ``anthropic_stand_in.py``.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from aiohttp import web

from .anthropic_stand_in import BACKGROUND_REPLY, Failure, Hang, Json, Reply, StandIn, Text, ToolUse

GEMINI_REASONS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
}


class ModelApi(StandIn):
    """The common part of the three APIs: they stream server-sent events."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        body.setdefault("model", request.match_info.get("model"))
        if not self._has_tools(body):  # a background request of the agent, for example for a title
            reply: Reply = BACKGROUND_REPLY
        else:
            self.requests.append(body)
            reply = self.next_reply(body)
            self.asked.set()
        if isinstance(reply, Failure):
            return web.json_response(self._failure(reply), status=reply.status)
        if isinstance(reply, Hang):
            await self.wait_for_release()
            return web.Response(status=500)
        events = self._events(reply, str(body["model"]))
        if not self._streams(request, body):
            return web.json_response(self._joined(events))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            for event in events:
                name = f"event: {event['type']}\n" if "type" in event else ""
                await response.write(f"{name}data: {json.dumps(event)}\n\n".encode())
            await self._finish(response)
        return response

    def _has_tools(self, body: Json) -> bool:
        return bool(body.get("tools"))

    def _streams(self, request: web.Request, body: Json) -> bool:
        return bool(body.get("stream"))

    def _failure(self, failure: Failure) -> Any:
        raise NotImplementedError

    def _events(self, reply: Text | ToolUse, model: str) -> list[Json]:
        raise NotImplementedError

    def _joined(self, events: list[Json]) -> Json:
        raise NotImplementedError

    async def _finish(self, response: web.StreamResponse) -> None:
        """Write the end of the stream."""


class ResponsesApi(ModelApi):
    """OpenAI's Responses API."""

    paths = ("/v1/responses",)

    def _has_tools(self, body: Json) -> bool:
        if "creating a title" in json.dumps(body["input"][-1]):
            return False
        return any(item.get("type") == "additional_tools" for item in body["input"]) or bool(
            body.get("tools")
        )

    def _failure(self, failure: Failure) -> Json:
        code = {401: "invalid_api_key"}.get(failure.status)
        return {
            "error": {
                "message": failure.message,
                "type": "invalid_request_error",
                "param": None,
                "code": code,
            }
        }

    def _events(self, reply: Text | ToolUse, model: str) -> list[Json]:
        number = len(self.requests)
        base: Json = {"id": f"resp_{number}", "object": "response", "model": model}
        item: Json
        if isinstance(reply, ToolUse):
            item = {
                "type": "function_call",
                "id": f"fc_{number}",
                "call_id": f"call_{number}",
                "name": reply.name,
                "arguments": json.dumps(reply.input),
            }
            if set(reply.input) == {"input"}:  # a tool that takes free text
                item = {
                    "type": "custom_tool_call",
                    "id": f"ctc_{number}",
                    "call_id": f"call_{number}",
                    "name": reply.name,
                    "input": reply.input["input"],
                }
            middle: list[Json] = []
        else:
            content = [{"type": "output_text", "text": reply.text, "annotations": []}]
            item = {"type": "message", "id": f"msg_{number}", "role": "assistant"}
            item |= {"status": "completed", "content": content}
            middle = [
                {
                    "type": "response.output_text.delta",
                    "item_id": item["id"],
                    "output_index": 0,
                    "content_index": 0,
                    "delta": reply.text,
                }
            ]
        usage = {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 15,
        }
        added = {**item, "content": []} if "content" in item else item
        done = {**base, "status": "completed", "output": [item], "usage": usage}
        return [
            {"type": "response.created", "response": {**base, "status": "in_progress"}},
            {"type": "response.output_item.added", "output_index": 0, "item": added},
            *middle,
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": done},
        ]

    def _joined(self, events: list[Json]) -> Json:
        return dict(events[-1]["response"])


class ChatApi(ModelApi):
    """OpenAI's chat completions."""

    paths = ("/v1/chat/completions",)

    def _has_tools(self, body: Json) -> bool:
        # After a turn, qwen extracts memories from it, with tools.
        is_extraction = "Managed memory has TWO directories" in json.dumps(body["messages"][-1])
        return super()._has_tools(body) and not is_extraction

    def _failure(self, failure: Failure) -> Json:
        code = {401: "invalid_api_key"}.get(failure.status)
        return {"error": {"message": failure.message, "type": "api_error", "code": code}}

    def _events(self, reply: Text | ToolUse, model: str) -> list[Json]:
        number = len(self.requests)
        base = {"id": f"chat_{number}", "object": "chat.completion.chunk", "created": 1}
        base |= {"model": model}
        delta: Json
        if isinstance(reply, ToolUse):
            call = {"name": reply.name, "arguments": json.dumps(reply.input)}
            calls = [{"index": 0, "id": f"call_{number}", "type": "function", "function": call}]
            delta, reason = (
                {"role": "assistant", "content": None, "tool_calls": calls},
                "tool_calls",
            )
        else:
            delta, reason = {"role": "assistant", "content": reply.text}, "stop"
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        ending = {"index": 0, "delta": {}, "finish_reason": reason}
        return [
            {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {**base, "choices": [ending], "usage": usage},
        ]

    def _joined(self, events: list[Json]) -> Json:
        first, last = events
        message = first["choices"][0]["delta"]
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": last["choices"][0]["finish_reason"],
        }
        return {**last, "object": "chat.completion", "choices": [choice]}

    async def _finish(self, response: web.StreamResponse) -> None:
        await response.write(b"data: [DONE]\n\n")


class GeminiApi(ModelApi):
    """Gemini's generateContent and streamGenerateContent."""

    paths = (
        "/v1beta/models/{model}:streamGenerateContent",
        "/v1beta/models/{model}:generateContent",
    )

    def _streams(self, request: web.Request, body: Json) -> bool:
        return request.path.endswith(":streamGenerateContent")

    def _failure(self, failure: Failure) -> Json:
        reason = GEMINI_REASONS.get(failure.status, "UNKNOWN")
        return {"error": {"code": failure.status, "message": failure.message, "status": reason}}

    def _events(self, reply: Text | ToolUse, model: str) -> list[Json]:
        if isinstance(reply, ToolUse):
            part: Json = {"functionCall": {"name": reply.name, "args": reply.input}}
        else:
            part = {"text": reply.text}
        usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
        content = {"role": "model", "parts": [part]}
        candidate = {"content": content, "finishReason": "STOP", "index": 0}
        return [{"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}]

    def _joined(self, events: list[Json]) -> Json:
        return events[0]
