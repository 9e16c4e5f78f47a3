"""ACP connections of clients of other nodes, for the sessions that this node has."""

from __future__ import annotations

import asyncio

import msgspec

from ..agents.logins import AgentLogins
from ..auth.credential import Credential
from ..auth.tokens import TokenRegistry
from ..cluster.channels import NodeChannel
from ..cluster.node import ClusterNode
from ..sessions.registry import SessionRegistry
from . import jsonrpc
from .methods import AcpMethods
from .relayed_messages import RELAY, RelayedClient, messages_of, send_message
from .requests import Requests
from .subscriptions import Subscriptions


class RelayedConnection:
    """The part of a client's connection that belongs to this node.

    Args:
        channel: to the node of the client.
    """

    def __init__(
        self,
        channel: NodeChannel,
        client: RelayedClient,
        credential: Credential,
        sessions: SessionRegistry,
        logins: AgentLogins,
    ) -> None:
        self._channel = channel
        self._client = client
        self._outgoing: list[bytes] = []
        self._is_due = asyncio.Event()
        requests = Requests(self._send, sessions.tasks, client.name)
        self._subscriptions = Subscriptions(
            max_per_session=sessions.settings.max_sockets_per_session,
            on_entries=self._is_due.set,
            on_response=requests.forget,
        )
        self._methods = AcpMethods(
            sessions,
            logins,
            credential,
            requests,
            self._subscriptions,
            self._send,
            name=client.name,
            upgrade_id=client.upgrade_id,
            options=client.options,
            only_session=client.only_session,
        )

    async def serve(self) -> None:
        """Serve the client until its node closes the channel.

        Raises:
            ChannelLostError: the other node has ended, or the client has disconnected.
        """
        initialize = jsonrpc.Request(b"0", b"0", "initialize", self._client.initialize)
        await self._methods.handle_request(initialize)
        self._outgoing.clear()  # the client has the response of its own node
        writing = asyncio.create_task(self._write(), name=f"relay of {self._client.name}")
        reading = asyncio.create_task(self._read(), name=f"{self._client.name} of another node")
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._methods.client.is_disconnected = True
            self._subscriptions.clear()
            for task in (reading, writing):
                task.cancel()
            results = await asyncio.gather(reading, writing, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _send(self, message: bytes) -> None:
        self._outgoing.append(message)
        self._is_due.set()

    async def _read(self) -> None:
        async for data in messages_of(self._channel):
            match jsonrpc.decode(data):
                case jsonrpc.Request() as request:
                    await self._methods.handle_request(request)
                case jsonrpc.Notification() as notification:
                    await self._methods.handle_notification(notification)
                case jsonrpc.Response() as response:
                    self._methods.handle_response(response)

    async def _write(self) -> None:
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            entries = await self._subscriptions.next_messages()
            # The response to `session/new` precedes the updates of its session.
            responses, self._outgoing = self._outgoing, []
            for message in (*responses, *entries):
                await send_message(self._channel, message)
            if self._subscriptions.have_more:
                self._is_due.set()


class AcpRelayServer:
    """Serves the channels that other nodes open for their ACP clients."""

    def __init__(
        self,
        node: ClusterNode,
        sessions: SessionRegistry,
        tokens: TokenRegistry,
        logins: AgentLogins,
    ) -> None:
        self._sessions = sessions
        self._tokens = tokens
        self._logins = logins
        node.channels.servers[RELAY] = self._serve

    async def _serve(self, channel: NodeChannel) -> None:
        messages = messages_of(channel)
        client = msgspec.json.decode(await anext(messages), type=RelayedClient)
        credential = await self._tokens.find(client.app_name)
        # The sessions that the client opens stay here until it disconnects.
        with self._sessions.uses.scope():
            connection = RelayedConnection(
                channel, client, credential, self._sessions, self._logins
            )
            await connection.serve()
