"""Credentials: one token each, until it is revoked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator

from ..errors import Error, ErrorCode
from ..storage.schema import TokenRow
from .scopes import ALL_SCOPES, Scope, check_scope

TOKEN_PREFIX = "cf_"  # noqa: S105
REVOKED_ABORT_SECS = 0.8
"""A connection with a revoked credential is aborted if it does not close within this time."""


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> bytes:
    """The SHA-256 of a token or ticket. Only hashes are stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def unauthorized() -> Error:
    """The error for every invalid credential. It never reveals why the credential is invalid."""
    return Error(ErrorCode.UNAUTHORIZED, "a valid token is needed: Authorization: Bearer cf_…")


class Credential:
    """The credential of a request: one token, until it is revoked.

    A later token with the same name is another credential. A request that was admitted with a
    revoked credential never gets a successful response.

    Attributes:
        row: the stored token.
        session_id: the one session that a share may read; None for a token.
        expires_at: unix seconds; None for a token.
        scopes: what the token allows now; the operator may change them.
    """

    __slots__ = ("_waits", "expires_at", "is_revoked", "row", "scopes", "session_id")

    def __init__(
        self,
        row: TokenRow,
        *,
        session_id: str | None = None,
        expires_at: float | None = None,
        scopes: frozenset[Scope] = frozenset(ALL_SCOPES),
    ) -> None:
        self.row = row
        self.scopes = scopes
        self.session_id = session_id
        self.expires_at = expires_at
        self.is_revoked = False
        self._waits: set[asyncio.Timeout] = set()

    @property
    def app_name(self) -> str:
        return self.row.name

    @property
    def waits(self) -> int:
        """The number of requests in a :meth:`waiting` block."""
        return len(self._waits)

    def require(self, scope: Scope) -> None:
        """Check that the credential has a scope.

        Raises:
            Error: ``forbidden``.
        """
        check_scope(self.scopes, scope)

    def check(self) -> None:
        """Check that the credential has not been revoked.

        Raises:
            Error: ``unauthorized``.
        """
        if self.is_revoked:
            raise unauthorized()

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """A block in which a request waits. A revocation cancels the block at once.

        The block must be safe to cancel: it must not wait for a commit.

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
        """Revoke the credential, and cancel all :meth:`waiting` blocks."""
        self.is_revoked = True
        for wait in tuple(self._waits):
            wait.reschedule(0)
