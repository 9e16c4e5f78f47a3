"""The cluster as the sessions see it, and a cluster of one server."""

from __future__ import annotations

from typing import Protocol

from ..errors import Error, ErrorCode
from ..storage.schema import Statement


class OtherNodeError(Error):
    """Another node runs the session. A client that gets this failure may retry.

    Attributes:
        session_id: the session.
        owner: the number of the node.
    """

    def __init__(self, session_id: str, owner: int) -> None:
        message = "another node runs the session; retry on its socket or over REST"
        super().__init__(ErrorCode.DRAINING, message, retry_after=1)
        self.session_id = session_id
        self.owner = owner


class Cluster(Protocol):
    """The nodes that share a database. A session is in the memory of one of them at most.

    Attributes:
        number: of this node, as the owner of sessions; None without a cluster.
    """

    number: int | None

    @property
    def agents_on_other_nodes(self) -> int:
        """The number of agents on the other nodes."""

    async def claim(self, session_id: str) -> bool:
        """Become the owner of a session, unless it has one.

        Returns:
            Whether it had none, and this node owns it now.

        Raises:
            OtherNodeError: another node owns it.
            Error: ``internal``; the database is out of reach.
        """

    def announce(self, session: int) -> None:
        """Let the nodes that follow a session know that this one runs it now."""

    async def next_session_number(self) -> int | None:
        """The number of a new session; None if the next one in this process is free."""

    def ownership_of(self, session: int, reservation: str) -> list[Statement]:
        """The statements that make this node own a new session, and free its reservation."""


class SingleServer:
    """The only server on its database: it owns every session."""

    number: int | None = None
    agents_on_other_nodes = 0

    async def claim(self, session_id: str) -> bool:
        """Do nothing: no other server has the session."""
        return False

    def announce(self, session: int) -> None:
        """Do nothing: a single server tells its own clients."""

    async def next_session_number(self) -> None:
        """Return None: this process numbers all sessions."""

    def ownership_of(self, session: int, reservation: str) -> list[Statement]:
        """Return no statements: a single server stores no owners."""
        return []


SINGLE_SERVER = SingleServer()
