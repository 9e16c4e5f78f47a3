"""Lists of the sessions of all nodes, and the changes of sessions on other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..cluster.channels import ChannelLostError, NodeChannel
from ..cluster.node import ClusterNode
from ..codec import dumps, loads
from ..errors import DatabaseError
from ..storage.schema import SessionRow
from ..tasks import Tasks

if TYPE_CHECKING:
    from .registry import SessionRegistry
    from .session import Session

logger = logging.getLogger(__name__)

VIEWS, LIST = "session-views", "session-list"
"""The kinds of the channels on which nodes ask for the states of some sessions, and follow those of
an app."""
ANSWER_SECS = 2.0
"""The time after which a list is made without the answer of another node."""
OPEN_AGAIN_SECS = 0.2
"""The time after the end of a channel before it is opened again."""


class ListedSession(msgspec.Struct, frozen=True, eq=False):
    """The state of a session that another node runs.

    Attributes:
        state: as the owner sent it; the path of its folder and everything else included.
    """

    row: SessionRow
    state: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def state_name(self) -> str:
        return str(self.state["state"])

    @property
    def is_closed(self) -> bool:
        return self.state_name == "closed"

    def view(self) -> dict[str, Any]:
        """The session as REST returns it."""
        return dict(self.state)


class RemoteLists:
    """Puts the sessions of other nodes into the lists of this one."""

    def __init__(self, node: ClusterNode, sessions: SessionRegistry) -> None:
        self._node = node
        self._sessions = sessions
        self._channels: dict[tuple[str, int], NodeChannel] = {}
        self._tasks = Tasks()
        self._is_due = asyncio.Event()
        node.on_nodes = sessions.changes.on_followed = self._is_due.set
        node.channels.servers[VIEWS] = self._serve_views
        node.channels.servers[LIST] = self._serve_list

    async def stop(self) -> None:
        await self._tasks.finish(0)

    async def listed(self, rows: Sequence[SessionRow]) -> AsyncIterator[Session | ListedSession]:
        """The sessions of these rows, wherever they run. None of them becomes this node's."""
        owners = await self._node.heads_of([row.n for row in rows]) if rows else {}
        asked: dict[int, list[str]] = {}
        for row in rows:
            owner = owners.get(row.n, (None, 0))[0]
            if owner is not None and owner != self._node.number:
                asked.setdefault(owner, []).append(row.id)
        answers = await asyncio.gather(*(self._ask(*question) for question in asked.items()))
        states = {state["session_id"]: state for answer in answers for state in answer}
        for row in rows:
            if (state := states.get(row.id)) is not None:
                yield ListedSession(row, state)
            elif (session := await self._sessions.listed_session(row)) is not None:
                yield session

    async def _ask(self, owner: int, ids: list[str]) -> list[dict[str, Any]]:
        """The states of the given sessions that *owner* has in memory."""
        channel = self._node.channels.open(owner, VIEWS)
        try:
            async with asyncio.timeout(ANSWER_SECS):
                channel.send_now(dumps(ids))
                states: list[dict[str, Any]] = loads(await channel.receive() or b"[]")
                return states
        except (ChannelLostError, TimeoutError):
            return []
        finally:
            channel.close()

    async def _serve_views(self, channel: NodeChannel) -> None:
        ids: list[str] = loads(await channel.receive() or b"[]")
        sessions = [
            session
            for session_id in ids
            if (session := self._sessions.memory.get(session_id)) is not None
        ]
        await channel.send(dumps([session.view() for session in sessions]))
        channel.end()

    # Changes

    async def run(self) -> None:
        """Follow the lists of the apps that clients of this node follow, on all nodes; forever."""
        while True:
            self._is_due.clear()
            apps = self._sessions.changes.followed_apps()
            wanted = {
                (app, number)
                for app in apps
                for number, node in self._node.nodes.items()
                if number != self._node.number and not node.is_late
            }
            for key in self._channels.keys() - wanted:
                self._channels.pop(key).close()
            for key in wanted - self._channels.keys():
                channel = self._channels[key] = self._node.channels.open(key[1], LIST)
                self._tasks.spawn(self._read(key, channel), f"list-of-node-{key[1]}")
            await self._is_due.wait()

    async def _read(self, key: tuple[str, int], channel: NodeChannel) -> None:
        try:
            channel.send_now(key[0].encode())
            async for piece in channel:
                states: list[dict[str, Any]] = loads(piece)
                await self._report(key[0], states)
        except (ChannelLostError, DatabaseError):
            pass
        finally:
            channel.close()
            if self._channels.get(key) is channel:
                del self._channels[key]
                asyncio.get_running_loop().call_later(OPEN_AGAIN_SECS, self._is_due.set)

    async def _report(self, app_name: str, states: Sequence[dict[str, Any]]) -> None:
        listed = []
        for state in states:
            row = await self._sessions.queries.session(state["session_id"])
            if row is not None and row.app_name == app_name:
                listed.append(ListedSession(row, state))
        self._sessions.changes.report(app_name, listed)

    async def _serve_list(self, channel: NodeChannel) -> None:
        app_name = (await channel.receive() or b"").decode()
        changes = self._sessions.changes

        def notify(sessions: Any) -> None:
            with contextlib.suppress(ChannelLostError):
                channel.send_now(dumps([session.view() for session in sessions]))

        open_sessions = [
            session
            for session in self._sessions.memory.all()
            if session.row.app_name == app_name and not session.is_closed
        ]
        notify(open_sessions)
        changes.follow(app_name, notify, is_local=False)
        try:
            async for _ in channel:
                pass
        finally:
            changes.unfollow(app_name, notify)
