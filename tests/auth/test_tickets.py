"""The registry of tickets: one use, one session, a lifetime, and a limit for each app."""

from __future__ import annotations

import pytest

from server.auth.credential import Credential
from server.auth.tickets import TICKET_SECS, TicketRegistry
from server.errors import Error
from server.storage.schema import TokenRow

from ..conftest import Serve


class Clock:
    """Seconds that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_credential(name: str = "app") -> Credential:
    return Credential(TokenRow(name, name.encode(), "[]", 0))


def refusal(tickets: TicketRegistry, ticket: str, session_id: str | None = "s") -> str:
    with pytest.raises(Error) as refused:
        tickets.redeem(ticket, session_id)
    return refused.value.code


def test_ticket_is_redeemed_once() -> None:
    tickets, credential = TicketRegistry(), new_credential()
    ticket = tickets.issue(credential, "s")
    redeemed = tickets.redeem(ticket, "s")
    assert (redeemed.credential, redeemed.session_id) == (credential, "s")
    assert refusal(tickets, ticket) == "unauthorized"
    assert len(tickets) == 0


def test_ticket_for_another_session_is_refused_and_used_up() -> None:
    tickets = TicketRegistry()
    ticket = tickets.issue(new_credential(), "s")
    assert refusal(tickets, ticket, "other") == "unauthorized"
    assert refusal(tickets, ticket) == "unauthorized"


@pytest.mark.parametrize("ticket", ["", "cft_", "cft_" + "x" * 43, "x" * 100_000, "\ud800"])
def test_unknown_ticket_is_refused(ticket: str) -> None:
    tickets = TicketRegistry()
    tickets.issue(new_credential(), "s")
    assert refusal(tickets, ticket, None) == "unauthorized"


def test_ticket_is_valid_for_30_seconds(clock: Clock) -> None:
    tickets, credential = TicketRegistry(clock=clock), new_credential()
    assert TICKET_SECS == 30
    first, second = (tickets.issue(credential, "s") for _ in range(2))
    clock.now += 29.9
    assert tickets.redeem(first, "s").credential is credential
    clock.now += 0.1
    assert refusal(tickets, second) == "unauthorized"


def test_revoked_credential_invalidates_tickets() -> None:
    tickets, credential, other = TicketRegistry(), new_credential(), new_credential("other")
    ticket = tickets.issue(credential, "s")
    of_other = tickets.issue(other, "s")
    credential.revoke()
    tickets.discard_all(credential)
    with pytest.raises(Error) as refused:  # by a request that was admitted before the revocation
        tickets.issue(credential, "s")
    assert refused.value.code == "unauthorized"
    assert refusal(tickets, ticket) == "unauthorized"
    assert tickets.redeem(of_other, "s").credential is other


def test_open_tickets_of_app_are_limited_until_they_expire(clock: Clock) -> None:
    tickets, credential = TicketRegistry(3, clock), new_credential()
    for _ in range(3):
        tickets.issue(credential, "s")
    with pytest.raises(Error) as refused:
        tickets.issue(credential, "s")
    assert (refused.value.code, refused.value.retry_after) == ("rate_limited", TICKET_SECS)
    tickets.issue(new_credential("other"), "s")
    clock.now += TICKET_SECS
    tickets.issue(credential, "s")
    assert len(tickets) == 2  # the expired tickets were discarded


async def test_ticket_over_limit_of_app_is_429(serve: Serve) -> None:
    server = await serve(max_tickets_per_app=1)
    client = await server.client()
    path = f"/sessions/{await client.create()}/ticket"
    assert (await client.post(path))[0] == 200
    status, reply = await client.post(path)
    assert (status, reply["code"]) == (429, "rate_limited")
