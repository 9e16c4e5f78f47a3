"""Tickets: one-time secrets, with which an app's backend admits a browser to one session."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from ..config import MAX_SECRET_LENGTH
from ..errors import Error, ErrorCode
from .credential import Credential, hash_secret, unauthorized

TICKET_PREFIX = "cft_"
TICKET_SECS = 30
"""The lifetime of a ticket."""


@dataclass(frozen=True, slots=True)
class OpenTicket:
    """A ticket that has not been redeemed; ``expires_at`` is on the registry's clock."""

    credential: Credential
    session_id: str
    expires_at: float


class CarriedTicket(msgspec.Struct, kw_only=True):
    """An open ticket for the next version of the server, by its hash."""

    key: bytes
    app_name: str
    session_id: str
    expires_at: float


class TicketRegistry:
    """The open tickets of all apps, in memory, by their hashes.

    Args:
        max_per_app: how many tickets of one app may be open at once.
        clock: seconds that never go back.
    """

    def __init__(
        self, max_per_app: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_per_app = max_per_app
        self._clock = clock
        self._open: dict[bytes, OpenTicket] = {}
        self._hashes_of: dict[Credential, dict[bytes, None]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._open)

    def issue(self, credential: Credential, session_id: str) -> str:
        """Issue a ticket that admits one socket to one session, within :data:`TICKET_SECS`.

        Raises:
            Error: ``rate_limited`` if the app has too many open tickets, or ``unauthorized``.
        """
        credential.check()
        now = self._clock()
        own = self._hashes_of.setdefault(credential, {})
        while own and self._open[oldest := next(iter(own))].expires_at <= now:
            del own[oldest], self._open[oldest]
        if len(own) >= self._max_per_app:
            raise Error(
                ErrorCode.RATE_LIMITED, "the app has too many open tickets", retry_after=TICKET_SECS
            )
        ticket = TICKET_PREFIX + secrets.token_urlsafe(32)
        key = hash_secret(ticket)
        self._open[key] = OpenTicket(credential, session_id, now + TICKET_SECS)
        own[key] = None
        return ticket

    def redeem(self, ticket: str, session_id: str | None = None) -> OpenTicket:
        """Use up a ticket.

        Args:
            session_id: the session that the ticket must be for; None for any.

        Raises:
            Error: ``unauthorized``; the ticket is unknown, used, expired or discarded, or it is for
                another session.
        """
        if len(ticket) > MAX_SECRET_LENGTH:
            raise unauthorized()
        key = hash_secret(ticket)
        open_ticket = self._open.pop(key, None)
        if open_ticket is None:
            raise unauthorized()
        own = self._hashes_of[open_ticket.credential]
        del own[key]
        if not own:
            del self._hashes_of[open_ticket.credential]
        if open_ticket.expires_at <= self._clock():
            raise unauthorized()
        if session_id not in (None, open_ticket.session_id):
            raise unauthorized()
        return open_ticket

    def pack(self) -> list[CarriedTicket]:
        """Return the open tickets of tokens for the next version of the server."""
        return [
            CarriedTicket(
                key=key,
                app_name=ticket.credential.app_name,
                session_id=ticket.session_id,
                expires_at=ticket.expires_at,
            )
            for key, ticket in self._open.items()
            if ticket.credential.session_id is None
        ]

    def restore(
        self, carried: Iterable[CarriedTicket], credential_of: Callable[[str], Credential | None]
    ) -> None:
        """Accept the tickets of an earlier version of the server, until the same times."""
        for ticket in carried:
            if (credential := credential_of(ticket.app_name)) is not None:
                self._open[ticket.key] = OpenTicket(
                    credential, ticket.session_id, ticket.expires_at
                )
                self._hashes_of.setdefault(credential, {})[ticket.key] = None

    def discard_all(self, credential: Credential) -> None:
        """Discard the open tickets of a revoked credential."""
        for key in self._hashes_of.pop(credential, {}):
            del self._open[key]
