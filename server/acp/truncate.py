"""Messages made to fit a client that takes no frame over some size.

A text is cut into several chunks, which say the same. Anything else is told with
its longest parts left out, and says so in its `_meta`; the log has the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..codec import dumps, parse_message
from .params import NAMESPACE

Json = dict[str, Any]

MAX_MESSAGE_BYTES = 1 << 20
"""What a client is taken to take: the official Python SDK closes at a byte more."""
MEDIA = {"image", "audio", "resource"}
TEXT_CHUNKS = {"user_message_chunk", "agent_message_chunk", "agent_thought_chunk"}
ROUNDS = ((64 << 10, 1000), (4 << 10, 100), (256, 20))
"""How long texts, and how many items, are left: the first that fits is taken."""
WORST_BYTES_A_CHARACTER = 6


def fit(message: bytes, limit: int, seq: int | None = None) -> list[bytes]:
    """The messages to send for *message*; itself alone where it fits.

    Args:
        message: a notification or request, JSON.
        limit: bytes.
        seq: where the log has the whole, where that is known.
    """
    if len(message) <= limit:
        return [message]
    value = parse_message(message)
    assert value is not None
    params = value.get("params")
    if isinstance(params, dict):
        if _is_text_chunk(params.get("update")):
            return _cut(value, limit)
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


def _cut(value: Json, limit: int) -> list[bytes]:
    """A text chunk as several."""
    params = value["params"]
    update = params["update"]
    text: str = update["content"]["text"]

    def chunk(start: int, end: int) -> bytes:
        content = {**update["content"], "text": text[start:end]}
        return dumps({**value, "params": {**params, "update": {**update, "content": content}}})

    pieces = []
    start = 0
    room = max(1, (limit - len(chunk(0, 0))) // WORST_BYTES_A_CHARACTER)
    while start < len(text):
        # As many characters as fit: plain text takes a byte each, and is tried first.
        size = room * WORST_BYTES_A_CHARACTER
        while len(piece := chunk(start, start + size)) > limit and size > room:
            size = max(room, size // 2)
        pieces.append(piece)
        start += size
    return pieces


def _shorten_params(params: Json, text_length: int, items: int, seq: int | None) -> Json:
    """*params* with its long parts left out, and a note of it."""
    shorten = _shortener(text_length, items)
    mark = {NAMESPACE: {"shortened": True} if seq is None else {"shortened": True, "seq": seq}}
    shortened: Json = {key: shorten(part) for key, part in params.items()}
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
            return [shorten(one) for one in part[:items]]
        if not isinstance(part, dict):
            return part
        if part.get("type") in MEDIA and (size := len(dumps(part))) > text_length:
            # Half of its base64 is of no use to anybody.
            return {"type": "text", "text": f"[{part['type']} of {size} bytes left out]"}
        return {key: shorten(one) for key, one in list(part.items())[:items]}

    return shorten
