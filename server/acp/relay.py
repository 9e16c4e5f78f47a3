"""The sessions of other nodes of a cluster on one ACP connection.

The node of the client opens one channel to each node whose sessions the client uses. There the
client has a connection of the same kind (``relay_server.py``), whose messages come back unchanged;
only the ids of requests to the client are those of the client's connection.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec

from ..cluster.channels import ChannelLostError, NodeChannel
from ..cluster.node import ClusterNode, node_unreachable
from ..tasks import Tasks
from . import jsonrpc
from .relayed_messages import RELAY, RelayedClient, messages_of, send_message

_REQUEST = re.compile(rb'\{"jsonrpc":"2\.0","id":(\d+),"method":')
_CANCEL = re.compile(
    rb'\{"jsonrpc":"2\.0","method":"\$/cancel_request","params":\{"requestId":(\d+)\}\}'
)


class AcpRelays:
    """The channels of one connection to other nodes.

    Args:
        client: describes the client, once it has called ``initialize``.
        deliver: sends a message to the client, and returns when it may be followed by the next.
        next_id: returns ids for requests to the client.
        on_lost: called when a node that has sessions of the client does not respond any more.
    """

    def __init__(
        self,
        node: ClusterNode,
        *,
        client: Callable[[], RelayedClient],
        deliver: Callable[[bytes], Awaitable[None]],
        next_id: Callable[[], int],
        on_lost: Callable[[], None],
    ) -> None:
        self._node = node
        self._client = client
        self._deliver = deliver
        self._next_id = next_id
        self._on_lost = on_lost
        self._channels: dict[int, NodeChannel] = {}
        self._requests: dict[int, tuple[int, int]] = {}  # by their ids at the client
        self._tasks = Tasks()
        self._is_closed = False

    def better_node(self) -> int | None:
        """The node on which a new session should begin instead of this one; None if here."""
        chosen = self._node.choose_node()
        return None if chosen == self._node.number else chosen

    async def forward(self, node: int, message: jsonrpc.Request | jsonrpc.Notification) -> None:
        """Send a message of the client to the node that has the session.

        Raises:
            Error: ``draining``; the node is out of reach.
        """
        if node not in self._channels:
            await self._node.check_alive(node)
        channel = self._channels.get(node)  # another message may have opened it meanwhile
        try:
            if channel is None:
                channel = self._channels[node] = self._node.channels.open(node, RELAY)
                self._tasks.spawn(self._read(node, channel), f"acp-of-node-{node}")
                await send_message(channel, msgspec.json.encode(self._client()))
            await send_message(channel, jsonrpc.encode(message))
        except ChannelLostError:
            raise node_unreachable() from None

    async def forward_to_all(self, notification: jsonrpc.Notification) -> None:
        """Send a notification to the nodes that have sessions of the client."""
        for node in tuple(self._channels):
            await self.forward(node, notification)

    async def answer(self, response: jsonrpc.Response) -> bool:
        """Pass on the client's response to a request of another node. False if it is not one."""
        known = self._requests.pop(response.id, None) if isinstance(response.id, int) else None
        if known is None:
            return False
        node, request_id = known
        if (channel := self._channels.get(node)) is not None:
            await send_message(channel, jsonrpc.encode_response(request_id, response.result))
        return True

    def close(self) -> None:
        """End all channels: the client has disconnected."""
        self._is_closed = True
        self._tasks.cancel()
        for channel in self._channels.values():
            channel.close()

    async def _read(self, node: int, channel: NodeChannel) -> None:
        try:
            async for message in messages_of(channel):
                await self._deliver(self._translated(node, message))
        except ChannelLostError:
            pass
        finally:
            channel.close()
            self._channels.pop(node, None)
            if not self._is_closed:
                self._on_lost()

    def _translated(self, node: int, message: bytes) -> bytes:
        """A message with the ids that requests to the client have on its own connection."""
        if (request := _REQUEST.match(message)) is not None:
            own_id = self._next_id()
            self._requests[own_id] = node, int(request[1])
            return b'{"jsonrpc":"2.0","id":%d,"method":%b' % (own_id, message[request.end() :])
        if (cancel := _CANCEL.fullmatch(message)) is not None:
            cancelled = node, int(cancel[1])
            own_id = next((one for one, known in self._requests.items() if known == cancelled), 0)
            self._requests.pop(own_id, None)
            return jsonrpc.encode_notification("$/cancel_request", {"requestId": own_id})
        return message
