"""The messages of ACP clients on their way between two nodes of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from ..cluster.channels import PIECE_BYTES, NodeChannel
from .params import UrlOptions

RELAY = "acp"
"""The kind of the channels between the connection of a client and the sessions of another node."""
_MORE, _LAST = b"+", b"."


class RelayedClient(msgspec.Struct, kw_only=True):
    """A client of another node, as its node has met it.

    Attributes:
        name: of the connection, for the server's log.
        upgrade_id: the id of the upgrade request.
        only_session: the id of the only session that the client's ticket admits to, or None.
        initialize: the parameters of its ``initialize``.
    """

    app_name: str
    name: str
    upgrade_id: str
    options: UrlOptions
    only_session: str | None
    initialize: Any


async def send_message(channel: NodeChannel, message: bytes) -> None:
    """Send a message of any length.

    Raises:
        ChannelLostError: it will not arrive.
    """
    size = PIECE_BYTES - 1
    for start in range(0, len(message) or 1, size):
        is_last = start + size >= len(message)
        await channel.send((_LAST if is_last else _MORE) + message[start : start + size])


async def messages_of(channel: NodeChannel) -> AsyncIterator[bytes]:
    """The messages that arrive.

    Raises:
        ChannelLostError: a piece was lost, or the other node has ended.
    """
    parts: list[bytes] = []
    async for piece in channel:
        parts.append(piece[1:])
        if piece[:1] == _LAST:
            yield b"".join(parts)
            parts.clear()
