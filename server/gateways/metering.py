"""Counts the tokens in the responses of the providers' APIs, while they pass through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..agents.usage import Usage, tokens_in
from ..codec import parse_message

MAX_BYTES = 1 << 20
"""A longer line of a stream, and a longer object, is not searched."""


class ResponseMeter:
    """Finds the usage in one response: a stream of server-sent events, or one JSON object.

    Args:
        is_stream: the response is a stream.
    """

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream
        self._rest = b""
        self._counts: dict[str, Any] = {}
        self._counted = Usage()
        self._is_too_long = False
        self._has_new = False

    def feed(self, data: bytes) -> None:
        """Note a piece of the response."""
        if self._is_stream:
            *lines, rest = (self._rest + data).split(b"\n")
            for line in lines:
                if not self._is_too_long:
                    self._read_line(line)
                self._is_too_long = False
            self._rest = rest
        elif not self._is_too_long:
            self._rest += data
        if len(self._rest) > MAX_BYTES:
            self._rest, self._is_too_long = b"", True

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b"data:") and (b'"usage' in line):  # also Gemini's "usageMetadata"
            self._note_usage(parse_message(line[5:].strip()))

    def _note_usage(self, message: Mapping[str, Any] | None) -> None:
        for holder in (message, _object_at(message, "message"), _object_at(message, "response")):
            for name in ("usage", "usageMetadata"):
                if (counts := _object_at(holder, name)) is not None:
                    self._counts.update(counts)
                    self._has_new = True

    def complete(self) -> None:
        """Note that the response is complete."""
        if not self._is_stream and self._rest:
            self._note_usage(parse_message(self._rest))
            self._rest = b""

    def take(self) -> Usage | None:
        """The tokens that were found since the last call; None if there are none."""
        if not self._has_new:
            return None
        self._has_new = False
        usage, before = _usage_of(self._counts), self._counted
        self._counted = usage
        return usage.minus(before)


def _object_at(holder: Any, name: str) -> dict[str, Any] | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    return value if isinstance(value, dict) else None


def _usage_of(counts: Mapping[str, Any]) -> Usage:
    """The usage in the form of one of the providers. Input does not include cached tokens."""
    if "promptTokenCount" in counts:
        cached = tokens_in(counts, "cachedContentTokenCount")
        thoughts = tokens_in(counts, "thoughtsTokenCount")
        return Usage(
            input_tokens=_minus(tokens_in(counts, "promptTokenCount"), cached),
            output_tokens=_plus(tokens_in(counts, "candidatesTokenCount"), thoughts),
            cached_read_tokens=cached,
            thought_tokens=thoughts,
        )
    details = _object_at(counts, "input_tokens_details") or _object_at(
        counts, "prompt_tokens_details"
    )
    if details is not None or "prompt_tokens" in counts:
        cached = tokens_in(details or {}, "cached_tokens")
        out = _object_at(counts, "output_tokens_details") or _object_at(
            counts, "completion_tokens_details"
        )
        given = _first_count(counts, "input_tokens", "prompt_tokens")
        return Usage(
            input_tokens=_minus(given, cached),
            output_tokens=_first_count(counts, "output_tokens", "completion_tokens"),
            cached_read_tokens=cached,
            thought_tokens=tokens_in(out or {}, "reasoning_tokens"),
        )
    return Usage(
        input_tokens=tokens_in(counts, "input_tokens"),
        output_tokens=tokens_in(counts, "output_tokens"),
        cached_read_tokens=tokens_in(counts, "cache_read_input_tokens"),
        cached_write_tokens=tokens_in(counts, "cache_creation_input_tokens"),
    )


def _first_count(counts: Mapping[str, Any], *names: str) -> Any:
    return next((tokens_in(counts, name) for name in names if name in counts), tokens_in({}, ""))


def _minus(count: Any, other: Any) -> Any:
    both = isinstance(count, int) and isinstance(other, int)
    return max(0, count - other) if both else count


def _plus(count: Any, other: Any) -> Any:
    both = isinstance(count, int) and isinstance(other, int)
    return count + other if both else count
