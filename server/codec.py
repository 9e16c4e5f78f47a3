"""JSON to and from bytes; the only place that imports orjson."""

from __future__ import annotations

import json
from typing import Any, NoReturn, cast

import orjson

MAX_DEPTH = 200


def dumps(value: Any) -> bytes:
    """Encode *value* on one line."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # Half a surrogate pair (see parse_message); anything else fails here too.
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def loads(data: bytes | bytearray | memoryview | str) -> Any:
    """Decode strict JSON.

    Raises:
        ValueError: *data* is not UTF-8 JSON.
    """
    return orjson.loads(data)


def loads_bounded(data: bytes | bytearray | memoryview | str) -> Any:
    """Decode what a client sent: strict JSON, nested no deeper than can be encoded again.

    Raises:
        ValueError: *data* is not that.
    """
    value = loads(data)
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return value
    raise ValueError("nested too deeply")


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
    """
    message = parse_message(line)
    if message is None or message.get("jsonrpc") != "2.0":
        return None
    if "method" in message:
        is_message = isinstance(message["method"], str) and _is_id(message.get("id"))
    else:
        is_message = (
            "id" in message
            and _is_id(message["id"])
            and ("result" in message) is not ("error" in message)
        )
    return message if is_message else None


def _is_id(value: Any) -> bool:
    """Whether a request may have this id; in Python True equals 1, in JSON-RPC it must not."""
    return value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))


def parse_message(line: bytes) -> dict[str, Any] | None:
    """Decode one JSON object, or None if *line* is anything else.

    An agent that streams text in pieces may cut an emoji in two: its JSON then
    holds half a surrogate pair as ``\\ud83d``, which the grammar allows and
    browsers accept, but orjson does not. So what orjson refuses gets a second,
    slower look.
    """
    try:
        message = orjson.loads(line)
    except ValueError:
        try:
            message = json.loads(line.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
    return cast("dict[str, Any]", message) if isinstance(message, dict) else None
