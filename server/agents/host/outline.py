"""What acpx gets of a large prompt.

acpx copies a prompt several times, on the one thread that serves all agents: 8 MiB of it keep every
other session waiting for seconds. So a large prompt goes through acpx with its long strings cut
short. The server, which sits on the agent's stdin, puts the whole blocks back on the last step.
"""

from __future__ import annotations

from typing import Any

from ...codec import dumps, parse_message

LARGE_BYTES = 64 << 10
"""A smaller prompt goes through acpx as it is."""
KEPT_CHARS = 1024
"""What is left of a long string: acpx, and a look for a command, need no more."""


def outline(blocks: bytes) -> bytes:
    """The JSON of content blocks, with their long strings cut short if it is large."""
    return blocks if len(blocks) <= LARGE_BYTES else dumps(_cut(parse_blocks(blocks)))


def parse_blocks(blocks: bytes) -> Any:
    """The content blocks in *blocks*; half a surrogate pair in them is kept."""
    message = parse_message(b'{"blocks":' + blocks + b"}")
    assert message is not None, "blocks were checked when they came"
    return message["blocks"]


def with_blocks(message: dict[str, Any], blocks: bytes) -> bytes:
    """A ``session/prompt`` with *blocks*, JSON that is not encoded again, as its content."""
    rest = dumps({name: value for name, value in message.items() if name != "params"})
    params = dumps({k: v for k, v in message["params"].items() if k != "prompt"})
    comma = b"," if len(params) > 2 else b""
    return b'%b,"params":%b%b"prompt":%b}}' % (rest[:-1], params[:-1], comma, blocks)


def with_preface(blocks: bytes, preface: str) -> bytes:
    """*blocks* after a block of text."""
    return b"[%b,%b" % (dumps({"type": "text", "text": preface}), blocks[1:])


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:KEPT_CHARS]
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    return [_cut(one) for one in value] if isinstance(value, list) else value
