"""Notifications without a socket: the app's webhook, and the push subscriptions of browsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .rest import Rest, segment, without_none
from .shapes import Json


class Webhook:
    """The app's webhook. There is one; see docs/howto/webhooks.md."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def set(
        self, url: str, *, events: Sequence[str] | None = None, secret: str | None = None
    ) -> Json:
        """Set the webhook, in place of an earlier one.

        Args:
            events: by default all.
            secret: the key of the signatures; by default a new one.

        Returns:
            ``{url, events, created_at}``, and ``secret`` if it is new: it is not shown again.
        """
        body = without_none(
            {"url": url, "events": None if events is None else [*events], "secret": secret}
        )
        return await self._rest.call("PUT", "/webhook", body, repeat=secret is not None)

    async def state(self) -> Json:
        """``{url, events, pending, last_success_at, failures, …}``; ``not_found`` without one."""
        return await self._rest.call("GET", "/webhook")

    async def delete(self) -> None:
        """Delete the webhook, with the deliveries that wait."""
        await self._rest.call("DELETE", "/webhook", repeat=False)


class Push:
    """The browsers that are notified by Web Push; see docs/howto/push.md."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def key(self) -> str:
        """The server's public key: the browser's ``applicationServerKey``."""
        return str((await self._rest.call("GET", "/push/key"))["key"])

    async def subscribe(
        self, subscription: Mapping[str, Any], *, events: Sequence[str] | None = None
    ) -> str:
        """Notify a browser. Returns the id of the subscription, which the same browser keeps.

        Args:
            subscription: the ``toJSON()`` of the browser's subscription.
            events: by default all but ``session_closed``.
        """
        body = {name: subscription[name] for name in ("endpoint", "keys")}
        if events is not None:
            body["events"] = [*events]
        return str((await self._rest.call("POST", "/push/subscriptions", body, repeat=True))["id"])

    async def subscriptions(self) -> list[Json]:
        """``[{id, service, events, created_at}]``, the oldest first."""
        return list((await self._rest.call("GET", "/push/subscriptions"))["subscriptions"])

    async def unsubscribe(self, subscription_id: str) -> None:
        """Notify a browser no longer."""
        await self._rest.call("DELETE", f"/push/subscriptions/{segment(subscription_id)}")
