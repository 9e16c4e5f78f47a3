"""The text of a conversation so far, for an agent that does not have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..codec import dumps, loads, parse_message
from . import entries
from .core import SessionCore
from .event_log import SessionLog

MAX_TURNS = 1000
MAX_READ_BYTES = 8 << 20
"""Bytes of one turn that are read for its texts."""
HEAD = (
    "[The conversation so far]\n"
    "You continue this conversation between a user and an assistant, and take the assistant's part."
    " You have no other memory of it, and its files may not be in your folder."
)
TAIL = "[The end of the conversation so far. The user's next message follows.]"
OMITTED = "[Earlier messages are omitted.]"


async def conversation_so_far(core: SessionCore, limit: int) -> str | None:
    """The newest messages of the log as text; None if nothing was said.

    Args:
        limit: bytes of the messages.
    """
    parts: list[str] = []
    turns = await core.context.queries.newest_turns(core.row.n, MAX_TURNS)
    left = limit
    is_whole = len(turns) < MAX_TURNS
    for turn in turns:
        if turn.first_seq is None or turn.last_seq is None:
            continue
        text = await _turn_text(core.log, turn.turn_index, turn.first_seq, turn.last_seq)
        if not text:
            continue
        size = len(text.encode(errors="replace"))
        if size > left:
            is_whole = False
            if not parts:  # the end of the newest turn is better than nothing
                parts.append(text.encode(errors="replace")[-left:].decode(errors="ignore"))
            break
        parts.append(text)
        left -= size
    if not parts:
        return None
    first = [HEAD] if is_whole else [HEAD, OMITTED]
    return "\n\n".join([*first, *reversed(parts), TAIL])


def with_history(history: str, blocks: bytes) -> bytes:
    """The content blocks of a prompt after the text of the conversation."""
    return dumps([{"type": "text", "text": history}, *loads(blocks)])


async def _turn_text(log: SessionLog, turn_index: int, first: int, last: int) -> str:
    messages: list[tuple[str, str]] = []
    position, size = first - 1, 0
    while position < last and size < MAX_READ_BYTES:
        for batch in await log.read(position):
            for seq, line in enumerate(batch.lines(), batch.first):
                if seq <= last and entries.turn_index_of(line) == turn_index:
                    for role, text in chat_messages_in(line):
                        if messages and messages[-1][0] == role == "Assistant":
                            messages[-1] = role, messages[-1][1] + text
                        else:
                            messages.append((role, text))
            position = batch.last
            size += len(batch.body)
    return "\n\n".join(f"{role}: {text.strip()}" for role, text in messages if text.strip())


def chat_messages_in(line: bytes) -> Iterator[tuple[str, str]]:
    """The texts of the user and of the assistant in an entry, each with the role."""
    if (event := entries.event_of(line)) is not None:
        if b'"agent_message_chunk"' not in event or entries.is_of_subagent(line):
            return
        update = _update_of(parse_message(event))
        if update.get("sessionUpdate") == "agent_message_chunk":
            yield "Assistant", _shown_text(update.get("content"))
    elif line.startswith((b'{"type":"turn_start"', b'{"type":"turn_steer"')):
        message = parse_message(line) or {}
        prompt = message.get("prompt")
        texts = [_shown_text(block) for block in prompt] if isinstance(prompt, list) else []
        yield "User", "\n".join(texts)


def _update_of(message: dict[str, Any] | None) -> dict[str, Any]:
    params = (message or {}).get("params")
    update = params.get("update") if isinstance(params, dict) else None
    return update if isinstance(update, dict) else {}


def _shown_text(block: Any) -> str:
    """The text of a content block; other blocks are only named."""
    if not isinstance(block, dict):
        return ""
    if block.get("type") == "text":
        text = block.get("text")
        return text if isinstance(text, str) else ""
    return f"[{block.get('type')}]"
