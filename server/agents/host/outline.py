"""Shortens large prompts for acpx.

acpx copies a prompt several times, in the one thread that serves all agents: a prompt of 8 MiB
delays every other session by seconds. So acpx receives a large prompt with its long strings cut
short. The proxy on the agent's stdin restores the complete blocks.
"""

from __future__ import annotations

from typing import Any

from ...codec import dumps, parse_message

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


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:KEPT_CHARS]
    if isinstance(value, dict):
        return {name: _cut(part) for name, part in value.items()}
    return [_cut(part) for part in value] if isinstance(value, list) else value
