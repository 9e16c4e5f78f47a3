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
_SUBAGENT_FIELD = b'"subagent":'
HEAD_BYTES = 160
"""The limit of the bytes before the subagent of an entry, which the server writes."""
MAX_HELD = 256 << 10
"""Messages at the same time: beyond this size, all of them end."""
DOCUMENT_SIZE = 512
"""A message counts with this size, and with its characters."""
_Speaker = tuple[tuple[str, str], ...]
"""The ids of a subagent; empty for the agent itself."""


class Document(msgspec.Struct):
    """A prompt or a message.

    Attributes:
        seq: position of its first entry.
        ts: unix milliseconds.
        subagent: the subagent that said it, as the entry names it; None for a prompt or a message
            of the agent itself.
    """

    seq: int
    ts: int
    turn_index: int
    text: str
    subagent: dict[str, str] | None = None


class _ChunkContent(msgspec.Struct, gc=False):
    text: str = ""


class _ChunkUpdate(msgspec.Struct, gc=False):
    kind: str = msgspec.field(name="sessionUpdate")
    content: _ChunkContent


class _ChunkParams(msgspec.Struct, gc=False):
    update: _ChunkUpdate


class _ChunkMessage(msgspec.Struct, gc=False):
    params: _ChunkParams


class _ChunkEntry(msgspec.Struct, gc=False):
    """The parts of an entry with a chunk that are read: a third of the time of all parts."""

    seq: int
    ts: int
    turn_index: int
    event: _ChunkMessage
    subagent: dict[str, str] | None = None

    @property
    def text(self) -> str:
        """The text of the chunk; empty for another update, which mentions chunks."""
        update = self.event.params.update
        return update.content.text if update.kind == "agent_message_chunk" else ""


_CHUNK_DECODER = msgspec.json.Decoder(_ChunkEntry)


class _SpokenMessage(msgspec.Struct):
    """A message whose chunks are being collected."""

    document: Document
    pieces: list[str] = msgspec.field(default_factory=list)
    size: int = 0


class DocumentReader:
    """Reads documents from the entries of one session, in order.

    A message arrives in chunks, between which there may be those of subagents, each of which has
    messages of its own. It ends with the next entry that is not an update, or with a tool call of
    the same agent.

    Attributes:
        complete_seq: the position up to which all documents were returned, and none after it.
    """

    def __init__(self, after: int) -> None:
        self.complete_seq = after
        self._position = after
        self._messages: dict[_Speaker, _SpokenMessage] = {}
        self._ended: list[Document] = []
        self._held = 0

    def read(self, lines: Iterable[bytes]) -> list[Document]:
        """Return the documents that are complete with the next entries."""
        documents: list[Document] = []
        for line in lines:
            self._position += 1
            if line.startswith(_EVENT_ENTRY):
                if _CHUNK in line:
                    self._add_chunk(line)
                elif self._messages and _TOOL_CALL in line:
                    self._end_message(_speaker_of(line))
            else:
                self._end_messages()
                if line.startswith(_PROMPTS):
                    self._ended += _prompt(line)
            if self._held > MAX_HELD:
                self._end_messages()
            if not self._messages:
                documents += self._release()
        return documents

    def end(self) -> list[Document]:
        """Return the unfinished messages: no chunk of them will follow."""
        self._end_messages()
        return self._release()

    def _release(self) -> list[Document]:
        documents, self._ended, self._held = self._ended, [], 0
        self.complete_seq = self._position
        return documents

    def _add_chunk(self, line: bytes) -> None:
        entry = _chunk(line)
        if entry is None or not (text := entry.text):
            return
        speaker = _speaker_named(entry.subagent) if entry.subagent is not None else ()
        message = self._messages.get(speaker)
        if message is not None and (
            message.size > MAX_CHARACTERS or entry.turn_index != message.document.turn_index
        ):
            self._end_message(speaker)
            message = None
        if message is None:
            ts = min(entry.ts, MAX_TS)
            document = Document(entry.seq, ts, entry.turn_index, "", entry.subagent or None)
            message = self._messages[speaker] = _SpokenMessage(document)
            self._held += DOCUMENT_SIZE
        message.pieces.append(text)
        message.size += len(text)
        self._held += len(text)

    def _end_messages(self) -> None:
        for speaker in tuple(self._messages):
            self._end_message(speaker)

    def _end_message(self, speaker: _Speaker) -> None:
        message = self._messages.pop(speaker, None)
        if message is not None:
            message.document.text = _well_formed("".join(message.pieces))
            self._ended.append(message.document)


def _chunk(line: bytes) -> _ChunkEntry | None:
    """Read an entry with a chunk, or return None for one that only mentions chunks."""
    try:
        return _CHUNK_DECODER.decode(line)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError):  # half an emoji
        try:
            return msgspec.convert(parse_message(line), _ChunkEntry)
        except msgspec.ValidationError:
            return None


def _speaker_of(line: bytes) -> _Speaker:
    """The speaker of an event, whose message is read only if it may be of a subagent."""
    if line.find(_SUBAGENT_FIELD, 0, HEAD_BYTES) < 0:
        return ()
    entry = parse_message(line)
    return _speaker_named(entry.get("subagent")) if entry is not None else ()


def _speaker_named(subagent: Any) -> _Speaker:
    return tuple(sorted(subagent.items())) if isinstance(subagent, dict) else ()


def _prompt(line: bytes) -> list[Document]:
    entry = parse_message(line)
    if entry is None:
        return []
    blocks = entry.get("prompt")
    texts = [_spoken(block) for block in blocks] if isinstance(blocks, list) else []
    text = "\n".join(filter(None, texts))
    parts = [text[at : at + MAX_CHARACTERS] for at in range(0, len(text), MAX_CHARACTERS)]
    ts = min(entry["ts"], MAX_TS)
    return [Document(entry["seq"], ts, entry["turn_index"], _well_formed(part)) for part in parts]


def _well_formed(text: str) -> str:
    """Return *text* as the database takes it: agents may cut an emoji in two."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _spoken(block: Any) -> str:
    text = block.get("text") if isinstance(block, dict) else None
    return text if isinstance(text, str) else ""
