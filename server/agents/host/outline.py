"""Shortens large prompts for acpx.

acpx copies a prompt several times, in the one thread that serves all agents: a prompt of 8 MiB
delays every other session by seconds. So acpx receives a large prompt with its long strings cut
short. The proxy on the agent's stdin restores the complete blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...codec import dumps, parse_message
from ...errors import Error

LARGE_BYTES = 64 << 10
"""The size from which on a prompt is shortened."""
KEPT_CHARS = 1024
"""The part of a long string that acpx needs, and the check for a command."""


def outline(blocks: bytes) -> bytes:
    """Return the JSON of content blocks; if it is large, with its long strings cut short."""
    return blocks if len(blocks) <= LARGE_BYTES else dumps(_cut(parse_blocks(blocks)))


def parse_blocks(blocks: bytes) -> Any:
    """Parse content blocks. Unpaired surrogates are kept."""
    message = parse_message(b'{"blocks":' + blocks + b"}")
    assert message is not None, "the blocks of a prompt are checked when it is received"
    return message["blocks"]


def with_blocks(message: dict[str, Any], blocks: bytes) -> bytes:
    """Return a ``session/prompt`` with *blocks* as its content; they are not encoded again."""
    rest = dumps({name: value for name, value in message.items() if name != "params"})
    params = dumps({k: v for k, v in message["params"].items() if k != "prompt"})
    comma = b"," if len(params) > 2 else b""
    return b'%b,"params":%b%b"prompt":%b}}' % (rest[:-1], params[:-1], comma, blocks)


def with_preface(blocks: bytes, preface: str) -> bytes:
    """Return the JSON of a text block followed by *blocks*."""
    return b"[%b,%b" % (dumps({"type": "text", "text": preface}), blocks[1:])


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:KEPT_CHARS]
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    return [_cut(one) for one in value] if isinstance(value, list) else value


def with_fields(
    line: bytes,
    message: dict[str, Any],
    fields_of: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
) -> bytes:
    """Return the request *line* with the params that *fields_of* adds.

    Args:
        message: the request, parsed.
        fields_of: returns them for a method and its params; may raise.
    """
    params = message.get("params")
    known = params if isinstance(params, dict) else {}
    fields = fields_of(message["method"], known)
    return dumps({**message, "params": {**known, **fields}}) if fields else line


def refusal(message: dict[str, Any], error: Error) -> bytes:
    """Return the response to a request of acpx that the agent does not receive."""
    reason = {"code": error.code.rpc_code, "message": error.message}
    return dumps({"jsonrpc": "2.0", "id": message.get("id"), "error": reason})
