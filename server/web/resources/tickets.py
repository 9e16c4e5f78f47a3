"""Tickets: each admits one WebSocket to one session, so that a browser needs no token."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from ...auth.shared_tickets import issue_ticket
from ...auth.tickets import TICKET_SECS
from ...sessions.session import Session
from ..context import CREDENTIAL, context_of
from ..endpoint import Endpoint, Tag


class TicketCreated(msgspec.Struct, kw_only=True):
    """A new ticket. It admits one WebSocket, once."""

    ticket: str
    expires_in: Annotated[int, msgspec.Meta(description="Seconds.")]


@Endpoint(
    "POST",
    "/sessions/{session_id}/ticket",
    tag=Tag.SESSIONS,
    scope="manage",
    summary="Create a ticket for a browser",
    description="The ticket admits one WebSocket to this session, once.",
    example={"ok": True, "ticket": "cft_…", "expires_in": 30},
    failures=("rate_limited",),
)
async def create_ticket(request: web.Request, session: Session) -> TicketCreated:
    ticket = await issue_ticket(context_of(request).tokens, request[CREDENTIAL], session.id)
    return TicketCreated(ticket=ticket, expires_in=TICKET_SECS)
