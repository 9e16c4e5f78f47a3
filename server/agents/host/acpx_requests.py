"""Rewrites requests of acpx on their way to the agent, and refuses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...codec import dumps
from ...errors import Error


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


def with_blocks(message: dict[str, Any], blocks: bytes) -> bytes:
    """Return a ``session/prompt`` with *blocks* as its content; they are not encoded again."""
    rest = dumps({name: value for name, value in message.items() if name != "params"})
    params = dumps({k: v for k, v in message["params"].items() if k != "prompt"})
    comma = b"," if len(params) > 2 else b""
    return b'%b,"params":%b%b"prompt":%b}}' % (rest[:-1], params[:-1], comma, blocks)


def with_preface(blocks: bytes, preface: str) -> bytes:
    """Return the JSON of a text block followed by *blocks*."""
    return b"[%b,%b" % (dumps({"type": "text", "text": preface}), blocks[1:])
