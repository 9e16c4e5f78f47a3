"""The limits on what agents write, and the capacity of the log for it."""

from __future__ import annotations

from typing import Protocol

import msgspec


class MessageLimits(msgspec.Struct, frozen=True):
    """Limits on what agents write, in bytes and seconds.

    Attributes:
        message_bytes: of one message. A larger one ends its agent.
        bytes_per_app: of the incomplete messages of all agents of one app together.
        large_secs: seconds that an agent may take to write the rest of a large message.
    """

    message_bytes: int
    bytes_per_app: int
    large_secs: float = 10


class Backpressure(Protocol):
    """The capacity of the log for messages of agents."""

    @property
    def has_capacity(self) -> bool:
        """Whether an agent's output may be read."""

    async def wait_for_capacity(self) -> None:
        """Wait until an agent's output may be read."""
