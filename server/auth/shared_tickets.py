"""The tickets of a cluster: each is redeemed once, on any node."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..config import MAX_SECRET_LENGTH
from ..errors import Error, ErrorCode
from .credential import Credential, hash_secret, unauthorized
from .tickets import TICKET_PREFIX, TICKET_SECS

if TYPE_CHECKING:
    from .tokens import TokenRegistry

_NOW = "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


class TicketTable(Protocol):
    """The engine that has the table ``tickets``."""

    async def change(
        self, sql: str, parameters: Sequence[Any] = (), *, repeats: bool = False
    ) -> list[tuple[Any, ...]]: ...


class SharedTickets:
    """The open tickets of all apps, in the database.

    Args:
        max_per_app: how many tickets of one app may be open at once.
    """

    def __init__(self, table: TicketTable, max_per_app: int) -> None:
        self._table = table
        self._max_per_app = max_per_app

    async def issue(self, credential: Credential, session_id: str) -> str:
        """Issue a ticket that admits one socket to one session, within :data:`TICKET_SECS`.

        Raises:
            Error: ``rate_limited`` if the app has too many open tickets, or ``unauthorized``.
        """
        credential.check()
        ticket = TICKET_PREFIX + secrets.token_urlsafe(32)
        await self._table.change(f"DELETE FROM tickets WHERE expires_at <= {_NOW}", repeats=True)  # noqa: S608
        stored = await self._table.change(
            "INSERT INTO tickets (hash, app_name, body, expires_at)"  # noqa: S608
            f" SELECT ?1, ?2, ?3, {_NOW} + ?4 WHERE"
            " (SELECT count(*) FROM tickets WHERE app_name = ?2) < ?5 RETURNING 1",
            (
                hash_secret(ticket),
                credential.app_name,
                session_id,
                float(TICKET_SECS),
                self._max_per_app,
            ),
        )
        if not stored:
            raise Error(
                ErrorCode.RATE_LIMITED, "the app has too many open tickets", retry_after=TICKET_SECS
            )
        return ticket

    async def redeem(self, ticket: str, session_id: str | None = None) -> tuple[str, str]:
        """Use up a ticket: the first node that deletes its row admits the client.

        Args:
            session_id: the session that the ticket must be for; None for any.

        Returns:
            The names of the app and of the session.

        Raises:
            Error: ``unauthorized``.
        """
        if len(ticket) > MAX_SECRET_LENGTH:
            raise unauthorized()
        rows = await self._table.change(
            f"DELETE FROM tickets WHERE hash = ? RETURNING app_name, body, expires_at > {_NOW}",  # noqa: S608
            (hash_secret(ticket),),
        )
        if not rows or not rows[0][2] or session_id not in (None, rows[0][1]):
            raise unauthorized()
        return rows[0][0], rows[0][1]


async def issue_ticket(tokens: TokenRegistry, credential: Credential, session_id: str) -> str:
    """Issue a ticket, in the database if other nodes redeem it as well.

    Raises:
        Error: as :meth:`TicketRegistry.issue`.
    """
    if tokens.shared_tickets is None:
        return tokens.tickets.issue(credential, session_id)
    return await tokens.shared_tickets.issue(credential, session_id)


async def redeem_ticket(
    tokens: TokenRegistry, ticket: str, session_id: str | None = None
) -> tuple[Credential, str]:
    """Use up a ticket, whichever node has issued it.

    Returns:
        The credential, and the id of the session.

    Raises:
        Error: ``unauthorized``.
    """
    if tokens.shared_tickets is None:
        open_ticket = tokens.tickets.redeem(ticket, session_id)
        return open_ticket.credential, open_ticket.session_id
    app_name, named = await tokens.shared_tickets.redeem(ticket, session_id)
    return await tokens.find(app_name), named
