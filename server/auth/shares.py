"""Shares: secrets that open one session for reading, until they are revoked or expire.

They are the credentials of people who have a link, and know nothing else of the app.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable

from ..config import MAX_SECRET_LENGTH
from ..errors import Error, ErrorCode, forbidden_to_shares, not_found
from ..storage import statements
from ..storage.queries import Queries
from ..storage.schema import SessionRow, TokenRow
from ..storage.share_row import ShareRow
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion
from .credential import Credential, hash_secret, unauthorized

SHARE_PREFIX = "cfs_"
MAX_TIMER_SECS = 3600.0


def is_share(secret: str | None) -> bool:
    """Whether a credential has the form of a share's, valid or not."""
    return secret is not None and secret.startswith(SHARE_PREFIX)


class ShareRegistry:
    """The shares of all apps, in memory as in the database.

    Attributes:
        on_revoke: called with the credential of a share that is revoked or has expired.
    """

    def __init__(
        self,
        queries: Queries,
        writer: DatabaseWriter,
        max_per_session: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_revoke: Callable[[Credential], None] = lambda credential: None
        self.on_changed: Callable[[], Awaitable[None]] = _notify_no_node
        self._queries = queries
        self._writer = writer
        self._max_per_session = max_per_session
        self._clock = clock
        self._rows: dict[str, ShareRow] = {}
        self._by_hash: dict[bytes, Credential] = {}
        self._revoked: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def load(self) -> None:
        """Load all shares."""
        for row in await self._queries.shares():
            self._add(row)

    async def refresh(self) -> None:
        """Take over the shares that other nodes of the cluster have created and revoked."""
        rows = {row.id: row for row in await self._queries.shares()}
        for row in rows.values():
            is_new = row.id not in self._rows and row.id not in self._revoked
            if is_new and not self._is_expired(row):
                self._add(row)
        for row in tuple(self._rows.values()):
            if row.id not in rows:
                self._drop(row)

    async def create(
        self, session: SessionRow, label: str | None, expires_in: float | None
    ) -> tuple[ShareRow, str]:
        """Create a share of a session.

        Args:
            label: shown in the list of shares.
            expires_in: seconds; None for a share that does not expire.

        Returns:
            The stored row, and the secret, which is not stored.

        Raises:
            Error: ``rate_limited``; the session has too many shares.
        """
        if len(self.rows(session.n)) >= self._max_per_session:
            message = f"a session has at most {self._max_per_session} shares: revoke one"
            raise Error(ErrorCode.RATE_LIMITED, message)
        secret = SHARE_PREFIX + secrets.token_urlsafe(32)
        now = self._clock()
        row = ShareRow(
            id=str(uuid.uuid4()),
            session=session.n,
            session_id=session.id,
            app_name=session.app_name,
            hash=hash_secret(secret),
            label=label,
            created_at=now,
            expires_at=None if expires_in is None else now + expires_in,
        )
        await to_completion(self._writer.commit([statements.insert_share(row)]))
        self._add(row)
        await self.on_changed()
        return row, secret

    def rows(self, session: int) -> list[ShareRow]:
        """The shares of a session that have not expired, the oldest first."""
        now = self._clock()
        return [
            row
            for row in self._rows.values()
            if row.session == session and (row.expires_at is None or row.expires_at > now)
        ]

    async def revoke(self, session: int, share_id: str) -> None:
        """Revoke a share of a session: its waiting requests are refused, and its sockets close.

        Raises:
            Error: ``not_found``.
        """
        row = self._rows.get(share_id)
        if row is None or row.session != session:
            raise not_found("share")
        self._revoked.add(share_id)
        self._drop(row)
        await to_completion(self._writer.commit([statements.delete_share(share_id)]))
        await self.on_changed()

    def authenticate(self, secret: str, session_id: str) -> Credential:
        """Return the credential of a share of one session.

        Raises:
            Error: ``unauthorized`` if the share is unknown, revoked or expired; ``not_found`` if
                it is one of another session.
        """
        credential = self.find(secret)
        if credential.session_id != session_id:
            raise not_found()
        return credential

    def find(self, secret: str) -> Credential:
        """Return the credential of a share of any session.

        Raises:
            Error: ``unauthorized``.
        """
        if len(secret) > MAX_SECRET_LENGTH:
            raise unauthorized()
        credential = self._by_hash.get(hash_secret(secret))
        if credential is None:
            raise unauthorized()
        if credential.expires_at is not None and credential.expires_at <= self._clock():
            raise unauthorized()
        return credential

    def refuse(self, secret: str) -> Error:
        """Return the failure of a request that a share does not allow."""
        try:
            self.find(secret)
        except Error as error:
            return error
        return forbidden_to_shares()

    async def drop_session(self, session: SessionRow, _: bool) -> None:
        """Revoke the shares of a session that is being deleted: a step of its removal."""
        for row in [row for row in self._rows.values() if row.session == session.n]:
            self._drop(row)

    def drop_app(self, app_name: str) -> None:
        """Revoke the shares of an app whose token is revoked. The caller deletes their rows."""
        for row in [row for row in self._rows.values() if row.app_name == app_name]:
            self._drop(row)

    def _add(self, row: ShareRow) -> None:
        token = TokenRow(row.app_name, row.hash, "[]", row.created_at)
        self._rows[row.id] = row
        self._by_hash[row.hash] = Credential(
            token, session_id=row.session_id, expires_at=row.expires_at
        )
        self._watch(row)

    def _watch(self, row: ShareRow) -> None:
        """Revoke a share as soon as it has expired."""
        if row.expires_at is None:
            return
        if self._is_expired(row):
            self._drop(row)
            return
        delay = min(row.expires_at - self._clock(), MAX_TIMER_SECS)
        self._timers[row.id] = asyncio.get_running_loop().call_later(delay, self._watch, row)

    def _is_expired(self, row: ShareRow) -> bool:
        return row.expires_at is not None and row.expires_at <= self._clock()

    def _drop(self, row: ShareRow) -> None:
        self._rows.pop(row.id, None)
        if (timer := self._timers.pop(row.id, None)) is not None:
            timer.cancel()
        credential = self._by_hash.pop(row.hash, None)
        if credential is not None:
            credential.revoke()
            self.on_revoke(credential)


async def _notify_no_node() -> None:
    """Do nothing: there are no other nodes."""
