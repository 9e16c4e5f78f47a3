"""The tokens that the first start of a server creates."""

from __future__ import annotations

from dataclasses import dataclass

from ..storage import statements
from ..storage.queries import Queries
from ..storage.writer import DatabaseWriter

FIRST_APP = "first-app"
ADMIN_KEY = "admin_token"
"""The key of the admin token's hash among the stored values of the server."""


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The tokens that the first start created; None for one that was not created."""

    admin: str | None
    app: str | None


async def store_admin_hash(
    queries: Queries, writer: DatabaseWriter, before: bytes | None, after: bytes
) -> bool:
    """Store the hash of the admin token; False if another node has stored the first one."""
    if before is None:
        await writer.commit([statements.add_server_value(ADMIN_KEY, after)])
        return await queries.server_value(ADMIN_KEY) == after
    if after != before:
        await writer.commit([statements.set_server_value(ADMIN_KEY, after)])
    return True
