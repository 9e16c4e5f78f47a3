"""The token of the operator."""

from __future__ import annotations

import hmac
from typing import NamedTuple

from ..config import MAX_SECRET_LENGTH
from ..storage import statements
from ..storage.queries import Queries
from ..storage.writer import DatabaseWriter
from .credential import hash_secret, new_token

ADMIN_KEY = "admin_token"
"""The key of the admin token's hash among the stored values of the server."""


class LoadedAdminToken(NamedTuple):
    """The result of loading the admin token.

    Attributes:
        is_first_start: no server has used the database before.
        created: a new token, which must be shown to the operator; None if there was one.
    """

    is_first_start: bool
    created: str | None


class AdminToken:
    """The admin token: that of the settings, or one that a start without one has created."""

    def __init__(self, queries: Queries, writer: DatabaseWriter) -> None:
        self._queries = queries
        self._writer = writer
        self._hash = b""

    async def load(self, setting: str | None) -> LoadedAdminToken | None:
        """Load the token, or create it.

        Args:
            setting: the admin token of the settings. Without one, an admin token is created and
                its hash is stored.

        Returns:
            None if another node makes its first start at this moment: try again.
        """
        stored = await self._queries.server_value(ADMIN_KEY)
        created = None
        if setting is not None:
            self._hash = hash_secret(setting)
            # The token of the settings is valid only while it is set, so its hash is not stored.
            # The empty value records that there was a first start.
            stored_next = b"" if stored is None or stored == self._hash else stored
        elif stored:
            self._hash = stored_next = stored
        else:
            created = new_token()
            self._hash = stored_next = hash_secret(created)
        if not await self._store(stored, stored_next):
            return None
        return LoadedAdminToken(stored is None, created)

    async def _store(self, before: bytes | None, after: bytes) -> bool:
        """Store the hash; False if another node has stored the first one."""
        if before is None:
            await self._writer.commit([statements.add_server_value(ADMIN_KEY, after)])
            return await self._queries.server_value(ADMIN_KEY) == after
        if after != before:
            await self._writer.commit([statements.set_server_value(ADMIN_KEY, after)])
        return True

    def matches(self, token: str | None) -> bool:
        """Whether a client has sent the admin token."""
        if token is None or len(token) > MAX_SECRET_LENGTH:
            return False
        return hmac.compare_digest(hash_secret(token), self._hash)
