"""Who may do what: tokens, the networks they are bound to, and tickets.

A token is 256 random bits, shown once; only its SHA-256 is kept. All of an
app's rights hang on its token: what is another app's does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from ..config import MAX_SECRET_LENGTH
from ..errors import Error, bad_request, not_found
from ..origins import address_of, is_in_networks, network_of
from ..sessions.event_log import DatabaseWriter
from ..storage import database as store
from ..storage.database import Database
from ..storage.schema import TokenRow
from ..tasks import to_completion

logger = logging.getLogger(__name__)

PREFIX = "cf_"
TICKET_PREFIX = "cft_"
FIRST_APP = "first-app"
ADMIN_KEY = "admin_token"
TICKET_SECS = 30
REVOKE_SECS = 0.8
"""A connection whose credential was revoked, and that takes nothing, is dropped after so long."""


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def unauthorized() -> Error:
    """Always the same: it says nothing of what was wrong with the token."""
    return Error("unauthorized", "a valid token is needed: Authorization: Bearer cf_…")


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The tokens that a first start makes."""

    admin: str | None
    app: str | None


class Credential:
    """What a request was admitted with: one token, until it is revoked.

    A token that is made later under the same name is another credential. A request is answered
    only for the credential that it was admitted with.

    Attributes:
        row: what is stored of the token.
        tickets: keys of those that are open, the oldest first.
        is_revoked: from then on no request that was admitted with it gets a successful response.
    """

    __slots__ = ("_waits", "is_revoked", "row", "tickets")

    def __init__(self, row: TokenRow) -> None:
        self.row = row
        self.tickets: dict[bytes, None] = {}
        self.is_revoked = False
        self._waits: set[asyncio.Timeout] = set()

    @property
    def app_name(self) -> str:
        return self.row.name

    @property
    def waits(self) -> int:
        """How many requests wait in :meth:`waiting`."""
        return len(self._waits)

    def check(self) -> None:
        """Refuse what was asked with a token that has been revoked meanwhile.

        Raises:
            Error: ``unauthorized``.
        """
        if self.is_revoked:
            raise unauthorized()

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """A block in which a request waits; a revocation ends the wait at once.

        What the block awaits must bear to be cancelled: it is never the storing of something.

        Raises:
            Error: ``unauthorized``; the token was revoked before the block or during it.
        """
        self.check()
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            raise unauthorized() from None
        self.check()

    def revoke(self) -> None:
        self.is_revoked = True
        for wait in tuple(self._waits):
            wait.reschedule(0)


@dataclass(frozen=True, slots=True)
class Ticket:
    credential: Credential
    session_id: str
    expires_at: float


