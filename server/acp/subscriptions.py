"""The sessions to which an ACP connection subscribes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator

from ..errors import Error, ErrorCode
from ..sessions.session import Session
from ..ws import framing
from ..ws.outbox import Outbox
from ..ws.paced_writer import WRITE_BYTES
from . import jsonrpc
from .subscription import SessionSubscription
from .update_filter import UpdateFilter


class Subscriptions:
    """The subscriptions of one connection, at most one for each session.

    Args:
        max_per_session: how many connections may subscribe to one session.
        on_entries: called when a session has new entries.
        on_response: called with each request that has got its response from a subscription.

    Attributes:
        have_positions: the client continues at positions of the log (``resumption.py``).
        updates: withholds the updates that the client does not understand.
    """

    def __init__(
        self,
        *,
        max_per_session: int,
        on_entries: Callable[[], None],
        on_response: Callable[[jsonrpc.Request], None],
    ) -> None:
        self.have_positions = False
        self._max_per_session = max_per_session
        self._on_entries = on_entries
        self._on_response = on_response
        self.updates = UpdateFilter(None)
        self._by_session: dict[str, SessionSubscription] = {}
        self._request_ids = itertools.count(1)

    def __iter__(self) -> Iterator[SessionSubscription]:
        return iter(tuple(self._by_session.values()))

    def get(self, session_id: str) -> SessionSubscription | None:
        return self._by_session.get(session_id)

    @property
    def lag(self) -> int:
        """The largest number of entries of one session that the client has not been sent yet."""
        return max(
            (subscription.session.log.head - subscription.cursor for subscription in self),
            default=0,
        )

    @property
    def have_more(self) -> bool:
        return any(subscription.has_more for subscription in self._by_session.values())

    def add(
        self, session: Session, cursor: int, limit: int, elicitation: Collection[str]
    ) -> SessionSubscription:
        """Subscribe to a session.

        Args:
            limit: bytes of the largest message that the client accepts.
            elicitation: the modes of ``elicitation/create`` that the client can show.

        Raises:
            Error: ``rate_limited``; too many connections subscribe to the session.
        """
        if session.subscribers >= self._max_per_session:
            raise Error(ErrorCode.RATE_LIMITED, "connection limit reached for this session")
        subscription = self._by_session[session.id] = SessionSubscription(
            session,
            cursor,
            on_response=self._on_response,
            next_id=self.next_id,
            limit=limit,
            has_positions=self.have_positions,
            elicitation=elicitation,
            updates=self.updates,
        )
        session.subscribers += 1
        session.log.subscribe(self._on_entries)
        self._on_entries()
        return subscription

    def cancel_subagent(self, child: str) -> bool:
        """Cancel the work of a subagent, by its session id. False if no session here has it.

        The agent ignores it for a subagent whose work cannot be cancelled.
        """
        owner = next(
            (subscription for subscription in self if child in subscription.subagents.ids), None
        )
        if owner is None or owner.session.is_closed:
            return False
        owner.session.agent.backend_agent.cancel_subagent(child)
        return True

    def schedule(self) -> None:
        """Have the entries after the cursors sent."""
        self._on_entries()

    def remove(self, subscription: SessionSubscription) -> None:
        del self._by_session[subscription.session.id]
        subscription.session.log.unsubscribe(self._on_entries)
        subscription.session.subscribers -= 1

    def clear(self) -> None:
        for subscription in self:
            self.remove(subscription)

    def next_id(self) -> int:
        """An id for a request to the client."""
        return next(self._request_ids)

    async def next_frames(self, outbox: Outbox) -> list[bytes]:
        """The WebSocket frames to write next: of the outbox, then of each session in turn."""
        messages = await self.next_messages()
        # The outbox comes first: the response to `session/new` precedes its session's updates.
        return [*outbox.take(), *map(framing.text_frame, messages)]

    async def next_messages(self) -> list[bytes]:
        """The messages to write next, of each session in turn."""
        messages: list[bytes] = []
        size = 0
        for subscription in self:
            cursor = subscription.cursor
            batches = subscription.take_unrendered()
            if not batches:
                batches = await subscription.session.log.read(cursor)
                current = self._by_session.get(subscription.session.id)
                if current is not subscription or subscription.cursor != cursor:
                    continue  # meanwhile removed, or replayed from the first entry
            rendered = subscription.render(batches, WRITE_BYTES - size)
            messages += rendered
            size += sum(map(len, rendered))
            if subscription.is_over:
                self.remove(subscription)
            else:  # the next round begins with another session
                self._by_session[subscription.session.id] = self._by_session.pop(
                    subscription.session.id
                )
            if size >= WRITE_BYTES:
                break
        return messages
