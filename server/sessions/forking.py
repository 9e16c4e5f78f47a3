"""Forks: new sessions whose log begins with the log of another session."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..agents.agent_settings import can_load, has_session_capability
from ..codec import dumps, loads
from ..errors import Error, ErrorCode, draining, not_found
from ..storage.fork_queries import TurnSpan
from ..storage.schema import SessionRow, Statement
from ..storage.segments import copy_log
from ..tasks import to_completion
from ..workspace.workers import SnapshotError
from .creation import SessionRequest
from .forked_conversation import note_forked
from .lifetime import Lifetime
from .options import SessionOptions, WorkspaceChoice
from .session import Session
from .settings import StoredSettings

if TYPE_CHECKING:
    from .registry import SessionRegistry

logger = logging.getLogger(__name__)


class ForkPoint(msgspec.Struct, frozen=True):
    """The point at which a log is forked.

    Attributes:
        source: the row of the session.
        turn_index: the last turn that the fork has.
        position: of the last entry that the fork has.
        turn_count: the number of turns that the fork has.
        last_turn_index: the greatest index of them.
        is_head: no turn of the session has begun after it.
        copy_files: gives the fork with that id the files that the source had, before it is stored.
    """

    source: SessionRow
    turn_index: int
    position: int
    turn_count: int
    last_turn_index: int
    is_head: bool
    copy_files: Callable[[str, Path], Awaitable[None]]

    def apply_to(self, row: SessionRow) -> None:
        """Set the columns of the fork's row."""
        origin = {"session_id": self.source.id, "turn_index": self.turn_index}
        row.forked_from = dumps(origin).decode()
        row.turn_count = self.turn_count
        row.needs_history = 1
        row.read_seq = min(self.source.read_seq, self.position)

    def statements(self, number: int) -> list[Statement]:
        """Copy the log to the session of that number."""
        return copy_log(self.source.n, self.position, number)


def inherited_request(source: Session, agent: str | None = None) -> SessionRequest:
    """The request for a fork that has the values of *source*.

    Args:
        agent: of the fork. The model, the mode and the options of another agent are not taken over.
    """
    row = source.row
    agent = agent or row.agent
    is_same = agent == row.agent
    stored = StoredSettings.decode(row.settings) if is_same else StoredSettings()
    options = SessionOptions.decode(row.options)
    if not is_same:  # which may not take them
        options = msgspec.structs.replace(options, allowed_tools=None, max_turns=None)
    git = options.git
    if git is not None and git.worktree:  # a branch has one worktree
        git = msgspec.structs.replace(git, branch=None)
        options = msgspec.structs.replace(options, workspace=WorkspaceChoice(git=git))
    # With a repository, the folder follows from that.
    has_own_folder = git is not None or row.cwd.endswith(f"/workspaces/{row.id}")
    return SessionRequest(
        agent=agent,
        model=row.model if is_same else None,
        system=row.system,
        meta=loads(row.meta),
        permission=row.permission,
        cwd=None if has_own_folder else row.cwd,
        client_cwd=row.client_cwd,
        mode=stored.mode,
        config_options=stored.config_options,
        options=options,
        lifetime=Lifetime(row.ttl_secs, row.retention_secs),
    )


class SessionForker:
    """Forks the sessions of a registry."""

    def __init__(self, sessions: SessionRegistry) -> None:
        self._sessions = sessions

    async def fork(
        self, source: Session, turn_index: int | None, request: SessionRequest
    ) -> Session:
        """Create a session whose log begins with the log of *source*, up to the end of a turn.

        Args:
            turn_index: by default the last turn that has ended.

        Raises:
            Error: ``conflict`` if the turn has not ended, ``not_found`` if it does not exist;
                otherwise the errors of :meth:`SessionRegistry.create`.
        """
        if self._sessions.is_draining:
            raise draining()
        await self._sessions.disk.check(source.row.app_name)
        async with source.fork_lock:  # meanwhile the source is not deleted
            loaded = self._sessions.memory.get(source.id)
            if source.row.removed_at is not None or loaded is not source:
                raise not_found()
            point = await self._point(source, turn_index)
            fork = await self._sessions.create(source.row.app_name, request, point)
            if point.is_head and fork.row.agent == source.row.agent:
                await self._fork_conversation(source, fork)
        if fork.row.needs_history:
            fork.start_agent(None)
        return fork

    async def _point(self, source: Session, turn_index: int | None) -> ForkPoint:
        queries, number = self._sessions.queries, source.row.n
        await self._sessions.writer.flush()
        turn: TurnSpan | None
        if turn_index is None:
            turn = await queries.last_ended_turn(number)
        else:
            turn = await queries.turn_span(number, turn_index)
            if turn is None:
                raise not_found("turn")
        end = turn.last_seq if turn is not None else None
        # A turn that was withdrawn from the queue ends while another one runs, which must also end.
        while end is not None:
            longer = await queries.end_of_turns(number, end)
            if longer == end:
                break
            end = longer
        if turn is None or end is None:
            raise Error(ErrorCode.CONFLICT, "the turn has not ended")
        count = await queries.count_turns(number, end)
        last = await queries.last_turn_index(number, end)
        is_head = not source.is_busy and count == source.row.turn_count
        files_of = partial(self._copy_files, source, None if is_head else turn.turn_index)
        return ForkPoint(source.row, turn.turn_index, end, count, last, is_head, files_of)

    async def _copy_files(
        self, source: Session, turn_index: int | None, fork_id: str, folder: Path
    ) -> None:
        """Give a fork's own folder the files that the source had after the turn, or has now."""
        snapshots, app_name = self._sessions.snapshots, source.row.app_name
        target = snapshots.of(fork_id, app_name, str(folder))
        try:
            await snapshots.copy(source.snapshots, target, turn_index)
        except (Error, SnapshotError) as error:
            about = {"session": fork_id, "app": app_name}
            logger.warning("the files of a fork cannot be copied: %s", error, extra=about)

    async def _fork_conversation(self, source: Session, fork: Session) -> None:
        """Let the agent fork its conversation, if it can. Otherwise its prompt contains it."""
        if not source.row.has_context or source.row.needs_history:
            return
        backend = self._sessions.backend
        if fork.row.system != source.row.system and not backend.traits(fork.row.agent).takes_system:
            return  # it would not get the fork's own system prompt, which precedes a conversation
        # They are unknown after a restart of the server, until the agent is started.
        capabilities = source.agent.reported.capabilities
        if isinstance(capabilities, dict) and not has_session_capability(capabilities, "fork"):
            return
        if source.agent.is_live:
            # The fork's own process loads the conversation that this one has forked.
            if not (isinstance(capabilities, dict) and can_load(capabilities)):
                return
            if await backend.fork(source.agent.backend_agent, fork.id, fork.row.cwd):
                fork.usage.continue_from(source.usage)
                await to_completion(self._sessions.writer.commit([note_forked(fork.row)]))
        elif await backend.fork_later(source.id, fork.agent.backend_agent):
            fork.usage.continue_from(source.usage)
