"""WebSocket frames as bytes, ready to be written (RFC 6455, section 5.2).

A server's frames are not masked. Payloads are never fragmented.
"""

from __future__ import annotations

from ..sessions.log_pages import Batch
from .protocol import addressed


def text_frame(payload: bytes) -> bytes:
    """*payload* as a text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def ping_frame() -> bytes:
    """A ping without a payload."""
    return b"\x89\x00"


def pong_frame(payload: bytes) -> bytes:
    """The pong for a ping with *payload*, at most 125 bytes."""
    return b"\x8a%c%b" % (len(payload), payload)


def batch_frames(batch: Batch) -> bytes:
    """The text frames of a batch's entries; encoded once for all subscribers."""
    if batch.frames is None:
        batch.frames = b"".join(map(text_frame, batch.lines()))
    return batch.frames


def addressed_frames(batch: Batch, session_id: str) -> bytes:
    """The text frames of a batch's entries with their ``session_id``; encoded once for all."""
    if batch.addressed is None:
        batch.addressed = b"".join(
            text_frame(addressed(line, session_id)) for line in batch.lines()
        )
    return batch.addressed
