"""Creating sessions: the checks of a request, the folder or the prewarmed agent, and the row."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..agents.base import Backend
from ..agents.selection import AgentSelection
from ..cluster.membership import Cluster
from ..codec import dumps
from ..config import Settings
from ..errors import Error, ErrorCode, bad_request, not_stored, not_supported
from ..limits import DiskReserve
from ..storage import statements
from ..storage.schema import SessionRow, Statement
from ..storage.writer import DatabaseWriter
from ..tasks import Tasks, to_completion
from ..validation import MAX_NAME, OptionValue
from ..workspace.worktrees import Worktrees
from .announcement import Announcement
from .details import encode_meta
from .lifetime import Lifetime
from .option_checks import check_elicitation, check_for_agent, check_options
from .options import NO_OPTIONS, SessionOptions, WorkspaceChoice
from .permissions import check_permission
from .prewarm import PrewarmedAgent, Prewarmer
from .settings import StoredSettings
from .workspaces import Workspaces

if TYPE_CHECKING:
    from .forking import ForkPoint
    from .imports import ImportedLog

logger = logging.getLogger(__name__)


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request for a new session.

    Attributes:
        agent: None for the default agent.
        system: the system prompt.
        meta: data that the app defines.
        permission: ``approve-all``, ``approve-reads``, ``deny-all`` or ``ask``.
        cwd: a folder in one of the workspace roots; None for a folder of the session's own.
        client_cwd: the folder on an ACP client's machine, by which it lists the session.
        options: everything else.
        lifetime: how long the session stays open, and is kept.
    """

    agent: str | None = None
    model: str | None = None
    system: str | None = None
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)
    permission: str = "approve-all"
    cwd: str | None = None
    mode: str | None = None
    config_options: Mapping[str, OptionValue] = msgspec.field(default_factory=dict)
    client_cwd: str | None = None
    options: SessionOptions = NO_OPTIONS
    lifetime: Lifetime = Lifetime()


class SessionDraft(msgspec.Struct):
    """A request that has been checked.

    Attributes:
        agent: the name of an agent that is installed.
        meta: the request's ``meta`` as JSON.
        folder: the folder that the client chose, or None.
        prewarmed: the agent that the session takes over, or None.
        has_folder, has_worktree: they were made for it.
        is_noted: the database has its id, among those of the prewarmed agents.
        reservation: the name of its reservation in the limits of a cluster.
    """

    request: SessionRequest
    agent: str
    meta: str
    folder: Path | None
    id: str = ""
    prewarmed: PrewarmedAgent | None = None
    has_folder: bool = False
    has_worktree: bool = False
    is_noted: bool = False
    reservation: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)


