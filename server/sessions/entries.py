"""Frames of the session's WebSocket: commands from bytes, entries and answers to bytes.

Nothing here does I/O. Down-frames are made once, as bytes, whoever reads them;
what an agent wrote is spliced in as it came.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ..codec import dumps, loads_bounded, parse_message
from ..errors import Error, bad_request
from ..validation import form, in_words

PROTOCOL = 1
MAX_FILES = 100
"""Of one prompt."""
BASE64 = form(r"^[A-Za-z0-9+/]+={0,2}$(?!\n)", "base64")

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
ConfigOptions = Annotated[dict[Name, Name], msgspec.Meta(max_length=64)]


class _Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A frame that a client sends; its class's tag is the frame's ``type``.

    Attributes:
        id: the client's own, by which an ``error`` that answers the frame names it.
    """

    id: Any = None


class Auth(_Command, frozen=True, tag="auth"):
    token: str | None = None
    ticket: str | None = None
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    protocol: int = PROTOCOL


class Prompt(_Command, frozen=True, kw_only=True, tag="prompt"):
    prompt: str | list[Any]
    id: Id | None = None
    files: Annotated[list[str], msgspec.Meta(max_length=MAX_FILES)] | None = None


class Cancel(_Command, frozen=True, tag="cancel"):
    turn_index: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Permission(_Command, frozen=True, kw_only=True, tag="permission"):
    request_id: str
    option_id: str | None = None
    outcome: Literal["cancelled"] | None = None


class SetMode(_Command, frozen=True, kw_only=True, tag="set_mode"):
    mode: Name


class SetModel(_Command, frozen=True, kw_only=True, tag="set_model"):
    model: Name


class SetConfigOption(_Command, frozen=True, kw_only=True, tag="set_config_option"):
    key: Name
    value: Name


class Close(_Command, frozen=True, tag="close"):
    pass


class Ping(_Command, frozen=True, tag="ping"):
    pass


Setting = SetMode | SetModel | SetConfigOption
Command = Auth | Prompt | Cancel | Permission | Setting | Close | Ping


class NotAFrameError(Exception):
    """The bytes are not one JSON object: nothing can be said about a field of it."""


def parse(data: bytes | str) -> Command:
    """Read one up-frame.

    Raises:
        NotAFrameError: *data* is not a JSON object, or is nested too deeply.
        Error: ``bad_request``, for an unknown type or a bad field; its ``frame_id``
            attribute has the frame's ``id``, where it had one.
    """
    try:
        value = loads_bounded(data)
    except ValueError:
        raise _refusal(data) from None
    if not isinstance(value, dict):
        raise NotAFrameError
    try:
        command: Command = msgspec.convert(value, Command)
    except (msgspec.ValidationError, RecursionError) as error:
        raise FrameError(in_words(error), value.get("id")) from None
    if isinstance(command, Permission) and (command.option_id is None) == (command.outcome is None):
        raise FrameError("one of option_id and outcome is needed", value.get("id"))
    return command


def _refusal(data: bytes | str) -> Exception:
    """What is wrong with *data*, which could not be read.

    Browsers write half a surrogate pair where a text was cut inside an emoji; that is
    JSON, but no text that an agent could be sent.
    """
    raw = data.encode() if isinstance(data, str) else data
    value = parse_message(raw) if b"\\ud" in raw.lower() else None
    if value is None:
        return NotAFrameError()
    return FrameError("half a surrogate pair is no character", value.get("id"))


class FrameError(Error):
    """A frame that is JSON, but not one that the contract knows."""

    def __init__(self, message: str, frame_id: Any) -> None:
        super().__init__("bad_request", message)
        self.frame_id = frame_id


def entry(kind: str, seq: int, ts: int, turn_index: int, rest: bytes) -> bytes:
    """A log entry; *rest* holds its own fields, as JSON without the outer braces."""
    return b'{"type":"%b","seq":%d,"ts":%d,"turn_index":%d,%b}' % (
        kind.encode(),
        seq,
        ts,
        turn_index,
        rest,
    )


_EVENT = b',"event":'
_TURN_INDEX = b'"turn_index":'
_EVENT_START = b'{"type":"event",'


def event_fields(message: bytes) -> bytes:
    """The fields of an ``event`` entry that carries *message* verbatim."""
    return b'"event":' + message


