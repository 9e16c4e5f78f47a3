"""Frames that wait to be written and are not log entries: responses, errors, pongs."""

from __future__ import annotations

import asyncio

from . import framing

OUTBOX_MESSAGES = 256
OUTBOX_BYTES = 64 << 10
"""While more frames or bytes are unsent, the connection reads no further message, and the last one
that it read counts as not handled."""


class Outbox:
    """A queue of text messages, from which the writer takes all at once.

    Attributes:
        drained: set while the outbox is over its limit; done once its content has been written.
    """

    # A list and a future: deques and events took 3.7 KB for each idle connection.
    __slots__ = ("_messages", "_size", "drained")

    def __init__(self) -> None:
        self.drained: asyncio.Future[None] | None = None
        self._messages: list[bytes] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: bytes) -> None:
        self._messages.append(message)
        self._size += len(message)
        is_full = len(self._messages) > OUTBOX_MESSAGES or self._size > OUTBOX_BYTES
        if is_full and self.drained is None:
            self.drained = asyncio.get_running_loop().create_future()

    def take(self) -> list[bytes]:
        """Remove all messages and return them as WebSocket frames."""
        frames = [framing.text_frame(message) for message in self._messages]
        self._messages, self._size = [], 0
        return frames

    def note_written(self) -> None:
        """Note that the frames taken last have been written."""
        if self.drained is not None and not self._messages:
            self.drained.set_result(None)
            self.drained = None
