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
from ..storage.schema import SessionRow
from ..storage.writer import DatabaseWriter
from .http_client import OutboundClient
from .push_crypto import ServerIdentity, new_private_key, preload
from .push_sender import PushSender
from .subscriptions import PushSubscriptions
from .webhook_delivery import WebhookLimits
from .webhook_sender import WebhookSender
from .webhooks import Webhooks

logger = logging.getLogger(__name__)

IDENTITY_KEY = "push_key"
"""The key of the private key among the stored values of the server."""
PUSH_TIMEOUT_SECS = 10.0


class AlertOutbox:
    """Webhooks and push.

    Attributes:
        webhooks: of the apps.
        sender: sends to them. Its :meth:`WebhookSender.run` must be run as a task.
        subscriptions: push subscriptions of browsers.
        push: sends notifications to them.
        identity: the key pair by which push services recognise the server.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        writer: DatabaseWriter,
        identity: ServerIdentity,
        may_read: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        queries = OutboxQueries(database)
        self._queries = Queries(database)
        hook_client = OutboundClient(
            AllowedHosts(settings.webhook_hosts),
            "CLAWDFORGE_WEBHOOK_HOSTS",
            settings.webhook_timeout_secs,
        )
        push_client = OutboundClient(
            AllowedHosts(settings.push_hosts), "CLAWDFORGE_PUSH_HOSTS", PUSH_TIMEOUT_SECS
        )
        self._clients = hook_client, push_client
        self.sender = WebhookSender(
            queries,
            writer,
            hook_client,
            WebhookLimits.of(settings),
            may_read=may_read,
            clock=clock,
        )
        self.webhooks = Webhooks(queries, writer, hook_client, self.sender, clock)
        self.subscriptions = PushSubscriptions(
            queries,
            writer,
            push_client,
            max_per_app=settings.max_push_subscriptions_per_app,
            clock=clock,
        )
        self.identity = identity
        self.push = PushSender(
            self.subscriptions,
            push_client,
            identity,
            queries,
            writer,
            may_read=may_read,
            ttl_secs=settings.push_ttl_secs,
            clock=clock,
        )

    @classmethod
    async def start(
        cls,
        settings: Settings,
        database: Database,
        writer: DatabaseWriter,
        tokens: TokenRegistry,
        clock: Callable[[], float],
    ) -> AlertOutbox:
        """Load the stored webhooks and subscriptions, and create the key pair at the first start.

        Args:
            tokens: an app learns nothing while its token does not have the scope ``read``.
        """

        def may_read(app_name: str) -> bool:
            return tokens.allows(app_name, "read")

        await asyncio.to_thread(preload)
        key = await _stored_private_key(database, writer)
        identity = ServerIdentity(key, _contact_address(settings))
        outbox = cls(settings, database, writer, identity, may_read, clock)
        await outbox.subscriptions.load()
        is_shared = database.engine == "postgresql"
        await outbox.sender.load(is_shared=is_shared)
        if not is_shared:
            await outbox.push.send_unsent()
        return outbox

    async def adopt(self, number: int) -> None:
        """Send also what this node of a cluster has adopted from others.

        Args:
            number: of this node.
        """
        await self.sender.adopt(number)
        await self.push.send_unsent(number)

    def connect(self, sessions: SessionRegistry) -> None:
        """Receive the alerts of the sessions from now on."""

        async def head_of(session_id: str) -> int | None:
            if (session := sessions.memory.get(session_id)) is not None:
                return session.log.head
            row = await self._queries.session(session_id)
            return None if row is None else await self._queries.log_head(row.n)

        async def forget_requests(row: SessionRow, is_purge: bool) -> None:
            if is_purge:
                await self.sender.forget_requests(row.app_name, row.id)
                await self.push.forget_requests(row.id)

        self.sender.head_of = head_of
        sessions.remover.steps.append(forget_requests)
        sessions.alerts.receivers += [self.sender, self.push]

    async def refresh(self) -> None:
        """Take over what other nodes of the cluster have set, added and deleted."""
        await self.webhooks.refresh()
        await self.subscriptions.refresh()

    def drop_app(self, app_name: str) -> None:
        """Stop everything of an app whose token is revoked. The caller deletes its rows."""
        self.sender.drop_app(app_name)
        self.subscriptions.drop_app(app_name)

    async def stop(self) -> None:
        """End all requests. Webhooks that were not delivered are repeated by the next server."""
        self.sender.stop()
        await self.push.stop()
        for client in self._clients:
            await client.close()


async def _stored_private_key(database: Database, writer: DatabaseWriter) -> bytes:
    """The server's private key. It is in the database, as the subscriptions that depend on it."""
    stored = await Queries(database).server_value(IDENTITY_KEY)
    if stored is None:
        await writer.commit([statements.add_server_value(IDENTITY_KEY, new_private_key())])
        stored = await Queries(database).server_value(IDENTITY_KEY)  # another node may be faster
        assert stored is not None
    return stored


def _contact_address(settings: Settings) -> str | None:
    """The operator's address for push services: the setting, or the address of the page."""
    if settings.push_contact is not None:
        return settings.push_contact
    return next(
        (origin for origin in settings.allowed_origins if origin.startswith("https://")), None
    )
