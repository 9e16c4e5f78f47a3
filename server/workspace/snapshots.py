"""Snapshots of sessions' folders, before and after each turn: what changed, and undo."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from .. import safe_files
from ..config import Settings
from ..data_dir import DataDir
from ..errors import Error, ErrorCode
from ..tasks import Tasks
from .session_snapshots import FinishedUndo, SessionSnapshots
from .workers import LONG_SECS, SnapshotError, SnapshotWorkers

logger = logging.getLogger(__name__)

SnapshotResult = TypeVar("SnapshotResult")

UNDO_JOURNAL = "restoring"
"""The file of an undo in progress, as the worker names it."""
FINISH_SECS = 5.0
"""Time for the snapshots of the last turns when the server stops."""


class Snapshots:
    """The snapshots of all sessions. Each session has a bare git repository of its own.

    Attributes:
        finished: the undos of an earlier server that were finished now, by their sessions.
    """

    def __init__(self, settings: Settings) -> None:
        self.data_dir = DataDir.of(settings)
        self.settings = settings
        self.tasks = Tasks()
        self.finished: dict[str, FinishedUndo] = {}
        self._workers = SnapshotWorkers()
        self._requests: set[asyncio.Task[Any]] = set()
        self._git: str | None = None
        self._sessions: WeakValueDictionary[str, SessionSnapshots] = WeakValueDictionary()

    async def start(self, folder_of: Callable[[str], Awaitable[str | None]]) -> None:
        """Find git, and finish every undo that a killed server left unfinished.

        In a cluster, another node may be busy with it: the session's next owner finishes it.

        Args:
            folder_of: returns the folder of a session, None if it does not exist.
        """
        self._git = await asyncio.to_thread(shutil.which, "git")
        if self._git is None:
            logger.warning("git is not installed: sessions have no snapshots and no undo")
            return
        if self.data_dir.is_shared:
            return
        for session_id in await asyncio.to_thread(_unfinished, self.data_dir.snapshots):
            if (cwd := await folder_of(session_id)) is not None:
                await self._recover(session_id, cwd)

    async def finish_undo(self, session_id: str, cwd: str) -> FinishedUndo | None:
        """Return the undo of an earlier server that its session has yet to log, once.

        One that another node of the cluster left unfinished is finished first.
        """
        journal = self.data_dir.snapshots / session_id / UNDO_JOURNAL
        shared = self.data_dir.is_shared and self._git is not None
        if shared and await asyncio.to_thread(journal.exists):
            await self._recover(session_id, cwd)
        return self.finished.pop(session_id, None)

    async def _recover(self, session_id: str, cwd: str) -> None:
        session = self.of(session_id, "", cwd)
        try:
            if (undo := await session.recover_undo()) is not None:
                self.finished[session_id] = undo
                logger.warning("an interrupted undo was finished", extra={"session": session_id})
        except (Error, SnapshotError) as error:
            logger.error("an undo cannot be finished: %s", error, extra={"session": session_id})

    async def stop(self) -> None:
        """Wait for the snapshots of the last turns, and end the workers."""
        await self.tasks.finish(FINISH_SECS)
        await self._workers.stop()
        await asyncio.gather(*self._requests, return_exceptions=True)

    @property
    def is_idle(self) -> bool:
        """Whether no snapshot is taken, compared or restored."""
        return self.tasks.is_empty and not self._requests

    @property
    def is_available(self) -> bool:
        """Whether snapshots are taken."""
        return self._git is not None and self.settings.max_snapshot_bytes > 0

    @property
    def has_git(self) -> bool:
        """Whether git was found."""
        return self._git is not None

    def check(self) -> None:
        """Check that snapshots are taken.

        Raises:
            Error: ``not_supported``.
        """
        if not self.is_available:
            reason = (
                "git is not installed on the server"
                if self._git is None
                else "the operator has turned off snapshots"
            )
            raise Error(ErrorCode.NOT_SUPPORTED, f"changes and undo need snapshots: {reason}")

    def of(
        self, session_id: str, app_name: str, cwd: str, *, is_new: bool = False
    ) -> SessionSnapshots:
        """Return the snapshots of one session: the same object while anything refers to it.

        Args:
            is_new: the session has had no turn.
        """
        snapshots = self._sessions.get(session_id)
        if snapshots is None:
            snapshots = SessionSnapshots(self, session_id, app_name, cwd, is_new=is_new)
            self._sessions[session_id] = snapshots
        return snapshots

    async def call(
        self, app_name: str, request: Mapping[str, Any], timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request to a worker."""
        settings = self.settings
        base = self.data_dir.snapshots
        return await self._workers.call(
            app_name,
            {
                "base": [str(self.data_dir.path), *base.relative_to(self.data_dir.path).parts],
                "git": self._git,
                "limits": [
                    settings.max_snapshot_files,
                    settings.max_snapshot_file_bytes,
                    settings.max_snapshot_bytes,
                ],
                **request,
            },
            timeout,
        )

    async def finish(self, work: Coroutine[Any, Any, SnapshotResult]) -> SnapshotResult:
        """Await *work*, which continues if the waiting client is cancelled."""
        task = asyncio.create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return await asyncio.shield(task)

    async def delete(self, session_id: str) -> None:
        """Delete the snapshots of a session. No further ones are taken.

        If they cannot be deleted, the operator must do it: a retry would fail as well.
        """
        path = self.data_dir.snapshots / session_id
        session = self.of(session_id, "", str(path))
        async with session.lock:
            session.is_deleted = True
            try:
                await asyncio.to_thread(safe_files.remove, *self.data_dir.split(path))
            except OSError as error:
                about = {"session": session_id}
                logger.error("a session's snapshots cannot be removed: %s", error, extra=about)

    async def copy(
        self, source: SessionSnapshots, target: SessionSnapshots, turn_index: int | None
    ) -> None:
        """Give a new session the snapshots and the files of another one.

        Args:
            target: of a session whose folder is its own.
            turn_index: the last turn whose changes it gets; None for the present state.

        Raises:
            Error, SnapshotError: they cannot be copied.
        """
        if not self.is_available:
            return
        async with target.lock:
            async with source.lock:
                names = {"target_id": target.session_id, "turn_index": turn_index}
                copied, _ = await source.call("copy", timeout=LONG_SECS, **names)
            if copied["tree"] is not None:
                await target.call("populate", timeout=LONG_SECS, tree=copied["tree"])
            target.note_changed()


def _unfinished(folder: Path) -> list[str]:
    """Return the sessions whose undo was interrupted."""
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if (path / UNDO_JOURNAL).exists()]
