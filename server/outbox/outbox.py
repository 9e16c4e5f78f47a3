"""The parts of webhooks and push, wired together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..auth.tokens import TokenRegistry
from ..config import Settings
from ..hosts import AllowedHosts
from ..sessions.registry import SessionRegistry
from ..storage import statements
from ..storage.database import Database
from ..storage.outbox import OutboxQueries
from ..storage.queries import Queries
from ..storage.writer import DatabaseWriter
from .http_client import OutboundClient
from .push_crypto import ServerIdentity, new_private_key, preload
from .push_sender import PushSender
from .subscriptions import PushSubscriptions

logger = logging.getLogger(__name__)

IDENTITY_KEY = "push_key"
"""The key of the private key among the stored values of the server."""
PUSH_TIMEOUT_SECS = 10.0


class AlertOutbox:
    """Webhooks and push.

    Attributes:
        subscriptions: push subscriptions of browsers.
        push: sends notifications to them.
        identity: the key pair by which push services recognise the server.
    """

    def __init__(
        self, subscriptions: PushSubscriptions, push: PushSender, identity: ServerIdentity
    ) -> None:
        self.subscriptions = subscriptions
        self.push = push
        self.identity = identity
        self._clients: list[OutboundClient] = []

    @classmethod
    async def start(
        cls,
        settings: Settings,
        database: Database,
        writer: DatabaseWriter,
        tokens: TokenRegistry,
        clock: Callable[[], float],
    ) -> AlertOutbox:
        """Load what is stored, and create the key pair at the first start.

        Args:
            tokens: an app learns nothing while its token does not have the scope ``read``.
        """

        def may_read(app_name: str) -> bool:
            return tokens.allows(app_name, "read")

        queries = OutboxQueries(database)
        push_client = OutboundClient(
            AllowedHosts(settings.push_hosts), "CLAWDFORGE_PUSH_HOSTS", PUSH_TIMEOUT_SECS
        )
        subscriptions = PushSubscriptions(
            queries,
            writer,
            push_client,
            max_per_app=settings.max_push_subscriptions_per_app,
            clock=clock,
        )
        await subscriptions.load()
        await asyncio.to_thread(preload)
        identity = ServerIdentity(
            await _stored_private_key(database, writer), _contact_address(settings)
        )
        push = PushSender(
            subscriptions,
            push_client,
            identity,
            may_read=may_read,
            ttl_secs=settings.push_ttl_secs,
        )
        outbox = cls(subscriptions, push, identity)
        outbox._clients.append(push_client)
        return outbox

    def connect(self, sessions: SessionRegistry) -> None:
        """Receive the alerts of the sessions from now on."""
        sessions.alerts.receivers.append(self.push)

    def drop_app(self, app_name: str) -> None:
        """Stop everything of an app whose token is revoked. The caller deletes its rows."""
        self.subscriptions.drop_app(app_name)

    async def stop(self) -> None:
        await self.push.stop()
        for client in self._clients:
            await client.close()


async def _stored_private_key(database: Database, writer: DatabaseWriter) -> bytes:
    """The server's private key. It is in the database, as the subscriptions that depend on it."""
    stored = await Queries(database).server_value(IDENTITY_KEY)
    if stored is None:
        stored = new_private_key()
        await writer.commit([statements.set_server_value(IDENTITY_KEY, stored)])
    return stored


def _contact_address(settings: Settings) -> str | None:
    """The operator's address for push services: the setting, or the address of the page."""
    if settings.push_contact is not None:
        return settings.push_contact
    return next((one for one in settings.allowed_origins if one.startswith("https://")), None)
