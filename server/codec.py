"""JSON to and from bytes; the only place that imports orjson."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import orjson

T = TypeVar("T")

MAX_NESTING = 200
MAX_CONTAINERS = 200_000
"""The limit of objects and arrays in one document. Parsed, each takes a hundred bytes or more."""
MAX_VALUES = 200_000
"""The limit of values in one document, counted by the commas between them. No other thread runs
while they are parsed: half a million keys take half a second on a busy machine."""
BIG_BYTES = 1 << 20
MANY_CONTAINERS = 10_000
"""A document that exceeds one of the two is parsed in a thread."""
_PIECE = 256 << 10
"""Bytes scanned at a time. Other threads can run between two pieces."""


def dumps(value: Any) -> bytes:
    """Encode *value* on one line."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # An unpaired surrogate (see parse_message). All other values fail here, too.
        try:
            return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        except ValueError:  # orjson encodes infinities as null
            return json.dumps(_without_infinities(value), separators=(",", ":")).encode()


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinities(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def loads(data: bytes | bytearray | memoryview | str) -> Any:
    """Decode strict JSON.

    Raises:
        ValueError: *data* is not UTF-8 JSON.
    """
    return orjson.loads(data)


def loads_bounded(data: bytes | bytearray | memoryview | str) -> Any:
    """Decode strict JSON of a client, and check that it can be encoded again.

    Raises:
        ValueError: *data* is not UTF-8 JSON, or is nested too deeply.
    """
    value = loads(data)
    if isinstance(data, (bytes, bytearray)) and _brackets(data) <= MAX_NESTING:
        return value  # too few to be nested so deeply
    level = [value]
    for _ in range(MAX_NESTING):
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def has_too_many_values(data: bytes | bytearray) -> bool:
    """Whether a JSON text exceeds :data:`MAX_CONTAINERS` or :data:`MAX_VALUES`.

    The text is not parsed, because a parsed document can take thirty times its own bytes.
    """
    if len(data) <= MAX_CONTAINERS:
        return False
    # Characters in strings are counted, too, so this is an upper bound. It is usually sufficient.
    if _brackets(data) <= MAX_CONTAINERS and data.count(b",") <= MAX_VALUES:
        return False
    containers = commas = 0
    for structure in _outside_strings(data):
        containers += _brackets(structure)
        commas += structure.count(b",")
        if containers > MAX_CONTAINERS or commas > MAX_VALUES:
            return True
    return False


def is_costly(data: bytes | bytearray) -> bool:
    """Whether parsing *data* would delay other clients noticeably."""
    if len(data) > BIG_BYTES:
        return True
    return len(data) > MANY_CONTAINERS and _brackets(data) > MANY_CONTAINERS


async def call_off_loop(work: Callable[[bytes], T], data: bytes) -> T:
    """Call *work* with *data*, in a thread if that takes long."""
    return await asyncio.to_thread(work, data) if is_costly(data) else work(data)


def _brackets(data: bytes | bytearray) -> int:
    return data.count(b"[") + data.count(b"{")


def _outside_strings(data: bytes | bytearray) -> Iterator[bytes]:
    """The parts of a JSON text outside of strings.

    In JSON a backslash outside of a string is invalid, so the parser rejects the text anyway.
    """
    is_inside = False
    rest = b""
    for start in range(0, len(data), _PIECE):
        piece = (rest + data[start : start + _PIECE]).replace(b"\\\\", b"")
        rest = b""
        if piece.endswith(b"\\"):  # the escaped character is in the next piece
            piece, rest = piece[:-1], b"\\"
        parts = piece.replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0


def _containers(value: Any) -> list[Any]:
    """The objects and arrays directly in *value*."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return []
    return [child for child in value if isinstance(child, (dict, list))]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def parse_rpc(line: bytes) -> dict[str, Any] | None:
    """Decode one JSON-RPC 2.0 message, or None if *line* is anything else.

    Agents also write other JSON on their stdout, log lines with an ``id`` for example. A message
    has a method, or it is a response: an id, and exactly one of ``result`` and ``error``.

    Raises:
        OverflowError: it has too many values.
    """
    if has_too_many_values(line):
        raise OverflowError("a message with too many values")
    message = parse_message(line)
    if message is None or message.get("jsonrpc") != "2.0":
        return None
    if "method" in message:
        is_message = isinstance(message["method"], str)
        if "id" in message:
            is_message = is_message and _is_id(message["id"])
    else:
        is_message = (
            "id" in message
            and _is_id(message["id"])
            and ("result" in message) is not ("error" in message)
        )
    return message if is_message else None


def _is_id(value: Any) -> bool:
    """Whether a value is a valid id. True is not, although it equals 1 in Python."""
    return value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))


def parse_message(line: bytes) -> dict[str, Any] | None:
    """Decode one JSON object, or None if *line* is anything else.

    An agent that streams text in pieces may cut an emoji in two. Its JSON then has an unpaired
    surrogate such as ``\\ud83d``, which the grammar and browsers allow, but orjson does not. So
    lines that orjson rejects are parsed by the slower json module.
    """
    message: Any
    try:
        message = orjson.loads(line)
    except ValueError:
        try:
            message = json.loads(line.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
    return message if isinstance(message, dict) else None
