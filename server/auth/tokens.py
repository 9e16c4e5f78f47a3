"""The apps' tokens and the admin token.

A token is 256 random bits, and is shown once: only its SHA-256 is stored. It gives access to
everything of its app and to nothing of another app, whose resources appear not to exist.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from ..accounts.accounts import Accounts
from ..config import MAX_SECRET_LENGTH
from ..errors import Error, ErrorCode, bad_request, not_found
from ..origins import address_of, is_in_networks, network_of
from ..sandbox.demands import SandboxDemand, StricterSandboxes
from ..sandbox.sandbox import Sandbox
from ..storage import statements
from ..storage.outbox import delete_outbox_of
from ..storage.queries import Queries
from ..storage.schema import TokenRow
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion
from .admin_token import AdminToken
from .credential import Credential, hash_secret, new_token, unauthorized
from .first_tokens import FIRST_APP, FirstTokens
from .scopes import Scope
from .shared_tickets import SharedTickets, redeem_ticket
from .shares import ShareRegistry, is_share
from .tickets import TICKET_PREFIX, TicketRegistry
from .token_options import TokenOptions

logger = logging.getLogger(__name__)

NO_TOKEN_OPTIONS = TokenOptions()


class TokenRegistry:
    """The tokens of all apps, in memory as in the database, and the admin token.

    Attributes:
        tickets: the open tickets; a revocation discards the tickets of its token.
        shared_tickets: the open tickets of a cluster; without one, *tickets* has them.
        shares: the shares; a revocation of a token revokes the shares of its app.
        accounts: receives the limits and the budgets of the tokens.
        on_revoke: called with the app's name as soon as a token is revoked.
        on_reading_ended: called with the app's name when its token loses the scope ``read``.
        on_changed: called when tokens have changed, to notify the other nodes of a cluster.
        sandboxes: the sandboxes of apps that have their own; None until :meth:`connect_sandbox`.
        second_app_refusal: why there must not be a second app; None if there may.
    """

    def __init__(
        self,
        queries: Queries,
        writer: DatabaseWriter,
        *,
        max_tickets_per_app: int = 10_000,
        max_shares_per_session: int = 100,
        clock: Callable[[], float] = time.time,
        accounts: Accounts | None = None,
    ) -> None:
        self.accounts = accounts or Accounts(clock=clock)
        self._clock = clock
        self.tickets = TicketRegistry(max_tickets_per_app)
        self.sandboxes: StricterSandboxes | None = None
        self.shared_tickets: SharedTickets | None = None
        self.second_app_refusal: str | None = None
        self.shares = ShareRegistry(queries, writer, max_shares_per_session, clock)
        self.on_revoke: Callable[[str], None] = lambda name: None
        self.on_reading_ended: Callable[[str], None] = lambda name: None
        self._queries = queries
        self._writer = writer
        self._admin = AdminToken(queries, writer)
        self._by_hash: dict[bytes, Credential] = {}
        self._names: set[str] = set()
        self._options: dict[str, TokenOptions] = {}
        self._changing = asyncio.Lock()
        self._revoking: set[str] = set()
        self._changes = 0  # by this node
        self.on_changed = self.shares.on_changed

    async def load(self, admin_token: str | None) -> FirstTokens | None:
        """Load all tokens. The first start creates an app token and, if necessary, an admin token.

        Args:
            admin_token: the admin token of the settings. Without one, an admin token is created
                and its hash is stored.

        Returns:
            The created tokens, which must be shown to the operator, or None.
        """
        await self.load_app_tokens()
        await self.shares.load()
        loaded = await self._admin.load(admin_token)
        if loaded is None:
            return await self.load(admin_token)  # another node starts at this moment
        app_token = None
        if loaded.is_first_start and not self._names:
            try:
                app_token = (await self.create(FIRST_APP))[1]
            except Error as error:
                if error.code is not ErrorCode.CONFLICT:
                    raise
        created = loaded.created
        return FirstTokens(created, app_token) if created or app_token else None

    def _add(self, row: TokenRow, options: TokenOptions) -> None:
        """Let a token be valid from now on."""
        self._names.add(row.name)
        self._by_hash[row.hash] = Credential(row, scopes=options.allowed)
        self._apply(row.name, options)

    async def refresh(self) -> None:
        """Take over what other nodes of the cluster have created, changed and revoked."""
        while not await self.load_app_tokens():
            pass  # the rows that were read do not have a change of this node
        await self.shares.refresh()

    async def load_app_tokens(self) -> bool:
        """Load the apps' tokens, and create none; False if this node changes one meanwhile."""
        changes = self._changes
        rows = {row.hash: row for row in await self._queries.tokens()}
        if self._changes != changes:
            return False
        for credential in tuple(self._by_hash.values()):
            if credential.row.hash not in rows:
                self._end(credential)
                self._forget(credential.app_name)
        for row in rows.values():
            known = self._by_hash.get(row.hash)
            is_same = known is not None and known.row.options == row.options
            if is_same or row.name in self._revoking:
                continue
            options = TokenOptions.decode(row.options)
            await self._prepare(row.name, options, was_accepted=True)
            if self._changes != changes:
                return False
            if known is None:
                self._add(row, options)
            else:
                known.row.options = row.options
                self._change(known, options)
        return True

    async def find(self, app_name: str) -> Credential:
        """The credential of an app, for a request that another node has authenticated.

        Raises:
            Error: ``unauthorized``.
        """
        if self.credential_of(app_name) is None:
            await self.refresh()
        if (credential := self.credential_of(app_name)) is None:
            raise unauthorized()
        return credential

    async def _prepare(
        self, name: str, options: TokenOptions, *, was_accepted: bool = False
    ) -> None:
        """Read what options need before they can take effect.

        Raises:
            DatabaseError: the database cannot be read.
            Error: ``bad_request`` or ``not_supported``; the sandbox cannot be used.
        """
        if options.budget:
            await self.accounts.load(name)
        if options.sandbox and self.sandboxes is not None:
            prepare = self.sandboxes.prepare_stored if was_accepted else self.sandboxes.prepare
            await asyncio.to_thread(prepare, options.sandbox)

    def _apply(self, name: str, options: TokenOptions) -> None:
        """Let options take effect."""
        self._options[name] = options
        self.accounts.set(name, options.limits or None, options.budget or None)

    async def connect_sandbox(self, sandbox: Sandbox) -> None:
        """Let the sandboxes that tokens demand take effect. No agent may be started before."""
        self.sandboxes = sandbox.stricter
        self.second_app_refusal = sandbox.refusal
        for options in self._options.values():
            if options.sandbox:
                await asyncio.to_thread(self.sandboxes.prepare_stored, options.sandbox)
        self.sandboxes.demand_of = self._sandbox_of

    def _sandbox_of(self, app_name: str) -> SandboxDemand | None:
        options = self._options.get(app_name)
        return (options.sandbox if options is not None else None) or None

    def credential_of(self, app_name: str) -> Credential | None:
        """The credential of an app's token."""
        credentials = self._by_hash.values()
        return next((known for known in credentials if known.app_name == app_name), None)

    def environ_of(self, app_name: str) -> Mapping[str, str]:
        """Return the variables that the agents and runs of an app get."""
        options = self._options.get(app_name)
        return (options.env if options is not None else None) or {}

    def authenticate(self, token: str | None, address: str | None) -> Credential:
        """Return the credential of the token that a client at *address* sent.

        Raises:
            Error: ``unauthorized``, or ``forbidden`` for a share.
        """
        if token is None or len(token) > MAX_SECRET_LENGTH:
            raise unauthorized()
        if is_share(token):
            raise self.shares.refuse(token)
        presented = hash_secret(token)
        credential = self._by_hash.get(presented)
        if credential is None or not hmac.compare_digest(credential.row.hash, presented):
            raise unauthorized()
        networks = [network_of(cidr) for cidr in json.loads(credential.row.ip_cidrs)]
        if networks and not is_in_networks(address_of(address or ""), networks):
            logger.warning(
                "the token of app %s was used from outside its networks", credential.app_name
            )
            raise unauthorized()
        return credential

    async def authenticate_with_ticket(
        self, secret: str, address: str | None
    ) -> tuple[Credential, str | None]:
        """Return the credential of a token, or of a ticket, which is used up.

        Returns:
            The credential, and the one session that a ticket admits to (None for a token).

        Raises:
            Error: ``unauthorized``.
        """
        if not secret.startswith(TICKET_PREFIX):
            return self.authenticate(secret, address), None
        return await redeem_ticket(self, secret)

    def is_admin(self, token: str | None) -> bool:
        """Whether *token* is the admin token."""
        return self._admin.matches(token)

    @property
    def waits(self) -> int:
        """The number of waiting requests that a revocation would cancel."""
        return sum(credential.waits for credential in self._by_hash.values())

    def rows(self) -> list[TokenRow]:
        """The stored tokens, by name."""
        rows = [credential.row for credential in self._by_hash.values()]
        return sorted(rows, key=lambda row: row.name)

    async def create(
        self, name: str, ip_cidrs: Sequence[str] = (), options: TokenOptions = NO_TOKEN_OPTIONS
    ) -> tuple[TokenRow, str]:
        """Create an app's token.

        Args:
            ip_cidrs: the networks from which the token may be used; empty for all.
            options: the other options.

        Returns:
            The stored row, and the token itself, which is not stored.

        Raises:
            Error: ``bad_request``, ``payload_too_large``, or ``conflict`` if the name is taken.
        """
        options.check()
        for cidr in ip_cidrs:
            try:
                network_of(cidr)
            except ValueError:
                raise bad_request(
                    f"ip_cidrs: {cidr!r} is not a network such as 10.0.0.0/8"
                ) from None
        if name in self._names:
            raise _taken(name)
        if self._names and self.second_app_refusal is not None:
            raise Error(ErrorCode.CONFLICT, self.second_app_refusal)
        self._names.add(name)
        token = new_token()
        options = NO_TOKEN_OPTIONS.changed(options)
        networks = json.dumps(list(ip_cidrs))
        row = TokenRow(name, hash_secret(token), networks, self._clock(), options.encode())
        try:
            await self._prepare(name, options)
            await to_completion(self._writer.commit([statements.insert_token(row)]))
        except BaseException as error:
            self._names.discard(name)
            if isinstance(error, Error) and await self._queries.has_app(name):
                raise _taken(name) from None
            raise
        self._changes += 1
        self._add(row, options)
        await self.on_changed()
        return row, token

    async def change(self, name: str, changes: TokenOptions) -> TokenRow:
        """Change the options of an app's token.

        Raises:
            Error: ``not_found`` or ``payload_too_large``.
        """
        changes.check()
        async with self._changing:
            credential = self._credential_of(name)
            row = credential.row
            before = self._options[name]
            options = before.changed(changes)
            await self._prepare(name, options)
            statement = statements.set_token_options(name, options.encode())
            await to_completion(self._writer.commit([statement]))
            row.options = options.encode()
            self._changes += 1
            self._change(credential, options)
            await self.on_changed()
            return row

    def _change(self, credential: Credential, options: TokenOptions) -> None:
        """Let the new options of a token take effect."""
        before, credential.scopes = credential.scopes, options.allowed
        if credential.app_name in self._options:  # it was not revoked meanwhile
            self._apply(credential.app_name, options)
        if "read" in before - options.allowed:
            self.on_reading_ended(credential.app_name)

    def allows(self, name: str, scope: Scope) -> bool:
        """Whether the token of an app exists and has a scope now."""
        options = self._options.get(name)
        return options is not None and scope in options.allowed

    def _credential_of(self, name: str) -> Credential:
        credential = self.credential_of(name)
        if credential is None:
            raise not_found("token")
        return credential

    async def revoke(self, name: str) -> None:
        """Revoke an app's token: its waiting requests are refused, and its sockets close.

        Raises:
            Error: ``not_found``.
        """
        credential = self._credential_of(name)
        row = credential.row
        self._revoking.add(name)
        self._changes += 1
        self._end(credential)
        deletion = [
            statements.delete_token(name),
            statements.delete_shares_of(name),
            *delete_outbox_of(name),
        ]
        try:
            await to_completion(self._writer.commit(deletion))
        except Error:
            self._by_hash[row.hash] = Credential(row, scopes=self._options[name].allowed)
            raise
        finally:
            self._revoking.discard(name)
            self._changes += 1
        self._forget(name)
        await self.on_changed()

    def _end(self, credential: Credential) -> None:
        """Let a token be valid no longer."""
        self._by_hash.pop(credential.row.hash, None)
        credential.revoke()
        self.tickets.discard_all(credential)
        self.shares.drop_app(credential.app_name)
        self.on_revoke(credential.app_name)

    def _forget(self, name: str) -> None:
        self._names.discard(name)
        self._options.pop(name, None)
        self.accounts.set(name, None, None)


def _taken(name: str) -> Error:
    return Error(ErrorCode.CONFLICT, f"the name {name!r} is taken")
