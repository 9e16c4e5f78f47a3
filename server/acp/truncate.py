"""Shortens messages for clients that accept only messages up to some size.

A text chunk is divided into several chunks. Any other message is sent without its longest parts and
with a note in its `_meta`; the log keeps the complete message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..codec import dumps, parse_message
from .params import NAMESPACE

DEFAULT_MAX_BYTES = 1 << 20
"""The default size limit of a message: the official Python SDK closes at a byte more."""
MEDIA = {"image", "audio", "resource"}
TEXT_CHUNKS = {"user_message_chunk", "agent_message_chunk", "agent_thought_chunk"}
ROUNDS = ((64 << 10, 1000), (4 << 10, 100), (256, 20))
"""Attempts to shorten a message: the length of each text, and the number of items of each list."""
MAX_BYTES_PER_CHARACTER = 6


def truncate_message(message: bytes, limit: int, seq: int | None = None) -> list[bytes]:
    """The messages to send instead of *message*; none if it cannot be shortened enough.

    Args:
        message: the JSON of a notification or request.
        limit: bytes of one message.
        seq: the position of the complete message in the log, if it is known.
    """
    if len(message) <= limit:
        return [message]
    value = parse_message(message)
    assert value is not None
    params = value.get("params")
    if isinstance(params, dict):
        if _is_text_chunk(params.get("update")):
            return _split_text(value, limit)
        for text_length, items in ROUNDS:
            shorter = dumps({**value, "params": _shorten_params(params, text_length, items, seq)})
            if len(shorter) <= limit:
                return [shorter]
    return []


def _is_text_chunk(update: Any) -> bool:
    return (
        isinstance(update, dict)
        and update.get("sessionUpdate") in TEXT_CHUNKS
        and isinstance(update.get("content"), dict)
        and update["content"].get("type") == "text"
        and isinstance(update["content"].get("text"), str)
    )


def _split_text(value: dict[str, Any], limit: int) -> list[bytes]:
    """Divide a text chunk into several."""
    params = value["params"]
    update = params["update"]
    text: str = update["content"]["text"]

    def chunk(start: int, end: int) -> bytes:
        content = {**update["content"], "text": text[start:end]}
        return dumps({**value, "params": {**params, "update": {**update, "content": content}}})

    pieces = []
    start = 0
    least = max(1, (limit - len(chunk(0, 0))) // MAX_BYTES_PER_CHARACTER)
    while start < len(text):
        # Most text takes one byte per character, so that size is tried first.
        size = least * MAX_BYTES_PER_CHARACTER
        while len(piece := chunk(start, start + size)) > limit and size > least:
            size = max(least, size // 2)
        pieces.append(piece)
        start += size
    return pieces


def _shorten_params(
    params: dict[str, Any], text_length: int, items: int, seq: int | None
) -> dict[str, Any]:
    """*params* without its long parts, and with a note in ``_meta``."""
    shorten = _shortener(text_length, items)
    mark = {NAMESPACE: {"shortened": True} if seq is None else {"shortened": True, "seq": seq}}
    shortened: dict[str, Any] = {key: shorten(part) for key, part in params.items()}
    meta = shortened.get("_meta")
    shortened["_meta"] = {**meta, **mark} if isinstance(meta, dict) else mark
    return shortened


def _shortener(text_length: int, items: int) -> Callable[[Any], Any]:
    def shorten(part: Any) -> Any:
        if isinstance(part, str):
            if len(part) <= text_length:
                return part
            return f"{part[:text_length]}… [{len(part) - text_length} more characters]"
        if isinstance(part, list):
            return [shorten(item) for item in part[:items]]
        if not isinstance(part, dict):
            return part
        if part.get("type") in MEDIA and (size := len(dumps(part))) > text_length:
            # Truncated base64 would be useless.
            return {"type": "text", "text": f"[{part['type']} of {size} bytes left out]"}
        return {key: shorten(item) for key, item in list(part.items())[:items]}

    return shorten