def event_of(frame: bytes) -> bytes | None:
    """The raw ACP message that an ``event`` entry carries; None for other entries."""
    if not frame.startswith(_EVENT_START):
        return None
    # Our own head comes first and holds nothing that an agent could have written.
    return frame[frame.index(_EVENT) + len(_EVENT) : -1]


def turn_index_of(frame: bytes) -> int:
    """The turn of an entry."""
    start = frame.index(_TURN_INDEX) + len(_TURN_INDEX)  # its head comes first, as above
    return int(frame[start : frame.index(b",", start)])


def turn_start_fields(prompt: bytes, client_id: str | None, context: str) -> bytes:
    """*prompt* is the JSON of the content blocks."""
    return b'"prompt":%b,"id":%b,"context":%b' % (prompt, dumps(client_id), dumps(context))


def turn_end_fields(stop_reason: str, duration_ms: int, error: bytes | None) -> bytes:
    return b'"stop_reason":%b,"duration_ms":%d,"error":%b' % (
        dumps(stop_reason),
        duration_ms,
        error or b"null",
    )


def permission_request_fields(request_id: str, request: bytes, expires_at: int) -> bytes:
    """*request* is the JSON of ACP's params; *expires_at* is in unix milliseconds."""
    return b'"request_id":%b,"request":%b,"expires_at":%d' % (
        dumps(request_id),
        request,
        expires_at,
    )


def fields(**values: Any) -> bytes:
    """Any other entry's own fields."""
    return dumps(values)[1:-1]


def frame(kind: str, **values: Any) -> bytes:
    """A frame without a number, such as ``ready`` or ``pong``."""
    return dumps({"type": kind, **values})


def error_fields(error: Error) -> dict[str, Any]:
    told = {"code": error.code, "message": error.message, "retryable": error.retryable}
    return {**told, **error.fields}


def error_frame(error: Error, frame_id: Any = None) -> bytes:
    """An ``error`` frame; it names the frame that it answers, where that had a string for an id."""
    answered = {"id": frame_id} if isinstance(frame_id, str) else {}
    return frame("error", **answered, **error_fields(error))


def websocket_text(payload: bytes) -> bytes:
    """*payload* as an unmasked, unfragmented text frame (RFC 6455, 5.2), ready to be written."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def websocket_ping() -> bytes:
    """An unmasked ping without a payload."""
    return b"\x89\x00"


def websocket_pong(payload: bytes) -> bytes:
    """An unmasked pong; *payload* is its ping's, at most 125 bytes."""
    return b"\x8a%c%b" % (len(payload), payload)


def parse_blocks(prompt: str | list[Any]) -> list[dict[str, Any]]:
    """A prompt as ACP content blocks, checked, each kept as it came.

    Raises:
        Error: ``bad_request``, naming the block and the field.
    """
    if isinstance(prompt, str):
        prompt = [{"type": "text", "text": prompt}]
    try:
        blocks = msgspec.convert(prompt, list[Block])
    except msgspec.ValidationError as error:
        raise bad_request(f"prompt{_joined(in_words(error))}") from None
    if not any(not isinstance(block, Text) or block.text for block in blocks):
        raise bad_request("prompt: must not be empty")
    return prompt


def _joined(words: str) -> str:
    """*words* about an element of the prompt, as they follow its name."""
    return words if words.startswith("[") else f": {words}"


class _Block(msgspec.Struct, frozen=True, tag_field="type", rename="camel"):
    pass


class Text(_Block, frozen=True, tag="text"):
    text: str


class Image(_Block, frozen=True, tag="image"):
    data: Annotated[str, msgspec.Meta(pattern=BASE64)]
    mime_type: Annotated[
        str, msgspec.Meta(pattern=form(r"^image/", "a media type that begins with image/"))
    ]


class Audio(_Block, frozen=True, tag="audio"):
    data: Annotated[str, msgspec.Meta(pattern=BASE64)]
    mime_type: Annotated[
        str, msgspec.Meta(pattern=form(r"^audio/", "a media type that begins with audio/"))
    ]


class Contents(msgspec.Struct, frozen=True, rename="camel"):
    uri: str
    text: str | None = None
    blob: str | None = None
    mime_type: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.blob is None):
            raise ValueError("one of text and blob is needed")


class Resource(_Block, frozen=True, tag="resource"):
    resource: Contents


class ResourceLink(_Block, frozen=True, tag="resource_link"):
    uri: str
    name: str


Block = Text | Image | Audio | Resource | ResourceLink
