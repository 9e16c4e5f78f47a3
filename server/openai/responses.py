"""Turns as completions of OpenAI's chat API, and failures as its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..agents.usage import Usage
from ..codec import dumps
from ..errors import Error, ErrorCode

_FINISH_REASONS: Mapping[str, str] = {
    "max_tokens": "length",
    "max_turn_requests": "length",
    "refusal": "content_filter",
}
_ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
DONE = b"[DONE]"


class Completion:
    """The answer of one request.

    Args:
        completion_id: unique.
        created: unix seconds.
        model: as the request named it.
    """

    def __init__(self, completion_id: str, created: int, model: str) -> None:
        self._about = {"id": completion_id, "created": created, "model": model}

    def whole(self, text: str, stop_reason: str, usage: Usage) -> bytes:
        """The response to a request without a stream."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(stop_reason),
        }
        return dumps(
            {
                **self._about,
                "object": "chat.completion",
                "choices": [choice],
                "usage": usage_fields(usage),
            }
        )

    def chunk(self, delta: Mapping[str, Any], stop_reason: str | None = None) -> bytes:
        """A piece of a stream.

        Args:
            stop_reason: of the last piece.
        """
        reason = None if stop_reason is None else finish_reason(stop_reason)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return dumps({**self._about, "object": "chat.completion.chunk", "choices": [choice]})

    def usage_chunk(self, usage: Usage) -> bytes:
        """The piece of a stream that has the usage."""
        return dumps(
            {
                **self._about,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": usage_fields(usage),
            }
        )


class UnknownModelError(Error):
    """No agent has the name that a request gave as its model."""

    def __init__(self, agent: str) -> None:
        super().__init__(ErrorCode.NOT_FOUND, f"there is no agent {agent!r}: see GET /v1/models")


def finish_reason(stop_reason: str) -> str:
    """OpenAI's name for ACP's stop reason."""
    return _FINISH_REASONS.get(stop_reason, "stop")


def usage_fields(usage: Usage) -> dict[str, Any]:
    """The usage of a turn; zero if the agent has not reported it."""
    values = msgspec.to_builtins(usage)
    read = values.get("cached_read_tokens", 0)
    prompt = values.get("input_tokens", 0) + read + values.get("cached_write_tokens", 0)
    output = values.get("output_tokens", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": read},
        "completion_tokens_details": {"reasoning_tokens": values.get("thought_tokens", 0)},
    }


def error_body(error: Error) -> bytes:
    """The body of a failure."""
    kind = _ERROR_TYPES.get(error.status, "server_error")
    # OpenAI's clients have an error of their own for this code.
    code = "model_not_found" if isinstance(error, UnknownModelError) else str(error.code)
    described = {"message": error.message, "type": kind, "param": None, "code": code}
    more = {name: error.fields[name] for name in ("resets_at",) if name in error.fields}
    return dumps({"error": {**described, **more}})
