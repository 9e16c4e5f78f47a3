"""This node of the cluster: which sessions it owns, and which nodes there are."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Error, ErrorCode
from ..storage.growth import NEWEST
from ..storage.schema import LogRow, Statement
from ..storage.shared_limits import free_session
from ..tasks import Supervisor
from . import notices
from .bus import Bus, ClusterEngine
from .channels import Channels
from .membership import OtherNodeError

if TYPE_CHECKING:
    from ..storage.nodes import NodeRow

logger = logging.getLogger(__name__)

CLAIMED = "claimed"
"""The event that names a session and its new owner."""
NODES = "nodes"
"""The event after a node has started, drains, or has ended."""
LATE_BEATS = 5
"""A node that has missed this many beats, half of its lease, gets nothing new."""
_UNFINISHED = (
    "(EXISTS (SELECT 1 FROM turns WHERE turns.session = sessions.n AND last_seq IS NULL)"
    " OR EXISTS (SELECT 1 FROM asked WHERE asked.session = sessions.n)"
    " OR EXISTS (SELECT 1 FROM steers WHERE steers.session = sessions.n AND prompt IS NOT NULL))"
)
"""Whether a server has left work in a session."""
_WITHOUT_NODE = (
    "sessions.owner IS NOT NULL AND sessions.owner <> ?1 AND NOT EXISTS"
    " (SELECT 1 FROM nodes WHERE nodes.n = sessions.owner AND nodes.state <> 'gone')"
)
"""Whether the node of a session has ended."""
_LOOK = (
    "SELECT EXISTS (SELECT 1 FROM commands WHERE target = ?1),"  # noqa: S608
    f" EXISTS (SELECT 1 FROM sessions WHERE {_WITHOUT_NODE}),"
    " owned.ids, owned.works,"
    " ARRAY(SELECT id FROM sessions WHERE owner IS NULL AND removed_at IS NULL"
    " AND n IN (SELECT session FROM turns WHERE last_seq IS NULL)),"
    # The rows that each node caches: the tokens, the shares, the webhooks and the push
    # subscriptions of all apps.
    " ARRAY[(SELECT md5(string_agg(name || ' ' || encode(hash, 'hex') || coalesce(options, ''),"
    " ' ' ORDER BY name)) FROM tokens),"
    " (SELECT md5(string_agg(id, ' ' ORDER BY id)) FROM shares),"
    " (SELECT md5(string_agg(CAST(one AS TEXT), ' ' ORDER BY app_name)) FROM webhooks AS one),"
    " (SELECT md5(string_agg(CAST(one AS TEXT), ' ' ORDER BY id)) FROM push_subscriptions AS one)],"
    f" {NEWEST['postgresql']}"
    " FROM (SELECT array_agg(id) AS ids, array_agg(has_work) AS works"
    f" FROM (SELECT id, {_UNFINISHED} AS has_work FROM sessions WHERE owner = ?1) AS own) AS owned"
)


class NodeInfo(NamedTuple):
    """A node, as the last beat of this one found it.

    Attributes:
        state: ``up``, ``draining`` or ``gone``.
        is_late: it has missed :data:`LATE_BEATS`, so nothing new is sent to it.
        free: its free slots for agents.
        live: its agents.
    """

    number: int
    name: str
    state: str
    is_late: bool
    free: int
    live: int


class ClusterState(NamedTuple):
    """The rows of the tables that concern a node.

    Attributes:
        has_messages: rows with messages to this node are left.
        has_orphans: sessions are left whose nodes have ended.
        owned: the sessions that this node owns, each with whether work is left in it.
        waiting: the sessions without an owner in which a turn waits.
        digest: changes with the rows that each node caches in memory.
    """

    has_messages: bool
    has_orphans: bool
    owned: list[tuple[str, bool]]
    waiting: list[str]
    digest: tuple[object, ...]


def node_unreachable() -> Error:
    """The error for a request to a session whose node does not answer."""
    message = "the session's node is out of reach; retry"
    return Error(ErrorCode.DRAINING, message, retry_after=1)


class ClusterNode:
    """One node of the cluster.

    Attributes:
        nodes: the nodes that are not gone, by number.
        on_heads: called with the session numbers and heads that another node reports.
        on_entries: called with committed entries that another node reports.
        on_nodes: called after a beat has found which nodes there are.
        on_digest: called with the digest of each :meth:`look`.
        find_nodes: reads which nodes there are, and calls :meth:`note_nodes`.
        growth: changes when the log has new rows, or there are new sessions; of the last look.
        free_slots: returns the free slots of this node.
        is_draining: this node takes no sessions any more.
    """

    def __init__(
        self,
        engine: ClusterEngine,
        number: int,
        supervisor: Supervisor,
        *,
        beat_secs: float,
        secret: bytes,
    ) -> None:
        self.number: int | None = number
        self.beat_secs = beat_secs
        self._number = number
        self.engine = engine
        self.nodes: dict[int, NodeInfo] = {}
        self.is_draining = False
        self.free_slots: Callable[[], int] = lambda: 1
        self.on_heads: Callable[[Sequence[tuple[int, int]]], None] = lambda heads: None
        self.on_entries: Callable[[LogRow], None] = lambda row: None
        self.on_nodes: Callable[[], None] = lambda: None
        self.on_digest: Callable[[tuple[object, ...]], None] = lambda digest: None
        self.growth: tuple[object, ...] = ()
        self.on_event: dict[str, Callable[[str], None]] = {}
        self.find_nodes: Callable[[], Awaitable[None]] = _find_none
        self.bus = Bus(engine, number, supervisor, secret)
        self.bus.on_notice = self._handle_notice
        self.channels = Channels(self.bus)

    # Ownership

    async def claim(self, session_id: str) -> bool:
        """Become the owner of a session; see :class:`Cluster`."""
        rows = await self._owner_rows(session_id)
        if rows and not await self._is_running(rows[0][0]) and not self.is_draining:
            await self.take_over_sessions()
            rows = await self._owner_rows(session_id)
        if not rows:
            return False
        owner: int | None = rows[0][0]
        if owner == self._number and self.is_draining:
            raise node_unreachable()  # it was handed over, and its waiting turns run elsewhere
        if owner is None and (other := self._better_node()) is not None:
            raise OtherNodeError(session_id, other)
        if owner is None:
            claimed = await self.engine.change(
                "WITH f AS MATERIALIZED"
                " (SELECT n FROM nodes WHERE n = ?1 AND state = 'up' FOR SHARE)"
                " UPDATE sessions SET owner = f.n FROM f"
                " WHERE id = ?2 AND (owner IS NULL OR owner = ?1) RETURNING owner",
                (self._number, session_id),
                repeats=True,
            )
            if claimed:
                return True
            rows = await self._owner_rows(session_id)
            owner = rows[0][0] if rows else None
        if owner is None:
            raise node_unreachable()
        if owner != self._number:
            raise OtherNodeError(session_id, owner)
        return False

    async def _owner_rows(self, session_id: str) -> list[tuple[Any, ...]]:
        return await self.engine.fetch("SELECT owner FROM sessions WHERE id = ?", (session_id,))

    async def _is_running(self, number: int | None) -> bool:
        """Whether no other node has taken over the node of that number."""
        if number is not None and number not in self.nodes:
            await self.find_nodes()  # it may have started just now
        return number is None or number in self.nodes

    def _better_node(self) -> int | None:
        """A node that should wake a session instead of this one; None if this one should.

        The session takes a slot of that node, which its next beat reports.
        """
        if not self.is_draining and self.free_slots() > 0:
            return None
        others = [node for node in self._others() if node.free > 0]
        if not others and self.is_draining:
            others = self._others()
        better = _freer_of_two(others)
        if better is not None:
            info = self.nodes[better]
            self.nodes[better] = info._replace(free=info.free - 1)
        return better

    def choose_node(self) -> int:
        """The node for a new session: this one if it has a free slot."""
        better = self._better_node()
        return self._number if better is None else better

    @property
    def agents_on_other_nodes(self) -> int:
        """The number of agents on the other nodes."""
        return sum(node.live for node in self.nodes.values() if node.number != self._number)

    def _others(self) -> list[NodeInfo]:
        return [
            node
            for node in self.nodes.values()
            if node.number != self._number and node.state == "up" and not node.is_late
        ]

    async def announce_draining(self) -> None:
        """Let the other nodes send nothing new to this one, from now on."""
        await self.engine.change(
            "UPDATE nodes SET state = 'draining' WHERE n = ? AND state = 'up'",
            (self._number,),
            repeats=True,
        )
        await self.notify_all(NODES)

    def note_nodes(self, rows: Iterable[NodeRow]) -> None:
        """Note which nodes there are, and end the channels to nodes that have ended."""
        late_secs = LATE_BEATS * self.beat_secs
        self.nodes = {
            row.number: NodeInfo(
                *(row.number, row.name, row.state),
                is_late=row.age > late_secs,
                free=row.slots - row.live,
                live=row.live,
            )
            for row in rows
        }
        self.channels.lose_nodes(self.nodes)
        self.on_nodes()

    def note_gone(self, numbers: Iterable[int]) -> None:
        """Note that nodes have ended."""
        for number in numbers:
            self.nodes.pop(number, None)
        self.channels.lose_nodes(self.nodes)
        self.on_nodes()

    async def look(self) -> ClusterState:
        """Read what concerns this node, also what notifications have not reported.

        It depends only on the tables, so it finds what another node has left half done.
        """
        [row] = await self.engine.fetch(_LOOK, (self._number,))
        has_messages, has_orphans, ids, works, waiting, digest, *newest = row
        self.growth = tuple(newest)
        if has_messages:
            self.bus.look()
        state = ClusterState(
            has_messages,
            has_orphans,
            list(zip(ids or (), works or (), strict=True)),
            list(waiting),
            tuple(digest),
        )
        self.on_digest(state.digest)
        return state

    async def take_over_sessions(self) -> None:
        """Take the sessions of nodes that have ended: those with work, and free the others.

        It depends only on the tables, so it completes an unfinished takeover of another node.
        """
        await self.engine.change(
            "WITH f AS MATERIALIZED"  # noqa: S608
            " (SELECT n FROM nodes WHERE n = ?1 AND state <> 'gone' FOR SHARE)"
            f" UPDATE sessions SET owner = CASE WHEN {_UNFINISHED} THEN f.n END FROM f"
            f" WHERE {_WITHOUT_NODE}",
            (self._number,),
            repeats=True,
        )

    async def release(self, ids: Sequence[str]) -> None:
        """Release sessions of this node that are not in its memory. None is in use."""
        marks = ", ".join("?" * len(ids))
        await self.engine.change(
            f"UPDATE sessions SET owner = NULL WHERE owner = ? AND id IN ({marks})",  # noqa: S608
            (self._number, *ids),
            repeats=True,
        )

    def announce(self, session: int) -> None:
        """Let the nodes that follow a session know that this one runs it now."""
        self.bus.announce(f"{CLAIMED} {session} {self._number}")

    def ownership_of(self, session: int, reservation: str) -> list[Statement]:
        """The statements that make this node own a new session, and free its reservation."""
        return [self.owner_statement(session, self._number), free_session(reservation)]

    def owner_statement(self, session: int, owner: int | None) -> Statement:
        """The statement that gives a session of this node another owner, or none."""
        return (
            "UPDATE sessions SET owner = ?1 WHERE n = ?2 AND (owner IS NULL OR owner = ?3)",
            (owner, session, self._number),
        )

    async def next_session_number(self) -> int:
        rows = await self.engine.change("SELECT nextval('session_numbers')", repeats=True)
        return int(rows[0][0])

    async def heads_of(self, numbers: Iterable[int]) -> dict[int, tuple[int | None, int]]:
        """The owner and the head of each session, by its number."""
        wanted = list(numbers)
        marks = ", ".join("?" * len(wanted))
        rows = await self.engine.fetch(
            "SELECT n, owner, coalesce((SELECT max(last_seq) FROM log WHERE session = sessions.n),"  # noqa: S608
            f" 0) FROM sessions WHERE n IN ({marks})",
            wanted,
        )
        return {number: (owner, head) for number, owner, head in rows}

    # Notifications

    async def report(
        self, node: int, heads: Iterable[tuple[int, int]], entries: Iterable[str]
    ) -> None:
        """Notify a node of committed entries of the logs that it follows, or of their heads.

        Args:
            entries: of :func:`notices.entries_text`.
        """
        await self.bus.notify(node, *notices.heads_texts(heads), *entries, shows_commits=True)

    async def notify_all(self, kind: str, text: str = "") -> None:
        """Send an event to every node, also to this one. It may be lost."""
        await self.bus.notify_all(f"{kind} {text}")

    def _handle_notice(self, notice: str) -> None:
        if notice.startswith(notices.ENTRIES):
            self.on_entries(notices.row_of(notice))
            return
        if notice.startswith(notices.HEADS):
            self.on_heads(notices.heads_of(notice))
            return
        kind, _, text = notice.partition(" ")
        if (handle := self.on_event.get(kind)) is not None:
            handle(text)

    async def check_alive(self, node: int) -> None:
        """Check that messages to a node will be read.

        Raises:
            Error: ``draining``; it is late or gone.
        """
        if node == self._number:
            return
        if not await self._is_running(node) or self.nodes[node].is_late:
            raise node_unreachable()


async def _find_none() -> None:
    """Find no nodes: this node has no lease."""


def _freer_of_two(nodes: Sequence[NodeInfo]) -> int | None:
    """Draw two nodes at random, and return the one with more free slots."""
    if not nodes:
        return None
    drawn = random.sample(nodes, min(2, len(nodes)))
    return max(drawn, key=lambda one: one.free).number