class TokenRegistry:
    """The apps' tokens, in memory as in the database, and the admin's.

    Args:
        max_tickets_per_app: how many tickets of an app may be open at once.
    """

    def __init__(
        self, database: Database, writer: DatabaseWriter, *, max_tickets_per_app: int = 10_000
    ) -> None:
        self.max_tickets_per_app = max_tickets_per_app
        self._store = database
        self._writer = writer
        self._admin = b""
        self._by_hash: dict[bytes, Credential] = {}
        self._names: set[str] = set()
        self._tickets: dict[bytes, Ticket] = {}
        self.on_revoke: Callable[[str], None] = lambda name: None

    async def load(self, admin_token: str | None) -> FirstTokens | None:
        """Read the tokens; a first start makes some.

        Args:
            admin_token: the setting's; without one a token is made and kept (as a hash).

        Returns:
            What was made, if anything, which the operator is to be shown, once.
        """
        await self.look()
        kept = await self._store.server_value(ADMIN_KEY)
        made = None
        if admin_token is not None:
            self._admin = digest(admin_token)
            # Good as long as it is set: of it nothing is kept but that there was a first start.
            keep = b"" if kept is None or kept == self._admin else kept
        elif kept:
            self._admin = keep = kept
        else:
            made = new_token()
            self._admin = keep = digest(made)
        if keep != kept:
            await self._writer.commit([store.set_server_value(ADMIN_KEY, keep)])
        app_token = None
        if kept is None and not self._names:
            app_token = (await self.create(FIRST_APP))[1]
        return FirstTokens(made, app_token) if made or app_token else None

    async def look(self) -> None:
        """Read the apps' tokens, and make none."""
        for row in await self._store.tokens():
            self._by_hash[row.hash] = Credential(row)
            self._names.add(row.name)

    # Tokens.

    def admit(self, token: str | None, address: str | None) -> Credential:
        """The credential that *token* is, used from *address*.

        Raises:
            Error: ``unauthorized``.
        """
        if token is None or len(token) > MAX_SECRET_LENGTH:
            raise unauthorized()
        asked = digest(token)
        credential = self._by_hash.get(asked)
        if credential is None or not hmac.compare_digest(credential.row.hash, asked):
            raise unauthorized()
        row = credential.row
        networks = json.loads(row.ip_cidrs)
        if networks and not _in_networks(address, networks):
            logger.warning("the token of app %s was used from outside its networks", row.name)
            raise unauthorized()
        return credential

    @property
    def waits(self) -> int:
        """How many requests wait that a revocation would end."""
        return sum(credential.waits for credential in self._by_hash.values())

    def is_admin(self, token: str | None) -> bool:
        if token is None or len(token) > MAX_SECRET_LENGTH:
            return False
        return hmac.compare_digest(digest(token), self._admin)

    def rows(self) -> list[TokenRow]:
        rows = [credential.row for credential in self._by_hash.values()]
        return sorted(rows, key=lambda row: row.name)

    async def create(self, name: str, ip_cidrs: Sequence[str] = ()) -> tuple[TokenRow, str]:
        """Make an app's token.

        Returns:
            What is kept of it, and the token itself, which is not kept.

        Raises:
            Error: ``bad_request``, or ``conflict`` where the name is taken.
        """
        for cidr in ip_cidrs:
            try:
                network_of(cidr)
            except ValueError:
                raise bad_request(
                    f"ip_cidrs: {cidr!r} is not a network such as 10.0.0.0/8"
                ) from None
        if name in self._names:
            raise Error("conflict", f"the name {name!r} is taken")
        self._names.add(name)
        token = new_token()
        row = TokenRow(name, digest(token), json.dumps(list(ip_cidrs)), time.time())
        try:
            await to_completion(self._writer.commit([store.insert_token(row)]))
        except BaseException:
            self._names.discard(name)
            raise
        self._by_hash[row.hash] = Credential(row)
        return row, token

    async def revoke(self, name: str) -> None:
        """Take a token back: whoever waits with it is refused, and its sockets close.

        Raises:
            Error: ``not_found``.
        """
        known = self._by_hash.values()
        credential = next((one for one in known if one.app_name == name), None)
        if credential is None:
            raise not_found("token")
        row = credential.row
        del self._by_hash[row.hash]
        credential.revoke()
        for key in tuple(credential.tickets):
            self._forget_ticket(key)
        self.on_revoke(name)
        try:
            await to_completion(self._writer.commit([store.delete_token(name)]))
        except Error:
            self._by_hash[row.hash] = Credential(row)
            raise
        self._names.discard(name)

    # Tickets.

    def issue_ticket(self, credential: Credential, session_id: str) -> str:
        """A ticket for one socket of one session, good once and for :data:`TICKET_SECS`.

        Raises:
            Error: ``rate_limited``; the app has as many as it may.
        """
        now = time.monotonic()
        own = credential.tickets
        while own and self._tickets[first := next(iter(own))].expires_at <= now:
            self._forget_ticket(first)
        if len(own) >= self.max_tickets_per_app:
            raise Error(
                "rate_limited", "the app has too many open tickets", retry_after=TICKET_SECS
            )
        ticket = TICKET_PREFIX + secrets.token_urlsafe(32)
        key = digest(ticket)
        self._tickets[key] = Ticket(credential, session_id, now + TICKET_SECS)
        own[key] = None
        return ticket

    def _forget_ticket(self, key: bytes) -> Ticket | None:
        ticket = self._tickets.pop(key, None)
        if ticket is not None:
            del ticket.credential.tickets[key]
        return ticket

    def redeem_ticket(self, ticket: str, session_id: str) -> Credential:
        """The credential that *ticket* was made with; the ticket is used up.

        Raises:
            Error: ``unauthorized``.
        """
        found = self._take_ticket(ticket)
        if found.session_id != session_id:
            raise unauthorized()
        return found.credential

    def redeem(self, secret: str, address: str | None) -> tuple[Credential, str | None]:
        """Let in whoever shows a token, or a ticket, which is used up.

        Returns:
            The credential, and for a ticket the one session that it is for.

        Raises:
            Error: ``unauthorized``.
        """
        if not secret.startswith(TICKET_PREFIX):
            return self.admit(secret, address), None
        found = self._take_ticket(secret)
        return found.credential, found.session_id

    def _take_ticket(self, ticket: str) -> Ticket:
        if len(ticket) > MAX_SECRET_LENGTH:
            raise unauthorized()
        found = self._forget_ticket(digest(ticket))
        if found is None or found.expires_at <= time.monotonic():
            raise unauthorized()
        found.credential.check()  # it may have been issued in the moment of the revocation
        return found


def _in_networks(address: str | None, networks: Sequence[str]) -> bool:
    return is_in_networks(address_of(address or ""), list(map(network_of, networks)))
