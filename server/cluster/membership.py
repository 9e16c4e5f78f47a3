"""The cluster as the sessions see it, and a cluster of one server."""

from __future__ import annotations

from typing import Protocol


class ElsewhereError(Exception):
    """Another node runs the session.

    Attributes:
        session_id: the session.
        owner: the number of the node.
    """

    def __init__(self, session_id: str, owner: int) -> None:
        super().__init__(f"session {session_id} is on node {owner}")
        self.session_id = session_id
        self.owner = owner


class Cluster(Protocol):
    """The nodes that share a database. A session is in the memory of one of them at most.

    Attributes:
        number: of this node, as the owner of sessions; None without a cluster.
    """

    number: int | None

    async def claim(self, session_id: str) -> None:
        """Become the owner of a session, unless it has one.

        Raises:
            ElsewhereError: another node owns it.
            Error: ``internal``; the database is out of reach.
        """


class Alone:
    """The only server on its database: it owns every session."""

    number: int | None = None

    async def claim(self, session_id: str) -> None:
        """Do nothing: no other server has the session."""


ALONE = Alone()
