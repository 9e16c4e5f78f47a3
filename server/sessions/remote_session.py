"""Sessions that another node of the cluster runs, as this node shows them to its clients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol
from weakref import WeakValueDictionary

from ..cluster.channels import ChannelLostError
from ..cluster.membership import OtherNodeError
from ..cluster.node import ClusterNode, node_unreachable
from ..codec import dumps, loads
from ..storage.queries import Queries
from ..storage.schema import SessionRow
from .event_log import LogReader
from .followed_log import FollowedLog, LogFollower
from .remote_lists import RemoteLists

READY = "ready"
"""The kind of the channels on which a node asks for the state of a session."""


class ViewedSession(Protocol):
    """The part of a session by which a client follows it, wherever the session runs."""

    subscribers: int

    @property
    def id(self) -> str: ...

    @property
    def row(self) -> SessionRow: ...

    @property
    def log(self) -> LogReader: ...

    @property
    def is_log_complete(self) -> bool: ...


class RemoteSession:
    """A session that another node runs.

    Attributes:
        row: the session's row when this object was made.
        ready: the state that the owner sent last, as a client gets it: a frame.
        ready_head: the head of the log in that state.
    """

    def __init__(self, row: SessionRow, log: FollowedLog, follower: LogFollower) -> None:
        self.row = row
        self.ready = b""
        self.ready_head = log.head
        self.owner: int | None = None
        self._log = log
        self._follower = follower
        self._subscribers = 0

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def log(self) -> LogReader:
        return self._log

    @property
    def is_log_complete(self) -> bool:
        return self._log.is_complete

    @property
    def subscribers(self) -> int:
        """The number of connections that follow the log here."""
        return self._subscribers

    @subscribers.setter
    def subscribers(self, count: int) -> None:
        if count > self._subscribers == 0:
            self._follower.follow(self.id, self._log, self.owner)
        elif self._subscribers > count == 0:
            self._follower.unfollow(self._log)
        self._subscribers = count

    def note_ready(self, frame: bytes) -> None:
        """Note the state that the owner has sent."""
        self.ready = frame
        self.ready_head = int(loads(frame)["head"])
        self._log.note_head(self.ready_head)


@contextlib.contextmanager
def following(session: ViewedSession) -> Iterator[None]:
    """A block in which the log of a session of another node is read as it grows."""
    if not isinstance(session, RemoteSession):
        yield
        return
    session.subscribers += 1
    try:
        yield
    finally:
        session.subscribers -= 1


class RemoteSessions:
    """The sessions of other nodes that clients of this node follow.

    Attributes:
        forwarded: the number of requests and commands that were passed on to other nodes.
    """

    def __init__(
        self, node: ClusterNode, follower: LogFollower, lists: RemoteLists, queries: Queries
    ) -> None:
        self.forwarded = 0
        self.follower = follower
        self.lists = lists
        self.node = node
        self._queries = queries
        self._loaded: WeakValueDictionary[str, RemoteSession] = WeakValueDictionary()

    async def get(self, error: OtherNodeError) -> RemoteSession | None:
        """The session for which a look-up raised *error*; None if it was deleted.

        Raises:
            Error: ``draining``; its node is out of reach.
        """
        session = self._loaded.get(error.session_id)
        if session is None or not session.subscribers or session.log.has_gone_back:
            row = await self._queries.session(error.session_id)
            if row is None:
                return None
            head = await self._queries.log_head(row.n)
            log = self.follower.open(row.n, head, is_complete=row.closed_at is not None)
            session = self._loaded[row.id] = RemoteSession(row, log, self.follower)
        session.owner = error.owner
        session.note_ready(await self._ask_ready(error))
        return session

    async def _ask_ready(self, error: OtherNodeError) -> bytes:
        channel = self.node.channels.open(error.owner, READY)
        try:
            channel.send_now(dumps({"session_id": error.session_id}))
            if (frame := await channel.receive()) is not None:
                return frame
        except ChannelLostError:
            pass
        finally:
            channel.close()
        raise node_unreachable()
