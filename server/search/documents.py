"""Reads what was said from log entries: prompts, and the messages of the agent as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ..codec import parse_message

MAX_CHARACTERS = 64 << 10
"""A longer text becomes several documents."""
MAX_TS = (1 << 43) - 2
"""Later times, which an import may contain, are indexed as this one, in the year 2248."""
_PROMPTS = (b'{"type":"turn_start"', b'{"type":"turn_steer"')
_EVENT_ENTRY = b'{"type":"event"'
_CHUNK = b'"agent_message_chunk"'
_TOOL_CALL = b'"tool_call"'


class Document(msgspec.Struct):
    """A prompt or a message.

    Attributes:
        seq: position of its first entry.
        ts: unix milliseconds.
    """

    seq: int
    ts: int
    turn_index: int
    text: str


class DocumentReader:
    """Reads documents from the entries of one session, in order.

    A message arrives in chunks. It ends with the next entry that is not an update of the agent, or
    with a tool call.

    Attributes:
        complete_seq: the position up to which all documents were returned.
    """

    def __init__(self, after: int) -> None:
        self.complete_seq = after
        self._position = after
        self._message: Document | None = None
        self._pieces: list[str] = []
        self._size = 0

    def read(self, lines: Iterable[bytes]) -> list[Document]:
        """Return the documents that are complete with the next entries."""
        found: list[Document] = []
        for line in lines:
            self._position += 1
            if line.startswith(_EVENT_ENTRY):
                if _CHUNK in line:
                    self._add_chunk(line, found)
                elif _TOOL_CALL in line:
                    self._end_message(found)
            else:
                self._end_message(found)
                if line.startswith(_PROMPTS):
                    found += _prompt(line)
            if self._message is None:
                self.complete_seq = self._position
        return found

    def end(self) -> list[Document]:
        """Return the unfinished message: no chunk of it will follow."""
        found: list[Document] = []
        self._end_message(found)
        self.complete_seq = self._position
        return found

    def _add_chunk(self, line: bytes, found: list[Document]) -> None:
        entry = parse_message(line)
        text = _message_text(entry) if entry is not None else ""
        if entry is None or not text:
            return
        if self._message is not None and (
            self._size > MAX_CHARACTERS or entry["turn_index"] != self._message.turn_index
        ):
            self._end_message(found)
        if self._message is None:
            self._message = _new_document(entry, "")
        self._pieces.append(text)
        self._size += len(text)

    def _end_message(self, found: list[Document]) -> None:
        if self._message is not None:
            self._message.text = _well_formed("".join(self._pieces))
            found.append(self._message)
            self._message, self._pieces, self._size = None, [], 0


def _prompt(line: bytes) -> list[Document]:
    entry = parse_message(line)
    if entry is None:
        return []
    blocks = entry.get("prompt")
    texts = [_spoken(block) for block in blocks] if isinstance(blocks, list) else []
    text = "\n".join(filter(None, texts))
    parts = [text[at : at + MAX_CHARACTERS] for at in range(0, len(text), MAX_CHARACTERS)]
    return [_new_document(entry, _well_formed(part)) for part in parts]


def _new_document(entry: dict[str, Any], text: str) -> Document:
    return Document(entry["seq"], min(entry["ts"], MAX_TS), entry["turn_index"], text)


def _well_formed(text: str) -> str:
    """Return *text* as the database takes it: agents may cut an emoji in two."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _message_text(entry: dict[str, Any]) -> str:
    try:
        update = entry["event"]["params"]["update"]
        is_message = update["sessionUpdate"] == "agent_message_chunk"
        return _spoken(update["content"]) if is_message else ""
    except (KeyError, TypeError):
        return ""


def _spoken(block: Any) -> str:
    text = block.get("text") if isinstance(block, dict) else None
    return text if isinstance(text, str) else ""