class SessionCreator:
    """Checks requests for sessions and stores the sessions.

    Attributes:
        last_number: the number of the newest session.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        backend: Backend,
        writer: DatabaseWriter,
        agents: AgentSelection,
        prewarmer: Prewarmer,
        workspaces: Workspaces,
        worktrees: Worktrees,
        disk: DiskReserve,
        tasks: Tasks,
        clock: Callable[[], float],
        cluster: Cluster,
    ) -> None:
        self.last_number = 0
        self._cluster = cluster
        self._settings = settings
        self._backend = backend
        self._writer = writer
        self._agents = agents
        self._prewarmer = prewarmer
        self._workspaces = workspaces
        self._worktrees = worktrees
        self._disk = disk
        self._tasks = tasks
        self._clock = clock

    async def check(self, request: SessionRequest) -> SessionDraft:
        """Check a request; nothing is reserved yet.

        Raises:
            Error: ``bad_request``, ``payload_too_large``, ``agent_unavailable``, or ``internal``
                if the disk is full.
        """
        self._check_backend(request)
        meta = encode_meta(request.meta, self._settings.max_meta_bytes)
        check_options(request.options, self._settings)
        check_elicitation(request.options, self._backend)
        limit = self._settings.max_system_bytes
        if request.system is not None and len(request.system.encode()) > limit:
            raise Error(ErrorCode.PAYLOAD_TOO_LARGE, f"system: it has at most {limit} bytes")
        if request.model is not None and len(request.model) > MAX_NAME:
            raise bad_request(f"model: must have at most {MAX_NAME} characters")
        await self._disk.check()
        agent = await self._agents.choose(request.agent)
        check_permission(request.permission, self._backend, agent)
        check_for_agent(request.options, self._backend, agent)
        folder, request = await self._choose_folder(request)
        directories = await self._workspaces.check_directories(request.options)
        request = msgspec.structs.replace(request, options=directories)
        return SessionDraft(request, agent, meta, folder)

    async def _choose_folder(self, request: SessionRequest) -> tuple[Path | None, SessionRequest]:
        """Return the folder that the client chose, and the request with its repository resolved."""
        git = request.options.git
        if git is None:
            chosen = request.cwd
            return None if chosen is None else await self._workspaces.check(chosen), request
        if request.cwd is not None:
            raise bad_request("workspace: cwd chooses the folder already")
        self._worktrees.check()
        repository = await self._workspaces.check(git.repository, "workspace.git.repository")
        if not git.worktree and git.branch is not None:
            raise bad_request("workspace.git.branch: it needs a worktree")
        git = msgspec.structs.replace(git, repository=str(repository))
        options = msgspec.structs.replace(request.options, workspace=WorkspaceChoice(git=git))
        request = msgspec.structs.replace(request, options=options)
        return None if git.worktree else repository, request

    def _check_backend(self, request: SessionRequest) -> None:
        if request.permission == "ask" and not self._backend.can_ask:
            raise not_supported('permission: "ask" is not supported by the cli backend')

    def reserve_agent(self, app_name: str, draft: SessionDraft, *, is_fork: bool) -> None:
        """Assign an id to the draft, and a prewarmed agent if one is ready that fits.

        The agent is set to the model, the mode and the options of the request before its first
        prompt. A fork gets none, because the agent may fork a conversation for it.
        """
        if not is_fork and self._fits_prewarmed(app_name, draft):
            announced = Announcement.of(draft.request.options)
            draft.prewarmed = self._prewarmer.reserve(draft.agent, announced)
        draft.id = str(uuid.uuid4()) if draft.prewarmed is None else draft.prewarmed.id

    def _fits_prewarmed(self, app_name: str, draft: SessionDraft) -> bool:
        """Whether the session needs nothing that an agent can get only at its start."""
        request, backend = draft.request, self._backend
        return (
            request.system is None
            and draft.folder is None
            and request.options.git is None
            and not request.options.has_agent_options
            and not backend.environ_of(app_name)
            and backend.sandbox.of(app_name) is backend.sandbox
        )

    async def store(
        self, app_name: str, draft: SessionDraft, fork: ForkPoint | ImportedLog | None = None
    ) -> SessionRow:
        """Make the session's folder and store its row.

        Args:
            fork: the log with which the session begins.

        If that fails, the folder is removed and the prewarmed agent ended.

        Raises:
            Error: ``internal``; the session cannot be stored.
        """
        try:
            if draft.prewarmed is not None:
                folder = Path(draft.prewarmed.spec.cwd)
            elif draft.folder is not None:
                folder = draft.folder
            else:
                folder = await self._make_folder(app_name, draft, fork)
            number = await self._cluster.next_session_number()
            self.last_number = self.last_number + 1 if number is None else number
            row = self._row(app_name, draft, folder)
            copy: list[Statement] = []
            if fork is not None:
                fork.apply_to(row)
                copy = fork.statements(row.n)
            await to_completion(self._writer.commit([*self._statements(row, draft), *copy]))
        except BaseException as error:
            await self._discard(app_name, draft)
            if isinstance(error, OSError):
                logger.error("a session's folder cannot be made: %s", error.strerror)
                raise not_stored() from None
            raise
        finally:
            self._prewarmer.making.discard(draft.id)
        return row

    async def _discard(self, app_name: str, draft: SessionDraft) -> None:
        """Delete what was made for a session that is not stored, and end its agent."""
        if draft.prewarmed is not None:
            end = self._prewarmer.end(draft.prewarmed)
            self._tasks.spawn(end, f"prewarm-end-{draft.id}")
        if draft.has_folder:
            with contextlib.suppress(OSError):
                await self._workspaces.delete(draft.id)
        if draft.has_worktree:
            await self._remove_worktree(app_name, draft.id, draft.request.options)
        if draft.is_noted:
            end = self._prewarmer.delete_data([draft.id])
            self._tasks.spawn(end, f"delete-files-{draft.id}")

    async def _make_folder(
        self, app_name: str, draft: SessionDraft, fork: ForkPoint | ImportedLog | None
    ) -> Path:
        """Make the session's own folder, with the worktree or the files of the fork in it."""
        git = draft.request.options.git
        copy_files = fork.copy_files if fork is not None else None
        if git is not None or copy_files is not None:
            # The next server deletes the files if this one is killed before the row exists.
            self._prewarmer.making.add(draft.id)
            draft.is_noted = True
            await self._writer.commit([statements.insert_prewarmed(draft.id)])
        draft.has_folder = True
        folder = await self._workspaces.create(draft.id)
        if git is not None:
            draft.has_worktree = True
            await self._worktrees.add(app_name, draft.id, folder, git.repository, git.branch)
        if copy_files is not None:
            await copy_files(draft.id, folder)
        return folder

    async def remove_worktree_of(self, row: SessionRow, _: bool) -> None:
        """Remove what a repository keeps of a session whose folder was deleted."""
        await self._remove_worktree(row.app_name, row.id, SessionOptions.decode(row.options))

    async def _remove_worktree(
        self, app_name: str, session_id: str, options: SessionOptions
    ) -> None:
        git = options.git
        if git is not None and git.worktree:
            path = self._workspaces.path(session_id)
            await self._worktrees.remove(app_name, session_id, path, git.repository)

    def _row(self, app_name: str, draft: SessionDraft, folder: Path) -> SessionRow:
        request = draft.request
        return SessionRow(
            n=self.last_number,
            id=draft.id,
            app_name=app_name,
            agent=draft.agent,
            model=request.model,
            system=request.system,
            meta=draft.meta,
            permission=request.permission,
            cwd=str(folder),
            created_at=self._clock(),
            last_turn_at=None,
            turn_count=0,
            has_context=0,
            closed_at=None,
            close_reason=None,
            settings=StoredSettings(request.mode, dict(request.config_options)).encode(),
            client_cwd=request.client_cwd,
            options=request.options.encode(),
            ttl_secs=request.lifetime.ttl_secs,
            retention_secs=request.lifetime.retention_secs,
        )

    def _statements(self, row: SessionRow, draft: SessionDraft) -> list[Statement]:
        detail = {"agent": row.agent, "model": row.model, "permission": row.permission}
        transaction = [
            statements.insert_session(row),
            statements.insert_audit_event(
                row.id, row.app_name, "create", row.created_at, dumps(detail).decode()
            ),
        ]
        transaction += self._cluster.ownership_of(row.n, draft.reservation)
        if draft.prewarmed is not None or draft.is_noted:
            transaction.append(statements.delete_prewarmed(row.id))
        return transaction
