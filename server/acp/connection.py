"""A WebSocket on which a client speaks ACP: JSON-RPC messages in both directions.

The reader handles quick requests at once, in their order. Requests that wait for an agent become
tasks, so that a cancel is always read. Responses that belong at a place in a session's log are sent
by its subscription (``subscription.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from ..agents.logins import AgentLogins
from ..auth.credential import Credential
from ..codec import call_off_loop
from ..errors import CloseCode
from ..sessions.registry import SessionRegistry
from ..ws.connection import WebSocketConnection
from ..ws.disconnect import Disconnect
from . import jsonrpc
from .jsonrpc import JsonRpcError
from .methods import AcpMethods
from .params import UrlOptions
from .relay import AcpRelays
from .relayed_messages import RelayedClient
from .requests import Requests
from .subscriptions import Subscriptions


class AcpConnection(WebSocketConnection):
    """The connection of an ACP client.

    Args:
        upgrade_id: the id of the upgrade request, for the server's log.
        options: of the URL; those in a message take precedence.
        only_session: the id of the only session that the client's ticket admits to, or None.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        credential: Credential,
        sessions: SessionRegistry,
        logins: AgentLogins,
        *,
        connection_id: str,
        upgrade_id: str,
        options: UrlOptions,
        only_session: str | None,
    ) -> None:
        super().__init__(
            request,
            response,
            credential.app_name,
            name=f"ACP connection {connection_id}",
            messages_per_sec=sessions.settings.max_commands_per_sec,
        )
        self.requests = Requests(self.send, sessions.tasks, self.name)
        self._subscriptions = Subscriptions(
            max_per_session=sessions.settings.max_sockets_per_session,
            on_entries=self.schedule_write,
            on_response=self.requests.forget,
        )
        self.methods = AcpMethods(
            sessions,
            logins,
            credential,
            self.requests,
            self._subscriptions,
            self.send,
            name=self.name,
            upgrade_id=upgrade_id,
            options=options,
            only_session=only_session,
        )
        self._upgrade_id = upgrade_id
        self._only_session = only_session
        if sessions.remote is not None:
            self.methods.relays = AcpRelays(
                sessions.remote.node,
                client=self._as_relayed,
                deliver=self._deliver,
                next_id=self._subscriptions.next_id,
                on_lost=self._on_lost_node,
            )

    @property
    def lag(self) -> int:
        return self._subscriptions.lag

    def on_open(self) -> None:
        pass

    def on_close(self) -> None:
        self.methods.client.is_disconnected = True
        self._subscriptions.clear()
        if self.methods.relays is not None:
            self.methods.relays.close()

    def next_frames(self) -> Coroutine[Any, Any, list[bytes]]:
        return self._subscriptions.next_frames(self._outbox)

    def has_more(self) -> bool:
        return self._subscriptions.have_more

    def on_binary(self) -> None:
        pass  # ACP's transport ignores binary messages

    async def on_text(self, data: bytes) -> None:
        try:
            message = await call_off_loop(jsonrpc.decode, data)
        except JsonRpcError as error:
            self.send(jsonrpc.encode_error(error.request_id, error))
            if not self.methods.is_initialized:
                self._close_uninitialized()
            return
        is_initialize = isinstance(message, jsonrpc.Request) and message.method == "initialize"
        if not (self.methods.is_initialized or is_initialize):
            self._close_uninitialized()
            return
        match message:
            case jsonrpc.Request():
                await self.methods.handle_request(message)
            case jsonrpc.Notification():
                await self.methods.handle_notification(message)
            case jsonrpc.Response():
                if not await self.methods.relay_response(message):
                    self.methods.handle_response(message)

    # Sessions of other nodes

    def _as_relayed(self) -> RelayedClient:
        return RelayedClient(
            app_name=self.app_name,
            name=self.name,
            upgrade_id=self._upgrade_id,
            options=self.methods.client.options,
            only_session=self._only_session,
            initialize=self.methods.initialize_params,
        )

    async def _deliver(self, message: bytes) -> None:
        self.send(message)
        if (drained := self._outbox.drained) is not None:
            await asyncio.wait({drained})

    def _on_lost_node(self) -> None:
        """Close the connection, as the node would do it that has ended."""
        self.close(Disconnect(CloseCode.RESTARTING, "the node of a session has ended"))

    def _close_uninitialized(self) -> None:
        self.close(Disconnect(CloseCode.PROTOCOL_ERROR, "the first message must be initialize"))
